// Loops over rows of weights, shared by the products of few rows: `Add` adds scaled rows to a result
// (R), `Dot` multiplies rows with inputs (E). The weights of a row are contiguous: float32, bfloat16
// or int8, widened to float32 in registers.

#ifndef SPARSEJAX_ROWS_H_
#define SPARSEJAX_ROWS_H_

#include <utility>

#include "native.h"

namespace {

using AnyBuffer = ffi::AnyBuffer;
using In = ffi::Buffer<ffi::F32>;
using Out = ffi::ResultBuffer<ffi::F32>;

constexpr int kMost = 8;               // rows of x
constexpr int64_t kBytes = 96 * 1024;  // of weights that a task reads, at least

struct Bfloat {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

inline Vector Wide(const float* p) { return Load(p); }

inline Vector Wide(const Bfloat* p) {
  Halves half;
  std::memcpy(&half, p, sizeof half);
  Words word = __builtin_convertvector(half, Words) << 16;
  Vector v;
  std::memcpy(&v, &word, sizeof v);
  return v;
}

inline Vector Wide(const int8_t* p) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  // In steps: GCC converts bytes to floats at once one by one.
  return __builtin_convertvector(
      __builtin_convertvector(__builtin_convertvector(bytes, Shorts), Lanes), Vector);
}

inline float One(const float* p) { return *p; }
inline float One(const int8_t* p) { return *p; }
inline float One(const Bfloat* p) {
  uint32_t word = uint32_t(p->bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

inline float Total(Vector v) {
  float lanes[kLanes];
  Store(lanes, v);
  for (int half = kLanes / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Fetches the lines of the rows that come next, at column c: they are far from these.
template <int U, typename W>
inline void Fetch(const W* const* next, int64_t c) {
  if (next == nullptr || c * int64_t(sizeof(W)) % 64) return;
  for (int r = 0; r < U; ++r) __builtin_prefetch(next[r] + c);
}

// y[0:width] += sum_r h[r * step] w[r][0:width] in whole vectors; returns how many columns that are.
template <typename W, size_t... R>
inline int64_t AddOne(const float* h, int64_t step, const W* const* w, const W* const* next,
                      float* y, int64_t width, std::index_sequence<R...>) {
  // Copies: the compiler must assume that y may overlap what is not local.
  const W* const at[] = {w[R]...};
  const float factor[] = {h[R * step]...};
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    Fetch<sizeof...(R)>(next, c);
    // Two sums, so that each addition does not wait for the one before.
    Vector a = Load(y + c), b = {};
    (((R % 2 ? b : a) += factor[R] * Wide(at[R] + c)), ...);
    Store(y + c, a + b);
  }
  return c;
}

// y[t, 0:width] += sum_r h[t * stride + r * step] w[r][0:width], for U rows of weights and T of y.
template <int T, int U, typename W>
inline void Add(const float* h, int64_t stride, int64_t step, const W* const* w,
                const W* const* next, float* y, int64_t row, int64_t width) {
  int64_t c = 0;
  if constexpr (T == 1) c = AddOne(h, step, w, next, y, width, std::make_index_sequence<U>());
  for (; c + kLanes <= width; c += kLanes) {
    Fetch<U>(next, c);
    Vector rows[U];
    for (int r = 0; r < U; ++r) rows[r] = Wide(w[r] + c);
    for (int t = 0; t < T; ++t) {
      Vector sum = Load(y + t * row + c);
      for (int r = 0; r < U; ++r) sum += h[t * stride + r * step] * rows[r];
      Store(y + t * row + c, sum);
    }
  }
  for (; c < width; ++c) {
    for (int t = 0; t < T; ++t) {
      for (int r = 0; r < U; ++r) y[t * row + c] += h[t * stride + r * step] * One(w[r] + c);
    }
  }
}

// u[t * row + r * step] = x[t] . w[r], for U rows of weights and T of x.
template <int T, int U, typename W>
inline void Dot(const float* x, const W* const* w, const W* const* next, int64_t depth, float* u,
                int64_t row, int64_t step) {
  Vector sums[T][U] = {};
  int64_t c = 0;
  for (; c + kLanes <= depth; c += kLanes) {
    Fetch<U>(next, c);
    Vector rows[U];
    for (int r = 0; r < U; ++r) rows[r] = Wide(w[r] + c);
    for (int t = 0; t < T; ++t) {
      Vector in = Load(x + t * depth + c);
      for (int r = 0; r < U; ++r) sums[t][r] += in * rows[r];
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < U; ++r) {
      float sum = Total(sums[t][r]);
      for (int64_t i = c; i < depth; ++i) sum += x[t * depth + i] * One(w[r] + i);
      u[t * row + r * step] = sum;
    }
  }
}

// Rows of weights that are read together, so that 32 registers hold what is used.
constexpr int Together(int rows) { return rows == 1 ? 16 : rows == 2 ? 8 : rows <= 4 ? 4 : 2; }

// f(T) with the number of rows as a constant.
template <int T = kMost, typename F>
inline void WithRows(int64_t rows, const F& f) {
  if constexpr (T == 1) {
    f(std::integral_constant<int, 1>());
  } else if (rows == T) {
    f(std::integral_constant<int, T>());
  } else {
    WithRows<T - 1>(rows, f);
  }
}

// f(pointer) with the weights as their type; false if it is not supported.
template <typename F>
inline bool WithType(ffi::DataType type, const void* w, const F& f) {
  switch (type) {
    case ffi::F32: f(static_cast<const float*>(w)); return true;
    case ffi::BF16: f(static_cast<const Bfloat*>(w)); return true;
    case ffi::S8: f(static_cast<const int8_t*>(w)); return true;
    default: return false;
  }
}

template <typename F>
inline bool WithType(const AnyBuffer& w, const F& f) {
  return WithType(w.element_type(), w.untyped_data(), f);
}

// The tasks for so many bytes of weights.
inline int64_t Tasks(ffi::ThreadPool pool, int64_t bytes) {
  if (pool.num_threads() < 2) return 1;
  return std::clamp<int64_t>(bytes / kBytes, 1, 4 * pool.num_threads());
}

// f(j, step, constant U, pointers, pointers to the next rows or null) for rows begin to end, of which
// j, j + step, ... are read at once.
//
// Each of the U pointers goes through a range of rows, so that the processor prefetches from one row
// to the next where they are neighbours; pointers to neighbours would share its pages.
template <int U, typename W, typename F>
inline void Groups(const W* w, const int64_t* rows, int64_t begin, int64_t end, int64_t stride,
                   const F& f) {
  const W *at[U], *next[U], **none = nullptr;
  int64_t step = (end - begin) / U, last = begin + step;
  for (int64_t j = begin; j < last; ++j) {
    bool more = j + 1 < last;
    for (int r = 0; r < U; ++r) at[r] = w + rows[j + r * step] * stride;
    for (int r = 0; more && r < U; ++r) next[r] = w + rows[j + 1 + r * step] * stride;
    f(j, step, std::integral_constant<int, U>(), at, more ? next : none);
  }
  if constexpr (U > 1) Groups<U / 2>(w, rows, begin + U * step, end, stride, f);
}

ffi::Error Invalid(const char* what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                    std::string("implementation=\"native\": ") + what);
}

constexpr char kShapes[] = "the shapes of the arrays do not fit each other.";
constexpr char kTypes[] = "weights must be float32, bfloat16 or int8.";

}  // namespace

#endif  // SPARSEJAX_ROWS_H_
