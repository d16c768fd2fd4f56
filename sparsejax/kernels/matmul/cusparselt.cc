// y = x W by cuSPARSELt for a 2:4 matrix W, as two calls that XLA makes: one compresses W^T, one
// multiplies. Compiled on the user's machine when first asked for (see _cusparselt.py).

#include <cuda_runtime_api.h>
// The few types of cusparse.h that are needed: the header itself needs more of CUDA than is likely
// to be there.
#if __has_include(<cusparseLt_cusparse_stub.h>)
#include <cusparseLt_cusparse_stub.h>
#endif
#include <cusparseLt.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#define RETURN_IF_FAILED(call)                                                             \
  if (auto status = (call); int(status) != 0) {                                            \
    return ffi::Error::Internal(std::string(#call) + ": status " + std::to_string(status)); \
  }

constexpr int kAlignment = 16;

// What the library prepares, once for a device, sizes and dtype. Its descriptors point at each
// other, so they stay where they are.
struct Weights {
  cusparseLtHandle_t* handle;
  cusparseLtMatDescriptor_t descriptor;
  size_t bytes, scratch;
};

struct Product {
  cusparseLtMatDescriptor_t w, x, y;
  cusparseLtMatmulDescriptor_t descriptor;
  cusparseLtMatmulAlgSelection_t selection;
  cusparseLtMatmulPlan_t plan;
  bool searched = false;
};

using Key = std::tuple<int, int64_t, int64_t, int64_t, int>;

std::mutex mutex;
std::map<int, std::unique_ptr<cusparseLtHandle_t>> handles;
std::map<Key, std::unique_ptr<Weights>> weights;
std::map<Key, std::unique_ptr<Product>> products;

cudaDataType TypeOf(ffi::DataType type) {
  return type == ffi::DataType::F16 ? CUDA_R_16F : CUDA_R_16BF;
}

// W^T of n rows and k columns.
ffi::Error Describe(cusparseLtHandle_t* handle, cusparseLtMatDescriptor_t* w, int64_t n, int64_t k,
                    cudaDataType type) {
  RETURN_IF_FAILED(cusparseLtStructuredDescriptorInit(handle, w, n, k, k, kAlignment, type,
                                                      CUSPARSE_ORDER_ROW,
                                                      CUSPARSELT_SPARSITY_50_PERCENT));
  return ffi::Error::Success();
}

ffi::Error Prepared(int64_t n, int64_t k, cudaDataType type, Weights** found) {
  int device;
  RETURN_IF_FAILED(cudaGetDevice(&device));
  auto& handle = handles[device];
  if (!handle) {
    auto made = std::make_unique<cusparseLtHandle_t>();
    RETURN_IF_FAILED(cusparseLtInit(made.get()));
    handle = std::move(made);
  }
  auto& entry = weights[{device, n, k, 0, int(type)}];
  if (!entry) {
    auto made = std::make_unique<Weights>();
    made->handle = handle.get();
    if (auto error = Describe(made->handle, &made->descriptor, n, k, type); error.failure()) {
      return error;
    }
    RETURN_IF_FAILED(cusparseLtSpMMACompressedSize2(made->handle, &made->descriptor, &made->bytes,
                                                    &made->scratch));
    entry = std::move(made);
  }
  *found = entry.get();
  return ffi::Error::Success();
}

// x and y lie row after row, which are their transposes column after column.
ffi::Error Planned(cusparseLtHandle_t* handle, int64_t n, int64_t k, int64_t rows,
                   cudaDataType type, Product** found) {
  int device;
  RETURN_IF_FAILED(cudaGetDevice(&device));
  auto& entry = products[{device, n, k, rows, int(type)}];
  if (!entry) {
    auto p = std::make_unique<Product>();
    if (auto error = Describe(handle, &p->w, n, k, type); error.failure()) return error;
    RETURN_IF_FAILED(cusparseLtDenseDescriptorInit(handle, &p->x, k, rows, k, kAlignment, type,
                                                   CUSPARSE_ORDER_COL));
    RETURN_IF_FAILED(cusparseLtDenseDescriptorInit(handle, &p->y, n, rows, n, kAlignment, type,
                                                   CUSPARSE_ORDER_COL));
    RETURN_IF_FAILED(cusparseLtMatmulDescriptorInit(
        handle, &p->descriptor, CUSPARSE_OPERATION_NON_TRANSPOSE, CUSPARSE_OPERATION_NON_TRANSPOSE,
        &p->w, &p->x, &p->y, &p->y, CUSPARSE_COMPUTE_32F));
    RETURN_IF_FAILED(cusparseLtMatmulAlgSelectionInit(handle, &p->selection, &p->descriptor,
                                                      CUSPARSELT_MATMUL_ALG_DEFAULT));
    RETURN_IF_FAILED(cusparseLtMatmulPlanInit(handle, &p->plan, &p->descriptor, &p->selection));
    entry = std::move(p);
  }
  *found = entry.get();
  return ffi::Error::Success();
}

ffi::Error Compress(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer dense,
                    ffi::Result<ffi::AnyBuffer> packed) {
  std::lock_guard<std::mutex> lock(mutex);
  auto sizes = dense.dimensions();
  Weights* w;
  if (auto error = Prepared(sizes[0], sizes[1], TypeOf(dense.element_type()), &w);
      error.failure()) {
    return error;
  }
  if (w->bytes > packed->size_bytes()) {
    return ffi::Error::Internal("cuSPARSELt needs " + std::to_string(w->bytes) + " bytes for W");
  }
  auto buffer = scratch.Allocate(w->scratch + kAlignment, kAlignment);
  if (!buffer) return ffi::Error::Internal("no memory to compress W in");
  RETURN_IF_FAILED(cusparseLtSpMMACompress2(
      w->handle, &w->descriptor, 1, CUSPARSE_OPERATION_NON_TRANSPOSE, dense.untyped_data(),
      packed->untyped_data(), *buffer, stream));
  return ffi::Error::Success();
}

ffi::Error Multiply(cudaStream_t stream, ffi::ScratchAllocator scratch, ffi::AnyBuffer packed,
                    ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  std::lock_guard<std::mutex> lock(mutex);
  int64_t rows = x.dimensions()[0], k = x.dimensions()[1], n = y->dimensions()[1];
  auto type = TypeOf(x.element_type());
  Weights* w;
  if (auto error = Prepared(n, k, type, &w); error.failure()) return error;
  Product* p;
  if (auto error = Planned(w->handle, n, k, rows, type, &p); error.failure()) return error;
  float one = 1, zero = 0;
  void* out = y->untyped_data();
  if (!p->searched) {
    // The default algorithm may be far from the best.
    RETURN_IF_FAILED(cusparseLtMatmulSearch(w->handle, &p->plan, &one, packed.untyped_data(),
                                            x.untyped_data(), &zero, out, out, nullptr, &stream,
                                            1));
    p->searched = true;
  }
  size_t bytes;
  RETURN_IF_FAILED(cusparseLtMatmulGetWorkspace(w->handle, &p->plan, &bytes));
  auto workspace = scratch.Allocate(bytes + kAlignment, kAlignment);
  if (!workspace) return ffi::Error::Internal("no memory to multiply in");
  RETURN_IF_FAILED(cusparseLtMatmul(w->handle, &p->plan, &one, packed.untyped_data(),
                                    x.untyped_data(), &zero, out, out, *workspace, &stream, 1));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxCompress, Compress,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::ScratchAllocator>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxMultiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::ScratchAllocator>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
