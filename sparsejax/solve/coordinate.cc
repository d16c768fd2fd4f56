// The Lasso on the host: paths of one design, called through ctypes.

#include "paths.h"

namespace {

template <class T, class Design>
void path(Design& X, const T* y, const T* m, const T* basis, Index k, const T* norms,
          const double* weights, const double* strengths, Index count, double l2, double tol,
          bool positive, Index max_steps, T* w, Answer* answers) {
  Gram<T> gram(X.p);
  for (Index s = 0; s < count; ++s) {
    T* own = w + s * X.p;
    if (s > 0) std::copy_n(own - X.p, X.p, own);
    L1<T> penalty{{bounds(weights, X.p, strengths[s])}, positive};
    LeastSquares<T, Design, L1<T>> one(X, std::move(penalty), l2, tol, norms, own, gram, y, m, basis, k);
    const Index result = one.run(max_steps);
    answers[s] = answer(one, result);
  }
}

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
