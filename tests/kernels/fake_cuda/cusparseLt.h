// A model of cuSPARSELt on the host, written from its documentation: bfloat16, the sparse matrix
// row after row on the left. Descriptors are kept by address, as in the library, so that one that
// moved is found; so is a group of more than two entries, and a product before the search.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_runtime_api.h"

enum cusparseOperation_t { CUSPARSE_OPERATION_NON_TRANSPOSE, CUSPARSE_OPERATION_TRANSPOSE };
enum cusparseOrder_t { CUSPARSE_ORDER_COL = 1, CUSPARSE_ORDER_ROW = 2 };
enum cusparseLtSparsity_t { CUSPARSELT_SPARSITY_50_PERCENT };
enum cusparseComputeType { CUSPARSE_COMPUTE_32F };
enum cusparseLtMatmulAlg_t { CUSPARSELT_MATMUL_ALG_DEFAULT };
enum { OK = 0, INVALID = 3, NOT_SUPPORTED = 10 };

struct cusparseLtHandle_t {
  bool ready = false;
};
struct cusparseLtMatDescriptor_t {
  int64_t rows, cols, ld;
  cusparseOrder_t order;
  bool sparse;
  int64_t at(int64_t i, int64_t j) const {
    return order == CUSPARSE_ORDER_ROW ? i * ld + j : j * ld + i;
  }
};
struct cusparseLtMatmulDescriptor_t {
  const cusparseLtMatDescriptor_t *a, *b, *c, *d;
};
struct cusparseLtMatmulAlgSelection_t {
  const cusparseLtMatmulDescriptor_t* product;
};
struct cusparseLtMatmulPlan_t {
  const cusparseLtMatmulDescriptor_t* product;
  const cusparseLtMatmulAlgSelection_t* selection;
  bool searched;
};

