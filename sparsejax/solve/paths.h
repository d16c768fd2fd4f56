// Paths of strengths, each solution from the one before: what the calls through ctypes share. Each
// library is of one dtype, REAL, and one LAYOUT of X, so that a first call compiles no more than it
// needs.

#pragma once
#include "coordinate.h"

enum Layout { COLUMNS, ROWS, SPARSE };

using T = REAL;

template <class T, Layout layout>
auto design_of(Index n, Index p, const T* x, const Index* start, const int32_t* row) {
  if constexpr (layout == COLUMNS) return Columns<T>{n, p, x};
  else if constexpr (layout == ROWS) return Rows<T>(n, p, x);
  else return Sparse<T>{n, p, x, start, row};
}

inline auto design(Index n, Index p, const T* x, const Index* start, const int32_t* row) {
  return design_of<T, LAYOUT>(n, p, x, start, row);
}

// norms (p,): squares of the columns; m (p, k): their products with the basis, subtracted from them.
extern "C" void path_norms(Index n, Index p, const T* x, const Index* start, const int32_t* row,
                           const T* basis, Index k, T* m, T* norms) {
  auto X = design(n, p, x, start, row);
  X.squares(norms);
  Indices all(p);
  std::iota(all.begin(), all.end(), Index(0));
  std::vector<T> products(p);
  for (Index u = 0; u < k; ++u) {
    X.products(basis + u * n, all, products.data());
    for (Index j = 0; j < p; ++j) m[j * k + u] = products[j];
  }
}

struct Answer {
  double gap;
  Index outer, rounds, support, result;
};

template <class Model> Answer answer(const Model& model, Index result) {
  const Index support = model.features(model.nonzero()).size();
  return {model.gap, model.outer, model.rounds, support, result};
}

// The bounds of blocks; one that is not 0 is not rounded to 0.
inline std::vector<double> bounds(const double* weights, Index count, double strength) {
  constexpr double least = std::numeric_limits<double>::min();
  std::vector<double> found(count);
  for (Index b = 0; b < count; ++b)
    found[b] = std::isinf(weights[b]) ? weights[b]
               : weights[b] == 0      ? 0
                                      : std::max(weights[b] * strength, least);
  return found;
}
