// The Lasso on the host: paths of one design, called through ctypes.

#include "coordinate.h"

namespace {

struct Answer {
  double gap;
  Index outer, rounds, support, result;
};

template <class T, class Design>
void path(Design& X, const T* y, const T* m, const T* basis, Index k, const T* norms,
          const double* weights, const double* strengths, Index count, double l2, double tol,
          bool positive, Index max_steps, T* w, Answer* answers) {
  Gram<T> gram(X.p);
  std::vector<double> thresholds(X.p);
  constexpr double least = std::numeric_limits<double>::min();
  for (Index s = 0; s < count; ++s) {
    T* own = w + s * X.p;
    if (s > 0) std::copy_n(own - X.p, X.p, own);
    for (Index j = 0; j < X.p; ++j)
      thresholds[j] = std::isinf(weights[j]) ? weights[j]
                      : weights[j] == 0      ? 0
                                             : std::max(weights[j] * strengths[s], least);
    Lasso<T, Design> one{X, gram, y, m, basis, k, thresholds.data(), l2, tol, positive, norms, own};
    const Index result = one.run(max_steps);
    answers[s] = {one.gap, one.outer, one.rounds, (Index)one.nonzero().size(), result};
  }
}

enum Layout { COLUMNS, ROWS, SPARSE };

template <class T, class Call>
void with_design(int layout, Index n, Index p, const T* x, const Index* start, const int32_t* row,
                 const Call& call) {
  if (layout == COLUMNS) {
    Columns<T> X{n, p, x};
    call(X);
  } else if (layout == ROWS) {
    Rows<T> X(n, p, x);
    call(X);
  } else {
    Sparse<T> X{n, p, x, start, row};
    call(X);
  }
}

}  // namespace

// norms (p,): squares of the columns; m (p, k): their products with the basis, subtracted from them.
#define DEFINE(T, NAME)                                                                          \
  extern "C" void NAME##_norms(int layout, Index n, Index p, const T* x, const Index* start,     \
                               const int32_t* row, const T* basis, Index k, T* m, T* norms) {    \
    with_design(layout, n, p, x, start, row, [&](auto& X) {                                      \
      X.squares(norms);                                                                          \
      Indices all(p);                                                                            \
      std::iota(all.begin(), all.end(), Index(0));                                               \
      std::vector<T> products(p);                                                                \
      for (Index u = 0; u < k; ++u) {                                                            \
        X.products(basis + u * n, all, products.data());                                         \
        for (Index j = 0; j < p; ++j) m[j * k + u] = products[j];                                \
      }                                                                                          \
    });                                                                                          \
  }                                                                                              \
  extern "C" void NAME##_path(int layout, Index n, Index p, const T* x, const Index* start,      \
                              const int32_t* row, const T* y, const T* m, const T* basis,        \
                              Index k, const T* norms, const double* weights,                    \
                              const double* strengths, Index count, double l2, double tol,       \
                              int positive, Index max_steps, T* w, Answer* answers) {            \
    with_design(layout, n, p, x, start, row, [&](auto& X) {                                      \
      path(X, y, m, basis, k, norms, weights, strengths, count, l2, tol, positive != 0,          \
           max_steps, w, answers);                                                               \
    });                                                                                          \
  }

DEFINE(float, lasso_float32)
DEFINE(double, lasso_float64)
