// y = x W for an N:M matrix W and few rows of x on an NVIDIA GPU, limited by the reads of W.
// Compiled on the user's machine when first requested, for one pattern: SLOTS of every GROUP
// entries (see _cuda.py).
//
// The tensor cores compute y^T = W^T x^T. Each warp reads values and codes of 64 columns, which
// lie side by side, and expands them in registers to the fragments of `mma.m16n8k16`. A thread holds
// eight columns of one group; the order of the rows of W within a product is free, so that a
// fragment takes four consecutive entries of the thread's own group. No shared memory is needed
// until the warps of a block, which take groups in turn, add up their sums.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kBits = GROUP <= 2 ? 1 : GROUP <= 4 ? 2 : GROUP <= 8 ? 3 : GROUP <= 16 ? 4 : 5;
constexpr int kWarps = 8;
constexpr int kColumns = 64;  // of W for each block
constexpr int kAhead = SLOTS == 1 ? 4 : 2;  // groups that are loaded before they are needed

using Code = std::conditional_t<(SLOTS * kBits <= 8), uint8_t,
                                std::conditional_t<(SLOTS * kBits <= 16), uint16_t, uint32_t>>;
constexpr int kCodeWords = 2 * sizeof(Code);  // of eight columns

// Values and codes of eight columns of a group.
struct Loaded {
  uint32_t values[SLOTS][4];
  uint32_t code[kCodeWords];
};

__device__ __forceinline__ void ReadFour(const void* from, uint32_t* to) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}

__device__ __forceinline__ void ReadTwo(const void* from, uint32_t* to) {
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "l"(from));
}

template <typename T>
__device__ __forceinline__ void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint2 b) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  }
}

// Parts of y, (parts, rows, columns), from x (rows, GROUP groups), values (SLOTS, groups, columns)
// and codes (groups, columns). TILES of eight rows of x; blocks by columns, parts and rows.
template <typename T, int TILES>
__global__ void __launch_bounds__(32 * kWarps)
    Product(const T* __restrict__ x, const T* __restrict__ values, const Code* __restrict__ code,
            float* __restrict__ y, int rows, int groups, int columns) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int outer = lane / 4, inner = lane % 4;
  const int column = blockIdx.x * kColumns + 8 * outer;
  const int first_row = blockIdx.z * 8 * TILES;
  const int64_t k = int64_t(GROUP) * groups;
  // The warps of all parts take turns, four groups each time.
  const int turns = gridDim.y * kWarps, turn = blockIdx.y * kWarps + warp;

  auto load = [&](int g, Loaded& to) {
    if (g >= groups) return;
    const int64_t at = int64_t(g) * columns + column;
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) ReadFour(values + int64_t(s) * groups * columns + at, to.values[s]);
    if constexpr (kCodeWords == 2) {
      ReadTwo(code + at, to.code);
    } else {
#pragma unroll
      for (int i = 0; i < kCodeWords; i += 4) ReadFour(reinterpret_cast<const uint32_t*>(code + at) + i, to.code + i);
    }
  };

  float sum[4][TILES][4] = {};
  auto multiply = [&](int g, const Loaded& w) {
    uint2 b[GROUP / 4][TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      const int row = first_row + 8 * i + outer;
      const uint2* from = reinterpret_cast<const uint2*>(x + row * k + int64_t(GROUP) * g);
#pragma unroll
      for (int h = 0; h < GROUP / 4; ++h) b[h][i] = row < rows ? __ldg(from + h) : make_uint2(0, 0);
    }
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      // Each stored value of both columns in the half of a word where its entry stands, and which
      // word of its group that is.
      uint32_t half[2][SLOTS], word[2][SLOTS];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = 2 * pair + c;
        constexpr int kEach = 4 / sizeof(Code);  // codes in a word
        const uint32_t packed = w.code[at / kEach] >> (8 * sizeof(Code) * (at % kEach));
#pragma unroll
        for (int s = 0; s < SLOTS; ++s) {
          const uint32_t index = (packed >> (s * kBits)) & ((1 << kBits) - 1);
          const uint32_t value = c ? w.values[s][pair] >> 16 : w.values[s][pair] & 0xffff;
          half[c][s] = value << (16 * (index & 1));
          word[c][s] = index >> 1;
        }
      }
#pragma unroll
      for (int h = 0; h < GROUP / 4; ++h) {
        uint32_t a[4] = {};  // rows of the first and second column, by halves of the depth
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int s = 0; s < SLOTS; ++s) {
              a[2 * part + c] |= word[c][s] == uint32_t(2 * h + part) ? half[c][s] : 0;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i) MultiplyAdd<T>(sum[pair][i], a, b[h][i]);
      }
    }
  };

  Loaded ahead[kAhead];
  const int step = 4 * turns;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load(4 * turn + inner + i * step, ahead[i]);
  for (int g = 4 * turn; g < groups; g += kAhead * step) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int now = g + i * step;
      if (now < groups) {
        multiply(now + inner, ahead[i]);
        load(now + kAhead * step + inner, ahead[i]);
      }
    }
  }

  // Columns 8 outer + 2 pair + c, rows 8 i + 2 inner + r.
  __shared__ float sums[kWarps][8 * TILES][kColumns + 1];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[warp][8 * i + 2 * inner + e % 2][8 * outer + 2 * pair + e / 2] = sum[pair][i][e];
      }
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < 8 * TILES * kColumns; e += 32 * kWarps) {
    const int row = e / kColumns, c = e % kColumns;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][row][c];
    if (first_row + row < rows) {
      y[(int64_t(blockIdx.y) * rows + first_row + row) * columns + blockIdx.x * kColumns + c] = total;
    }
  }
}

template <typename T>
cudaError_t Launch(cudaStream_t stream, const void* x, const void* values, const void* code,
                   float* y, int parts, int rows, int groups, int columns) {
  auto run = [&](auto kernel, int tiles) {
    dim3 grid(columns / kColumns, parts, (rows + 8 * tiles - 1) / (8 * tiles));
    kernel<<<grid, 32 * kWarps, 0, stream>>>(static_cast<const T*>(x),
                                             static_cast<const T*>(values),
                                             static_cast<const Code*>(code), y, rows, groups, columns);
    return cudaGetLastError();
  };
  if (rows <= 8) return run(Product<T, 1>, 1);
  return run(Product<T, 2>, 2);
}

ffi::Error Multiply(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer values,
                    ffi::AnyBuffer code, ffi::Result<ffi::BufferR3<ffi::F32>> y) {
  const int rows = x.dimensions()[0], groups = values.dimensions()[1];
  const int columns = values.dimensions()[2], parts = y->dimensions()[0];
  if (values.dimensions()[0] != SLOTS || x.dimensions()[1] != int64_t(GROUP) * groups ||
      columns % kColumns || groups % 4 || code.element_count() != size_t(groups) * columns ||
      code.size_bytes() != sizeof(Code) * code.element_count()) {
    return ffi::Error::InvalidArgument("sparsejax N:M product: shapes do not fit");
  }
  auto launch = x.element_type() == ffi::F16 ? Launch<__half> : Launch<__nv_bfloat16>;
  if (auto status = launch(stream, x.untyped_data(), values.untyped_data(), code.untyped_data(),
                           y->typed_data(), parts, rows, groups, columns)) {
    return ffi::Error::Internal(cudaGetErrorString(status));
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxNM, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::BufferR3<ffi::F32>>(),
                              {ffi::Traits::kCmdBufferCompatible});
