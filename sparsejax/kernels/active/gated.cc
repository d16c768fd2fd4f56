// Products of one to eight rows behind gates on a CPU, as calls that XLA makes: several matrices of
// the same input, and a whole gated feed-forward network. Compiled on the user's machine when first
// used (see _native.py).
//
// A gate keeps the inputs of a score |x| c above a limit; a limit below 0 keeps all. Only rows of
// weights with a kept input are read. One call has one set of tasks, since a decoder spends as much
// time between small products as in them.

#include <cmath>

#include "rows.h"

namespace {

constexpr int64_t kColumns = 64;  // a task has a multiple of so many

// The inputs that a gate keeps for some token, and their values, 0 for tokens that do not keep them.
struct Kept {
  std::vector<int64_t> rows;
  std::vector<float> values;  // (tokens, rows)
};

inline bool Keeps(float x, float norm, float limit) {
  return x != 0 && (limit < 0 || std::fabs(x) * norm > limit);
}

// Of inputs `from` to `to` of x (tokens, stride), whose norms are those of x + shift.
inline Kept Gate(const float* x, int64_t tokens, int64_t stride, int64_t count, const float* norms,
                 float limit, int64_t shift = 0) {
  Kept kept;
  for (int64_t i = 0; i < count; ++i) {
    bool used = false;
    for (int64_t t = 0; t < tokens; ++t) used |= Keeps(x[t * stride + i], norms[i], limit);
    if (used) kept.rows.push_back(i + shift);
  }
  kept.values.resize(tokens * kept.rows.size());
  for (int64_t t = 0; t < tokens; ++t) {
    float* to = kept.values.data() + t * kept.rows.size();
    for (int64_t row : kept.rows) {
      int64_t i = row - shift;
      float value = x[t * stride + i];
      *to++ = Keeps(value, norms[i], limit) ? value : 0;
    }
  }
  return kept;
}

// y[t * row + c] = sum of the kept inputs times columns c of their rows, c < width.
template <int T, typename W>
void Columns(const Kept& kept, const W* w, int64_t stride, float* y, int64_t row, int64_t width) {
  constexpr int U = Together(T);
  for (int t = 0; t < T; ++t) std::fill_n(y + t * row, width, 0.f);
  int64_t count = kept.rows.size();
  const float* values = kept.values.data();
  Groups<U>(w, kept.rows.data(), 0, count, stride, [&](int64_t j, auto u, auto at, auto next) {
    Add<T, u()>(values + j, count, at, next, y, row, width);
  });
}

struct Matrix {
  ffi::DataType type;
  const void* w;
  const float *norms, *limit, *scale;  // a null scale for weights that are not scaled
  int64_t k, n;
};

// Whether a matrix with its gate and its scales has the shapes that it needs.
bool Fits(const AnyBuffer& w, const In& norms, const In& limit, const In& scale, int64_t k,
          int64_t n, Matrix* out) {
  auto shape = w.dimensions();
  bool fits = shape.size() == 2 && shape[0] == k && shape[1] == n &&
              int64_t(norms.element_count()) == k && limit.element_count() == 1 &&
              (scale.element_count() == 0 || int64_t(scale.element_count()) == n);
  const float* factors = scale.element_count() ? scale.typed_data() : nullptr;
  *out = Matrix{w.element_type(), w.untyped_data(), norms.typed_data(), limit.typed_data(),
                factors, k, n};
  return fits;
}

inline void Scale(float* y, int64_t count, const float* factors) {
  for (int64_t i = 0; factors != nullptr && i < count; ++i) y[i] *= factors[i];
}

// y_j = (x kept by gate j) W_j for every (W, norms, limit, scale) of the arguments.
ffi::Error GatedProducts(ffi::ThreadPool pool, In x, ffi::RemainingArgs rest,
                         ffi::RemainingRets results) {
  auto shape = x.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMost) return Invalid(kShapes);
  int64_t tokens = shape[0], k = shape[1], count = results.size();
  if (int64_t(rest.size()) != 4 * count) return Invalid(kShapes);
  struct Panel {
    int64_t matrix, begin, width;
  };
  std::vector<Matrix> matrices(count);
  std::vector<float*> ys(count);
  std::vector<Kept> kept(count);
  int64_t total = 0;
  for (int64_t j = 0; j < count; ++j) {
    auto w = rest.get<AnyBuffer>(4 * j);
    auto norms = rest.get<In>(4 * j + 1), limit = rest.get<In>(4 * j + 2);
    auto scale = rest.get<In>(4 * j + 3);
    auto y = results.get<In>(j);
    if (!w || !norms || !limit || !scale || !y) return Invalid(kTypes);
    auto out = (*y)->dimensions();
    if (out.size() != 2 || out[0] != tokens) return Invalid(kShapes);
    if (!Fits(*w, *norms, *limit, *scale, k, out[1], &matrices[j])) return Invalid(kShapes);
    if (!WithType(*w, [](auto) {})) return Invalid(kTypes);
    ys[j] = (*y)->typed_data();
    kept[j] = Gate(x.typed_data(), tokens, k, k, matrices[j].norms, *matrices[j].limit);
    total += out[1];
  }
  int64_t threads = pool.num_threads() < 2 ? 1 : pool.num_threads();
  int64_t wide = threads == 1 ? total : total / (2 * threads);
  wide = std::max<int64_t>((wide + kColumns - 1) / kColumns * kColumns, 2 * kColumns);
  std::vector<Panel> panels;
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t c = 0; c < matrices[j].n; c += wide) {
      panels.push_back({j, c, std::min(wide, matrices[j].n - c)});
    }
  }
  Parallel(pool, panels.size(), [&](int64_t task) {
    auto [j, begin, width] = panels[task];
    const Matrix& m = matrices[j];
    float* y = ys[j] + begin;
    int64_t from = begin, some = width;
    WithRows(tokens, [&](auto rows) {
      WithType(m.type, m.w, [&](auto w) { Columns<rows()>(kept[j], w + from, m.n, y, m.n, some); });
    });
    for (int64_t t = 0; m.scale && t < tokens; ++t) Scale(y + t * m.n, width, m.scale + begin);
  });
  return ffi::Error::Success();
}

