// Products of one to eight rows behind gates, for calls that XLA makes: several matrices of the same
// input, and a whole gated feed-forward network.
//
// A gate keeps the inputs of a score |x| c above a limit; a limit below 0 keeps all. Only rows of
// weights with a kept input are read. One call has one set of tasks, since a decoder spends as much
// time between small products as in them.

#ifndef SPARSEJAX_GATED_H_
#define SPARSEJAX_GATED_H_

#include <cmath>

#include "rows.h"

namespace {

constexpr int64_t kColumns = 64;  // a task has a multiple of so many

// The inputs that a gate keeps for some token, and their values, 0 for tokens that do not keep them.
struct Kept {
  std::vector<int64_t> rows;
  std::vector<float> values;  // (tokens, rows)
};

inline bool Keeps(float x, float norm, float limit) {  // without branches: their outcome is random
  return (x != 0) & ((limit < 0) | !(std::fabs(x) * norm <= limit));  // NaN is kept
}

// Of inputs `from` to `to` of x (tokens, stride), whose norms are those of x + shift.
inline Kept Gate(const float* x, int64_t tokens, int64_t stride, int64_t count, const float* norms,
                 float limit, int64_t shift = 0) {
  Kept kept;
  kept.rows.resize(count);
  int64_t used = 0;
  for (int64_t i = 0; i < count; ++i) {
    bool some = false;
    for (int64_t t = 0; t < tokens; ++t) some |= Keeps(x[t * stride + i], norms[i], limit);
    kept.rows[used] = i + shift;
    used += some;
  }
  kept.rows.resize(used);
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
  Groups<U>(w, kept.rows.data(), 0, count, stride,
            [&](int64_t j, int64_t step, auto u, auto at, auto next) {
              Add<T, u()>(values + j, count, step, at, next, y, row, width);
            });
}

struct Matrix {
  ffi::DataType type;
  const void* w;
  const float *norms, *limit, *scale;  // a null scale for weights that are not scaled
  int64_t k, n;
};

template <class A, class B>
inline bool Alike(const A& a, const B& b) {
  auto left = a.dimensions(), right = b.dimensions();
  return std::equal(left.begin(), left.end(), right.begin(), right.end());
}

// The matrix (k, n) of arguments (W, norms, limit, scale) from `at` on; why not, if they do not fit.
// Scales are one for each column, or for each row.
inline const char* Read(const ffi::RemainingArgs& rest, size_t at, int64_t k, int64_t n,
                        Matrix* out, bool by_output = true) {
  auto w = rest.get<AnyBuffer>(at);
  auto norms = rest.get<In>(at + 1), limit = rest.get<In>(at + 2), scale = rest.get<In>(at + 3);
  if (!w || !norms || !limit || !scale || !WithType(*w, [](auto) {})) return kTypes;
  auto shape = w->dimensions();
  int64_t scales = scale->element_count(), wanted = by_output ? n : k;
  if (shape.size() != 2 || shape[0] != k || shape[1] != n || limit->element_count() != 1 ||
      (scales != 0 && scales != wanted) || int64_t(norms->element_count()) != k) {
    return kShapes;
  }
  *out = Matrix{w->element_type(), w->untyped_data(), norms->typed_data(), limit->typed_data(),
                scales ? scale->typed_data() : nullptr, k, n};
  return nullptr;
}

// Wgate, Wup and Wdown from `at` on, all of one type. With `transposed`, Wup is (neurons, inputs).
template <bool transposed>
inline const char* ReadNetwork(const ffi::RemainingArgs& rest, size_t at, int64_t d, Matrix* out) {
  auto gate = rest.get<AnyBuffer>(at);
  if (!gate || gate->dimensions().size() != 2) return kShapes;
  int64_t f = gate->dimensions()[1];
  if (const char* why = Read(rest, at, d, f, out)) return why;
  if (const char* why = Read(rest, at + 4, transposed ? f : d, transposed ? d : f, out + 1,
                             !transposed)) {
    return why;
  }
  if (const char* why = Read(rest, at + 8, f, d, out + 2)) return why;
  return out[1].type == out[0].type && out[2].type == out[0].type ? nullptr : kTypes;
}

inline void Scale(float* y, int64_t count, const float* factors) {
  for (int64_t i = 0; factors != nullptr && i < count; ++i) y[i] *= factors[i];
}

// y_j = (x kept by gate j) W_j for each matrix of k inputs.
inline void Multiply(ffi::ThreadPool pool, const float* x, int64_t tokens, int64_t k,
                     const std::vector<Matrix>& matrices, const std::vector<float*>& ys) {
  struct Panel {
    int64_t matrix, begin, width;
  };
  int64_t count = matrices.size(), total = 0;
  std::vector<Kept> kept(count);
  for (int64_t j = 0; j < count; ++j) {
    kept[j] = Gate(x, tokens, k, k, matrices[j].norms, *matrices[j].limit);
    total += matrices[j].n;
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
}

inline float Silu(float x) { return x / (1 + std::exp(-x)); }

// to = (silu(x Wgate) * (x Wup)) Wdown behind gates of the inputs of each matrix, all of one type.
//
// A task has a range of neurons: their gates and their Wup, then their rows of Wdown, whose sums are
// added at the end, so that tasks do not wait for each other. With `transposed`, Wup is (neurons,
// inputs), and is read only for neurons of a score |silu(x Wgate)| c above the limit.
template <bool transposed>
void Network(ffi::ThreadPool pool, const float* in, int64_t tokens, const Matrix& gate,
             const Matrix& up, const Matrix& down, float* to) {
  int64_t d = gate.k, f = gate.n;
  Kept for_gate = Gate(in, tokens, d, d, gate.norms, *gate.limit), for_up;
  if (!transposed) for_up = Gate(in, tokens, d, d, up.norms, *up.limit);
  int64_t threads = pool.num_threads() < 2 ? 1 : pool.num_threads();
  int64_t lines = (f + kColumns - 1) / kColumns;
  int64_t tasks = threads == 1 ? 1 : std::clamp<int64_t>(lines / 2, 1, 2 * threads);
  std::vector<float> parts(tasks * tokens * d);
  WithType(gate.type, gate.w, [&](auto p) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(p)>>;
    const W* up_weights = static_cast<const W*>(up.w);
    const W* down_weights = static_cast<const W*>(down.w);
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
          Kept live = Gate(a.data(), T, width, width, up.norms + begin, *up.limit, begin);
          int64_t count = live.rows.size();
          std::vector<float> u(T * count);
          constexpr int U = T == 1 ? 8 : T == 2 ? 4 : 2;
          Groups<U>(up_weights, live.rows.data(), 0, count, d,
                    [&](int64_t j, int64_t step, auto together, auto at, auto next) {
                      Dot<T, together()>(in, at, next, d, u.data() + j, count, step);
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
  std::copy_n(parts.data(), tokens * d, to);
  AddParts(parts.data() + tokens * d, tasks - 1, tokens * d, to);
  for (int64_t t = 0; t < tokens; ++t) Scale(to + t * d, d, down.scale);
}

}  // namespace

#endif  // SPARSEJAX_GATED_H_