inline float value(const void* data, int64_t i) {
  uint32_t bits = uint32_t(static_cast<const uint16_t*>(data)[i]) << 16;
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

inline uint16_t rounded(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline int cusparseLtInit(cusparseLtHandle_t* handle) {
  handle->ready = true;
  return OK;
}

inline int cusparseLtStructuredDescriptorInit(const cusparseLtHandle_t* handle,
                                              cusparseLtMatDescriptor_t* matrix, int64_t rows,
                                              int64_t cols, int64_t ld, uint32_t alignment,
                                              cudaDataType type, cusparseOrder_t order,
                                              cusparseLtSparsity_t) {
  if (!handle->ready || rows % 16 || cols % 16 || alignment % 16) return INVALID;
  if (type != CUDA_R_16BF) return NOT_SUPPORTED;
  *matrix = {rows, cols, ld, order, true};
  return OK;
}

inline int cusparseLtDenseDescriptorInit(const cusparseLtHandle_t* handle,
                                         cusparseLtMatDescriptor_t* matrix, int64_t rows,
                                         int64_t cols, int64_t ld, uint32_t alignment,
                                         cudaDataType type, cusparseOrder_t order) {
  if (!handle->ready || rows % 16 || cols % 16 || alignment % 16) return INVALID;
  if (ld < (order == CUSPARSE_ORDER_ROW ? cols : rows)) return INVALID;
  if (type != CUDA_R_16BF) return NOT_SUPPORTED;
  *matrix = {rows, cols, ld, order, false};
  return OK;
}

inline int cusparseLtMatmulDescriptorInit(
    const cusparseLtHandle_t*, cusparseLtMatmulDescriptor_t* product, cusparseOperation_t op_a,
    cusparseOperation_t op_b, const cusparseLtMatDescriptor_t* a,
    const cusparseLtMatDescriptor_t* b, const cusparseLtMatDescriptor_t* c,
    const cusparseLtMatDescriptor_t* d, cusparseComputeType) {
  if (op_a != CUSPARSE_OPERATION_NON_TRANSPOSE || op_b != op_a) return NOT_SUPPORTED;
  bool fits = a->cols == b->rows && a->rows == d->rows && b->cols == d->cols;
  if (!a->sparse || b->sparse || !fits) return INVALID;
  *product = {a, b, c, d};
  return OK;
}

inline int cusparseLtMatmulAlgSelectionInit(const cusparseLtHandle_t*,
                                            cusparseLtMatmulAlgSelection_t* selection,
                                            const cusparseLtMatmulDescriptor_t* product,
                                            cusparseLtMatmulAlg_t) {
  *selection = {product};
  return OK;
}

inline int cusparseLtMatmulPlanInit(const cusparseLtHandle_t*, cusparseLtMatmulPlan_t* plan,
                                    const cusparseLtMatmulDescriptor_t* product,
                                    const cusparseLtMatmulAlgSelection_t* selection) {
  if (selection->product != product) return INVALID;
  *plan = {product, selection, false};
  return OK;
}

// Two values of every four, and a byte for the places of those of two groups.
inline int cusparseLtSpMMACompressedSize2(const cusparseLtHandle_t*,
                                          const cusparseLtMatDescriptor_t* w, size_t* bytes,
                                          size_t* scratch) {
  *bytes = w->rows * w->cols + w->rows * w->cols / 8;
  *scratch = 64;
  return OK;
}

inline int cusparseLtSpMMACompress2(const cusparseLtHandle_t*, const cusparseLtMatDescriptor_t* w,
                                    int is_sparse_a, cusparseOperation_t, const void* dense,
                                    void* packed, void* scratch, cudaStream_t) {
  if (!is_sparse_a) return INVALID;
  std::memset(scratch, 0xFF, 64);
  auto* values = static_cast<uint16_t*>(packed);
  auto* places = static_cast<uint8_t*>(packed) + w->rows * w->cols;
  std::memset(packed, 0, w->rows * w->cols + w->rows * w->cols / 8);
  for (int64_t group = 0; group < w->rows * w->cols / 4; group++) {
    int found = 0;
    for (int r = 0; r < 4; r++) {
      auto at = w->at(group / (w->cols / 4), group % (w->cols / 4) * 4 + r);
      auto bits = static_cast<const uint16_t*>(dense)[at];
      if ((bits & 0x7FFF) == 0) continue;
      if (found == 2) return INVALID;
      values[2 * group + found] = bits;
      places[group / 2] |= r << (group % 2 * 4 + found * 2);
      found++;
    }
  }
  return OK;
}

inline int cusparseLtMatmul(const cusparseLtHandle_t*, const cusparseLtMatmulPlan_t* plan,
                            const void* alpha, const void* packed, const void* b, const void* beta,
                            const void* c, void* d, void* workspace, cudaStream_t* streams,
                            int32_t count) {
  if (!plan->searched || count != 1 || !streams) return INVALID;
  std::memset(workspace, 0xFF, 256);
  auto [w, x, before, y] = *plan->product;
  auto* places = static_cast<const uint8_t*>(packed) + w->rows * w->cols;
  for (int64_t i = 0; i < y->rows; i++) {
    for (int64_t j = 0; j < y->cols; j++) {
      float sum = 0;
      for (int64_t g = 0; g < w->cols / 4; g++) {
        auto group = i * (w->cols / 4) + g;
        for (int slot = 0; slot < 2; slot++) {
          int r = places[group / 2] >> (group % 2 * 4 + slot * 2) & 3;
          sum += value(packed, 2 * group + slot) * value(b, x->at(4 * g + r, j));
        }
      }
      sum *= *static_cast<const float*>(alpha);
      float factor = *static_cast<const float*>(beta);
      if (factor != 0) sum += factor * value(c, before->at(i, j));
      static_cast<uint16_t*>(d)[y->at(i, j)] = rounded(sum);
    }
  }
  return OK;
}

inline int cusparseLtMatmulSearch(const cusparseLtHandle_t*, cusparseLtMatmulPlan_t* plan,
                                  const void*, const void*, const void*, const void*, const void*,
                                  void* d, void*, cudaStream_t*, int32_t) {
  if (plan->searched) return INVALID;
  plan->searched = true;
  std::memset(d, 0xFF, 2 * plan->product->d->rows * plan->product->d->cols);
  return OK;
}

inline int cusparseLtMatmulGetWorkspace(const cusparseLtHandle_t*,
                                        const cusparseLtMatmulPlan_t* plan, size_t* bytes) {
  if (!plan->searched) return INVALID;
  *bytes = 256;
  return OK;
}
