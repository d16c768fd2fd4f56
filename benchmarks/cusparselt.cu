// Milliseconds of y^T = W^T x^T by cuSPARSELt, W of side K = N pruned to 2:4, bfloat16: a yardstick.
//
//     cusparselt SIDE ROWS...      prints for each number of rows: rows milliseconds
//
// Three compressed matrices in turn, the algorithm found by the library's own search.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cusparseLt.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                  \
  if (auto status = (call); status != 0) {                                           \
    std::fprintf(stderr, "%s: %d at line %d\n", #call, int(status), __LINE__);       \
    std::exit(1);                                                                    \
  }

constexpr int kWeights = 3, kChain = 6, kRounds = 20;

__global__ void fill(__nv_bfloat16* out, size_t size, unsigned seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < size;
       i += size_t(gridDim.x) * blockDim.x) {
    unsigned h = unsigned(i) * 2654435761u ^ seed;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    out[i] = __float2bfloat16((int(h ^ h >> 16) / 2147483648.0f) / 64);
  }
}

__nv_bfloat16* randoms(size_t size, unsigned seed) {
  __nv_bfloat16* out;
  CHECK(cudaMalloc(&out, size * sizeof(*out)));
  fill<<<1024, 256>>>(out, size, seed);
  CHECK(cudaGetLastError());
  return out;
}

float milliseconds(cusparseLtHandle_t& handle, int64_t side, int64_t rows) {
  cusparseLtMatDescriptor_t w, x, y;
  auto type = CUDA_R_16BF;
  CHECK(cusparseLtStructuredDescriptorInit(&handle, &w, side, side, side, 16, type,
                                           CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT));
  // x and y lie as (rows, side) row after row, which are their transposes column after column.
  CHECK(cusparseLtDenseDescriptorInit(&handle, &x, side, rows, side, 16, type, CUSPARSE_ORDER_COL));
  CHECK(cusparseLtDenseDescriptorInit(&handle, &y, side, rows, side, 16, type, CUSPARSE_ORDER_COL));
  cusparseLtMatmulDescriptor_t product;
  CHECK(cusparseLtMatmulDescriptorInit(&handle, &product, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                       CUSPARSE_OPERATION_NON_TRANSPOSE, &w, &x, &y, &y,
                                       CUSPARSE_COMPUTE_32F));
  cusparseLtMatmulAlgSelection_t selection;
  CHECK(cusparseLtMatmulAlgSelectionInit(&handle, &selection, &product,
                                         CUSPARSELT_MATMUL_ALG_DEFAULT));
  cusparseLtMatmulPlan_t plan;
  CHECK(cusparseLtMatmulPlanInit(&handle, &plan, &product, &selection));
  size_t packed, scratch;
  CHECK(cusparseLtSpMMACompressedSize(&handle, &plan, &packed, &scratch));
  std::vector<void*> weights(kWeights);
  void* buffer;
  CHECK(cudaMalloc(&buffer, std::max<size_t>(scratch, 16)));
  for (int i = 0; i < kWeights; i++) {
    auto* dense = randoms(size_t(side) * side, 17 + i);
    CHECK(cusparseLtSpMMAPrune(&handle, &product, dense, dense, CUSPARSELT_PRUNE_SPMMA_STRIP, 0));
    CHECK(cudaMalloc(&weights[i], packed));
    CHECK(cusparseLtSpMMACompress(&handle, &plan, dense, weights[i], buffer, 0));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(dense));
  }
  auto *in = randoms(size_t(side) * rows, 5), *out = randoms(size_t(side) * rows, 6);
  float one = 1, zero = 0;
  CHECK(cusparseLtMatmulSearch(&handle, &plan, &one, weights[0], in, &zero, out, out, nullptr,
                               nullptr, 0));
  size_t bytes;
  CHECK(cusparseLtMatmulGetWorkspace(&handle, &plan, &bytes));
  void* workspace;
  CHECK(cudaMalloc(&workspace, std::max<size_t>(bytes, 16)));
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 1e30f;
  for (int round = 0; round < kRounds; round++) {
    CHECK(cudaEventRecord(start));
    for (int i = 0; i < kChain; i++) {
      CHECK(cusparseLtMatmul(&handle, &plan, &one, weights[i % kWeights], in, &zero, out, out,
                             workspace, nullptr, 0));
    }
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float elapsed;
    CHECK(cudaEventElapsedTime(&elapsed, start, stop));
    best = std::min(best, elapsed / kChain);
  }
  for (void* weight : weights) CHECK(cudaFree(weight));
  for (void* p : {buffer, workspace, (void*)in, (void*)out}) CHECK(cudaFree(p));
  CHECK(cusparseLtMatmulPlanDestroy(&plan));
  return best;
}

int main(int count, char** arguments) {
  cusparseLtHandle_t handle;
  CHECK(cusparseLtInit(&handle));
  for (int i = 2; i < count; i++) {
    int rows = std::atoi(arguments[i]);
    std::printf("%d %g\n", rows, milliseconds(handle, std::atoi(arguments[1]), rows));
  }
}
