// Regression on the host beyond the Lasso: other losses, groups, several targets, other penalties.

#include "curved.h"
#include "paths.h"

namespace {

using T = double;
enum Kind { SQUARED, LOGISTIC, HUBER, POISSON };
enum Shape { L1_NORM, GROUPS, MCP, SCAD, L_HALF };

// What a call is given, in the layout of `_regression_native.Input`.
struct Input {
  Index layout, n, p;
  const T* x;
  const Index* start;
  const int32_t* row;
  const T *y, *samples;            // (n,), (n,); for q targets (q, n)
  Index tasks, loss, shape, blocks;
  const Index *block_start, *member;
  const double *weights, *strengths;
  Index count, k;
  const T *m, *basis, *norms;
  double l2, tol, delta, gamma;
  Index positive, intercept, max_steps;
  T *w, *offset;
  Answer* answers;
};

template <class Penalty> Penalty penalty_of(const Input& in, double strength);
template <> L1<T> penalty_of(const Input& in, double strength) {
  return {{bounds(in.weights, in.blocks, strength)}, in.positive != 0};
}
template <> Concave<T> penalty_of(const Input& in, double strength) {
  return {{bounds(in.weights, in.blocks, strength)}, in.gamma, in.shape == SCAD};
}
template <> SquareRoot<T> penalty_of(const Input& in, double strength) {
  std::vector<double> curvatures(in.p);
  for (Index j = 0; j < in.p; ++j) curvatures[j] = in.norms[j] / in.n + in.l2;
  return {bounds(in.weights, in.blocks, strength), std::move(curvatures)};
}
template <> Groups<T> penalty_of(const Input& in, double strength) {
  const Index* start = in.block_start;
  return {bounds(in.weights, in.blocks, strength), Indices(start, start + in.blocks + 1),
          Indices(in.member, in.member + start[in.blocks])};
}

template <class Penalty, class Solve> void path(const Input& in, Index p, const Solve& solve) {
  for (Index s = 0; s < in.count; ++s) {
    T* own = in.w + s * p;
    if (s > 0) std::copy_n(own - p, p, own), in.offset[s] = in.offset[s - 1];
    in.answers[s] = solve(penalty_of<Penalty>(in, in.strengths[s]), own, in.offset[s]);
  }
}

template <class Penalty, class Design> void squares(const Input& in, Design& X) {
  Gram<T> gram(X.p);
  path<Penalty>(in, X.p, [&](Penalty penalty, T* w, T&) {
    LeastSquares<T, Design, Penalty> one(X, std::move(penalty), in.l2, in.tol, in.norms, w, gram, in.y,
                                         in.m, in.basis, in.k);
    const Index result = one.run(in.max_steps);
    return answer(one, result);
  });
}

template <class Penalty, class Design>
void curved(const Input& in, Design& X, const Loss& loss) {
  path<Penalty>(in, X.p, [&](Penalty penalty, T* w, T& offset) {
    Curved<T, Design, Penalty> one(X, std::move(penalty), in.l2, in.tol, in.norms, w, loss, in.y,
                                   in.samples, in.intercept != 0, offset);
    const Index result = one.run(in.max_steps);
    one.finish();
    offset = one.offset();
    return answer(one, result);
  });
}

template <class Penalty, class Design> void with_loss(const Input& in, Design& X) {
  if (in.loss == LOGISTIC) return curved<Penalty>(in, X, Logistic());
  if (in.loss == HUBER) return curved<Penalty>(in, X, Huber(in.delta));
  if (in.loss == POISSON) return curved<Penalty>(in, X, Poisson());
  if constexpr (std::is_same<Penalty, Groups<T>>::value) {
    if (in.tasks > 1) {
      Tasks<Design, T> repeated{X, in.tasks};
      return squares<Penalty>(in, repeated);
    }
  }
  squares<Penalty>(in, X);
}

template <class Design> void with_penalty(const Input& in, Design& X) {
  if (in.shape == L1_NORM) return with_loss<L1<T>>(in, X);
  if (in.shape == GROUPS) return with_loss<Groups<T>>(in, X);
  if (in.shape == L_HALF) return squares<SquareRoot<T>>(in, X);
  with_loss<Concave<T>>(in, X);
}

}  // namespace

extern "C" void regression_path(const Input* in) {
  if (in->layout == SPARSE) {
    Sparse<T> X{in->n, in->p, in->x, in->start, in->row};
    return with_penalty(*in, X);
  }
  Columns<T> X{in->n, in->p, in->x};
  with_penalty(*in, X);
}