inline float Silu(float x) { return x / (1 + std::exp(-x)); }

// y = (silu(x Wgate) * (x Wup)) Wdown behind gates of the inputs of each matrix.
//
// A task has a range of neurons: their gates and their Wup, then their rows of Wdown, whose sums are
// added at the end, so that tasks do not wait for each other. With `transposed`, Wup is (neurons,
// inputs), and is read only for neurons of |silu(x Wgate)| above the limit.
template <bool transposed>
ffi::Error GatedMLP(ffi::ThreadPool pool, In x, AnyBuffer wg, In ng, In lg, In sg, AnyBuffer wu,
                    In nu, In lu, In su, AnyBuffer wd, In nd, In ld, In sd, Out y) {
  auto shape = x.dimensions(), hidden = wg.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMost || hidden.size() != 2) {
    return Invalid(kShapes);
  }
  int64_t tokens = shape[0], d = shape[1], f = hidden[1];
  Matrix gate{}, up{}, down{};
  auto ups = wu.dimensions();
  bool fits = Fits(wg, ng, lg, sg, d, f, &gate) && Fits(wd, nd, ld, sd, f, d, &down) &&
              y->dimensions().size() == 2 && y->dimensions()[0] == tokens &&
              y->dimensions()[1] == d && wu.element_type() == wg.element_type() &&
              wd.element_type() == wg.element_type();
  if (transposed) {
    fits = fits && ups.size() == 2 && ups[0] == f && ups[1] == d && lu.element_count() == 1 &&
           (su.element_count() == 0 || int64_t(su.element_count()) == f);
    const float* factors = su.element_count() ? su.typed_data() : nullptr;
    up = Matrix{wu.element_type(), wu.untyped_data(), nullptr, lu.typed_data(), factors, f, d};
  } else {
    fits = fits && Fits(wu, nu, lu, su, d, f, &up);
  }
  if (!fits) return Invalid(kShapes);
  const float* in = x.typed_data();
  Kept for_gate = Gate(in, tokens, d, d, gate.norms, *gate.limit), for_up;
  if (!transposed) for_up = Gate(in, tokens, d, d, up.norms, *up.limit);
  int64_t threads = pool.num_threads() < 2 ? 1 : pool.num_threads();
  int64_t lines = (f + kColumns - 1) / kColumns;
  int64_t tasks = threads == 1 ? 1 : std::clamp<int64_t>(lines / 2, 1, 2 * threads);
  std::vector<float> parts(tasks * tokens * d);
  bool known = WithType(wg, [&](auto p) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(p)>>;
    const W* up_weights = reinterpret_cast<const W*>(wu.untyped_data());
    const W* down_weights = reinterpret_cast<const W*>(wd.untyped_data());
    const W* gate_weights = p;
    WithRows(tokens, [&](auto constant) {
      constexpr int T = constant();
      Parallel(pool, tasks, [&](int64_t task) {
        int64_t begin = std::min(lines * task / tasks * kColumns, f);
        int64_t width = std::min(lines * (task + 1) / tasks * kColumns, f) - begin;
        std::vector<float> a(T * width), h(T * width);
        Columns<T>(for_gate, gate_weights + begin, f, a.data(), width, width);
        for (int t = 0; t < T; ++t) {
          float* row = a.data() + t * width;
          if (gate.scale) Scale(row, width, gate.scale + begin);
          for (int64_t i = 0; i < width; ++i) row[i] = Silu(row[i]);
        }
        if constexpr (transposed) {
          std::vector<float> ones(width, 1.f);
          Kept live = Gate(a.data(), T, width, width, ones.data(), *up.limit, begin);
          int64_t count = live.rows.size();
          std::vector<float> u(T * count);
          constexpr int U = T == 1 ? 8 : T == 2 ? 4 : 2;
          Groups<U>(up_weights, live.rows.data(), 0, count, d,
                    [&](int64_t j, auto together, auto at, auto next) {
                      Dot<T, together()>(in, at, next, d, u.data() + j, count, 1);
                    });
          for (int64_t j = 0; j < count; ++j) {
            int64_t i = live.rows[j];
            for (int t = 0; t < T; ++t) {
              float factor = up.scale ? up.scale[i] : 1.f;
              h[t * width + i - begin] = live.values[t * count + j] * u[t * count + j] * factor;
            }
          }
        } else {
          Columns<T>(for_up, up_weights + begin, f, h.data(), width, width);
          for (int t = 0; t < T; ++t) {
            float* row = h.data() + t * width;
            if (up.scale) Scale(row, width, up.scale + begin);
            for (int64_t i = 0; i < width; ++i) row[i] *= a[t * width + i];
          }
        }
        Kept used = Gate(h.data(), T, width, width, down.norms + begin, *down.limit, begin);
        Columns<T>(used, down_weights, d, parts.data() + task * T * d, d, d);
      });
    });
  });
  if (!known) return Invalid(kTypes);
  float* to = y->typed_data();
  std::copy_n(parts.data(), tokens * d, to);
  for (int64_t i = tokens * d; i < int64_t(parts.size()); ++i) to[i % (tokens * d)] += parts[i];
  for (int64_t t = 0; t < tokens; ++t) Scale(to + t * d, d, down.scale);
  return ffi::Error::Success();
}

auto Matrices() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<In>()
      .Arg<AnyBuffer>().Arg<In>().Arg<In>().Arg<In>()
      .Arg<AnyBuffer>().Arg<In>().Arg<In>().Arg<In>()
      .Arg<AnyBuffer>().Arg<In>().Arg<In>().Arg<In>()
      .Ret<In>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SparsejaxGatedProducts, GatedProducts,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxGatedMLP, GatedMLP<false>, Matrices());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxGatedNeurons, GatedMLP<true>, Matrices());
