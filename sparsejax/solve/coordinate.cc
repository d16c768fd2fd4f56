// The Lasso on the host: a path of one design, called through ctypes.

#include "paths.h"

extern "C" void lasso_path(Index n, Index p, const T* x, const Index* start, const int32_t* row,
                           const T* y, const T* m, const T* basis, Index k, const T* norms,
                           const double* weights, const double* strengths, Index count, double l2,
                           double tol, int positive, Index max_steps, T* w, Answer* answers) {
  auto X = design(n, p, x, start, row);
  Gram<T> gram(p);
  for (Index s = 0; s < count; ++s) {
    T* own = w + s * p;
    if (s > 0) std::copy_n(own - p, p, own);
    L1<T> penalty{{bounds(weights, p, strengths[s])}, positive != 0};
    LeastSquares<T, decltype(X), L1<T>> one(X, std::move(penalty), l2, tol, norms, own, gram, y, m,
                                            basis, k);
    const Index result = one.run(max_steps);
    answers[s] = answer(one, result);
  }
}
