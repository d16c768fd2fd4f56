// Products of one to eight rows with only some units of a matrix on a CPU, as calls that XLA makes.
// Compiled on the user's machine when first used (see _native.py).
//
// The weights of a unit are contiguous, so only those of active units are read: float32, bfloat16 or
// int8, widened to float32 in registers. Two loops: `Add` adds scaled units to a result (R), `Dot`
// multiplies units with inputs (E).

#include "native.h"

namespace {

using AnyBuffer = ffi::AnyBuffer;
using In = ffi::Buffer<ffi::F32>;
using Int = ffi::Buffer<ffi::S32>;
using Out = ffi::ResultBuffer<ffi::F32>;

constexpr int kMost = 8;               // rows of x
constexpr int64_t kBytes = 96 * 1024;  // of weights that a task reads, at least
constexpr int64_t kWide = 16 * 1024;   // columns from which tasks are panels of them

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
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// Fetches the lines of the rows that come next, at column c: they are far from these.
template <int U, typename W>
inline void Fetch(const W* const* next, int64_t c) {
  if (next == nullptr || c * int64_t(sizeof(W)) % 64) return;
  for (int r = 0; r < U; ++r) __builtin_prefetch(next[r] + c);
}

// y[t, 0:width] += sum_r h[t * stride + r] w[r][0:width], for U rows of weights and T of y.
template <int T, int U, typename W>
inline void Add(const float* h, int64_t stride, const W* const* w, const W* const* next, float* y,
                int64_t row, int64_t width) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    Fetch<U>(next, c);
    Vector rows[U];
    for (int r = 0; r < U; ++r) rows[r] = Wide(w[r] + c);
    for (int t = 0; t < T; ++t) {
      Vector sum = Load(y + t * row + c);
      for (int r = 0; r < U; ++r) sum += h[t * stride + r] * rows[r];
      Store(y + t * row + c, sum);
    }
  }
  for (; c < width; ++c) {
    for (int t = 0; t < T; ++t) {
      for (int r = 0; r < U; ++r) y[t * row + c] += h[t * stride + r] * One(w[r] + c);
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
constexpr int Together(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }

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

// f(pointer) with the weights as their type.
template <typename F>
inline bool WithType(const AnyBuffer& w, const F& f) {
  switch (w.element_type()) {
    case ffi::F32: f(reinterpret_cast<const float*>(w.untyped_data())); return true;
    case ffi::BF16: f(reinterpret_cast<const Bfloat*>(w.untyped_data())); return true;
    case ffi::S8: f(reinterpret_cast<const int8_t*>(w.untyped_data())); return true;
    default: return false;
  }
}

// The tasks for so many bytes of weights.
inline int64_t Tasks(ffi::ThreadPool pool, int64_t bytes) {
  if (pool.num_threads() < 2) return 1;
  return std::clamp<int64_t>(bytes / kBytes, 1, 4 * pool.num_threads());
}

// f(first, constant U, pointers, pointers to the next rows or null) for rows begin to end, U at once.
template <int U, typename W, typename F>
inline void Groups(const W* w, const int64_t* rows, int64_t begin, int64_t end, int64_t stride,
                   const F& f) {
  const W *at[U], *next[U], **none = nullptr;
  int64_t j = begin;
  for (; j + U <= end; j += U) {
    bool more = j + 2 * U <= end;
    for (int r = 0; r < U; ++r) at[r] = w + rows[j + r] * stride;
    for (int r = 0; more && r < U; ++r) next[r] = w + rows[j + U + r] * stride;
    f(j, std::integral_constant<int, U>(), at, more ? next : none);
  }
  for (; j < end; ++j) {
    at[0] = w + rows[j] * stride;
    f(j, std::integral_constant<int, 1>(), at, none);
  }
}

// y[T, d] = sum_j h[t, j] w[rows[j]], for `count` rows; h is (T, stride).
//
// Tasks are ranges of rows, whose sums are added at the end, since few columns of a row are slower to
// read than all; they are panels of columns where the sums would be large.
template <typename W>
void Contract(ffi::ThreadPool pool, const float* h, int64_t stride, const W* w, const int64_t* rows,
              int64_t count, int64_t d, float* y, int64_t tokens) {
  int64_t lines = (d + 63) / 64, tasks = Tasks(pool, count * d * sizeof(W));
  bool panels = d > kWide;
  tasks = std::clamp<int64_t>(panels ? lines / 8 : count / 16, 1, tasks);
  std::vector<float> sums(panels ? 0 : (tasks - 1) * tokens * d);
  float* parts = sums.data();
  WithRows(tokens, [&](auto constant) {
    constexpr int T = constant(), U = Together(T);
    Parallel(pool, tasks, [=](int64_t task) {
      int64_t first = panels ? 0 : count * task / tasks;
      int64_t last = panels ? count : count * (task + 1) / tasks;
      int64_t begin = panels ? lines * task / tasks * 64 : 0;
      int64_t width = (panels ? std::min(lines * (task + 1) / tasks * 64, d) : d) - begin;
      float* to = panels || !task ? y + begin : parts + (task - 1) * T * d;
      for (int t = 0; t < T; ++t) std::fill_n(to + t * d, width, 0.f);
      Groups<U>(w + begin, rows, first, last, d, [&](int64_t j, auto u, auto at, auto next) {
        Add<T, u()>(h + j, stride, at, next, to, d, width);
      });
    });
  });
  for (size_t i = 0; i < sums.size(); ++i) y[i % (tokens * d)] += sums[i];
}

// u[t, j] = x[t] . w[rows[j]] for `count` rows; u is (T, stride).
template <typename W>
void Produce(ffi::ThreadPool pool, const float* x, const W* w, const int64_t* rows, int64_t count,
             int64_t depth, float* u, int64_t stride, int64_t tokens) {
  int64_t tasks =
      std::clamp<int64_t>(count / 16, 1, Tasks(pool, count * depth * sizeof(W)));
  WithRows(tokens, [&](auto constant) {
    constexpr int T = constant(), U = T == 1 ? 8 : T == 2 ? 4 : 2;
    Parallel(pool, tasks, [=](int64_t task) {
      Groups<U>(w, rows, count * task / tasks, count * (task + 1) / tasks, depth,
                [&](int64_t j, auto together, auto at, auto next) {
                  Dot<T, together()>(x, at, next, depth, u + j, stride, 1);
                });
    });
  });
}

ffi::Error Invalid(const char* what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                    std::string("implementation=\"native\": ") + what);
}

constexpr char kShapes[] = "the shapes of the arrays do not fit each other.";
constexpr char kTypes[] = "weights must be float32, bfloat16 or int8.";
constexpr char kSet[] = "the set refers to units that do not exist; make it with a selector.";

// Whether the weights are (n, size, d), or (n, d) for units of one.
template <typename Shape>
bool Units(const Shape& weights, int64_t size) {
  return weights.size() == 3 ? weights[1] == size : weights.size() == 2 && size == 1;
}

// Lists of units, `size` rows of W each: one list for all tokens, or one for each of them.
struct Lists {
  Int index, count;
  int64_t slots, units, size;
  bool each = index.dimensions().size() == 2;
  std::vector<int64_t> rows = {};  // of the list read last

  int64_t together() const { return each ? 1 : kMost; }
  bool Fit(int64_t tokens) const {
    int64_t lists = each ? tokens : 1;
    return int64_t(index.element_count()) == lists * slots && int64_t(count.element_count()) == lists;
  }
  // Reads the rows for a token; false if a unit does not exist.
  bool Read(int64_t t) {
    if (t && !each) return true;
    const int32_t* list = index.typed_data() + (each ? t * slots : 0);
    int32_t length = count.typed_data()[each ? t : 0];
    if (length < 0 || length > slots) return false;
    rows.clear();
    for (int32_t j = 0; j < length; ++j) {
      if (list[j] < 0 || list[j] >= units) return false;
      for (int64_t i = 0; i < size; ++i) rows.push_back(list[j] * size + i);
    }
    return true;
  }
};

// y = sum_j h_j w[index_j], one list for all rows of h or one for each.
ffi::Error ActiveReduce(ffi::ThreadPool pool, In h, AnyBuffer w, Int index, Int count, Out y) {
  auto shape = h.dimensions(), weights = w.dimensions();
  if (shape.size() != 3 || !Units(weights, shape[2])) return Invalid(kShapes);
  int64_t tokens = shape[0], slots = shape[1], size = shape[2];
  int64_t units = weights[0], d = weights[weights.size() - 1];
  Lists lists{index, count, slots, units, size};
  if (y->dimensions().size() != 2 || y->dimensions()[0] != tokens || y->dimensions()[1] != d ||
      !lists.Fit(tokens)) {
    return Invalid(kShapes);
  }
  const std::vector<int64_t>& rows = lists.rows;
  for (int64_t t = 0; t < tokens; t += lists.together()) {
    if (!lists.Read(t)) return Invalid(kSet);
    bool known = WithType(w, [&](auto p) {
      Contract(pool, h.typed_data() + t * slots * size, slots * size, p, rows.data(), rows.size(), d,
               y->typed_data() + t * d, std::min(lists.together(), tokens - t));
    });
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

// u_j = x w[index_j]^T, zero from `count` on.
ffi::Error ActiveExpand(ffi::ThreadPool pool, In x, AnyBuffer w, Int index, Int count, Out u) {
  auto shape = u->dimensions(), weights = w.dimensions();
  if (shape.size() != 3 || !Units(weights, shape[2])) return Invalid(kShapes);
  int64_t tokens = shape[0], slots = shape[1], size = shape[2];
  int64_t units = weights[0], d = weights[weights.size() - 1];
  Lists lists{index, count, slots, units, size};
  if (x.dimensions().size() != 2 || x.dimensions()[0] != tokens || x.dimensions()[1] != d ||
      !lists.Fit(tokens)) {
    return Invalid(kShapes);
  }
  const std::vector<int64_t>& rows = lists.rows;
  for (int64_t t = 0; t < tokens; t += lists.together()) {
    if (!lists.Read(t)) return Invalid(kSet);
    int64_t some = std::min(lists.together(), tokens - t), used = rows.size();
    float* to = u->typed_data() + t * slots * size;
    for (int64_t i = 0; i < some; ++i) {
      std::fill(to + i * slots * size + used, to + (i + 1) * slots * size, 0.f);
    }
    bool known = WithType(w, [&](auto p) {
      if (used) {
        Produce(pool, x.typed_data() + t * d, p, rows.data(), used, d, to, slots * size, some);
      }
    });
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

// y = x W, reading only the rows of W for which some row of x is not zero.
ffi::Error SkippingProduct(ffi::ThreadPool pool, In x, AnyBuffer w, Out y) {
  auto shape = x.dimensions(), weights = w.dimensions();
  if (shape.size() != 2 || weights.size() != 2 || shape[1] != weights[0]) return Invalid(kShapes);
  int64_t tokens = shape[0], k = shape[1], d = weights[1];
  if (y->dimensions().size() != 2 || y->dimensions()[0] != tokens || y->dimensions()[1] != d) {
    return Invalid(kShapes);
  }
  std::vector<int64_t> rows;
  std::vector<float> h;
  for (int64_t t = 0; t < tokens; t += kMost) {
    int64_t some = std::min<int64_t>(kMost, tokens - t);
    const float* from = x.typed_data() + t * k;
    rows.clear();
    for (int64_t i = 0; i < k; ++i) {
      bool used = false;
      for (int64_t r = 0; r < some; ++r) used |= from[r * k + i] != 0;
      if (used) rows.push_back(i);
    }
    h.resize(some * rows.size());
    for (int64_t r = 0; r < some; ++r) {
      for (size_t j = 0; j < rows.size(); ++j) h[r * rows.size() + j] = from[r * k + rows[j]];
    }
    bool known = WithType(w, [&](auto p) {
      Contract(pool, h.data(), rows.size(), p, rows.data(), rows.size(), d,
               y->typed_data() + t * d, some);
    });
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

auto Call() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().Arg<AnyBuffer>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxActiveReduce, ActiveReduce,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxActiveExpand, ActiveExpand,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxSkippingProduct, SkippingProduct, Call().Ret<In>());
