// Products of one to eight rows behind gates, for calls that XLA makes: several matrices of the same
// input, and a whole gated feed-forward network.
//
// A gate keeps the inputs of a score |x| c above a limit; a limit below 0 keeps all. Only rows of
// weights with a kept input are read. One call has one set of tasks, since a decoder spends as much
// time between small products as in them.

#ifndef SPARSEJAX_GATED_H_
#define SPARSEJAX_GATED_H_

#include <cmath>

#include "products.h"

namespace {

// Memory that is not set.
template <typename T>
inline std::unique_ptr<T[]> Room(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// The inputs that a gate keeps for some token, and their values, 0 for tokens that do not keep them.
struct Kept {
  std::unique_ptr<int64_t[]> rows;
  std::unique_ptr<float[]> values;  // (tokens, count)
  int64_t count;
};

inline bool Keeps(float x, float norm, float limit) {  // without branches: their outcome is random
  return (x != 0) & ((limit < 0) | !(std::fabs(x) * norm <= limit));  // NaN is kept
}

struct Matrix {
  ffi::DataType type;
  const void* w;
  const float *norms, *limit, *scale;  // a null scale for weights that are not scaled
  int64_t k, n;
};

// The inputs of x (tokens, k) that the gate of a matrix keeps.
inline Kept Gate(const float* x, int64_t tokens, const Matrix& m) {
  const float limit = *m.limit, *norms = m.norms;
  const int64_t k = m.k;
  Kept kept{Room<int64_t>(k), Room<float>(tokens * k), 0};
  int64_t* rows = kept.rows.get();
  float* values = kept.values.get();
  int64_t used = 0;
  for (int64_t i = 0; i < k; ++i) {
    bool some = false;
    for (int64_t t = 0; t < tokens; ++t) some |= Keeps(x[t * k + i], norms[i], limit);
    rows[used] = i;
    used += some;
  }
  kept.count = used;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < used; ++j) {
      float value = x[t * k + rows[j]];
      values[t * used + j] = Keeps(value, norms[rows[j]], limit) ? value : 0;
    }
  }
  return kept;
}

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

// y = (kept inputs) W of a matrix, without its scale.
inline Sum Of(const Matrix& m, const Kept& kept, float* y) {
  return {m.type, m.w, kept.rows.get(), kept.count, kept.values.get(), kept.count, m.n, y};
}

inline void ScaleColumns(const Matrix& m, int64_t tokens, float* y) {
  for (int64_t t = 0; m.scale && t < tokens; ++t) {
    for (int64_t i = 0; i < m.n; ++i) y[t * m.n + i] *= m.scale[i];
  }
}

// y_j = (x kept by gate j) W_j for each matrix of k inputs.
inline void Multiply(ffi::ThreadPool pool, const float* x, int64_t tokens,
                     const std::vector<Matrix>& matrices, const std::vector<float*>& ys) {
  std::vector<Kept> kept;
  std::vector<Sum> sums;
  kept.reserve(matrices.size());
  for (size_t j = 0; j < matrices.size(); ++j) {
    kept.push_back(Gate(x, tokens, matrices[j]));
    sums.push_back(Of(matrices[j], kept.back(), ys[j]));
  }
  Contract(pool, tokens, sums);
  for (size_t j = 0; j < matrices.size(); ++j) ScaleColumns(matrices[j], tokens, ys[j]);
}

inline void Silu(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vector v = Some(x + i, count - i);
    Keep(x + i, v / (1 + Exp(-v)), count - i);
  }
}

// to = (silu(x Wgate) * (x Wup)) Wdown behind gates of the inputs of each matrix, all of one type.
//
// With `transposed`, Wup is (neurons, inputs), and is read only for neurons of a score
// |silu(x Wgate)| c above the limit.
template <bool transposed>
void Network(ffi::ThreadPool pool, const float* x, int64_t tokens, const Matrix& gate,
             const Matrix& up, const Matrix& down, float* to) {
  int64_t size = tokens * gate.n;
  std::vector<float> a(size), h(size);
  if constexpr (transposed) {
    Multiply(pool, x, tokens, {gate}, {a.data()});
    Silu(a.data(), size);
    Kept live = Gate(a.data(), tokens, up);
    int64_t count = live.count;
    std::vector<float> u(tokens * count);
    WithType(up.type, up.w, [&](auto w) {
      Produce(pool, x, w, live.rows.get(), count, up.n, u.data(), count, tokens);
    });
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < count; ++j) {
        int64_t i = live.rows[j], at = t * count + j;
        h[t * gate.n + i] = live.values[at] * u[at] * (up.scale ? up.scale[i] : 1.f);
      }
    }
  } else {
    Multiply(pool, x, tokens, {gate, up}, {a.data(), h.data()});
    Silu(a.data(), size);
    for (int64_t i = 0; i < size; ++i) h[i] *= a[i];
  }
  Multiply(pool, h.data(), tokens, {down}, {to});
}

}  // namespace

#endif  // SPARSEJAX_GATED_H_
