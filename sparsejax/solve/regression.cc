// Regression on the host beyond the Lasso: other losses, groups, several targets, other penalties.
// Each library is of one LOSS, one SHAPE of the penalty, and one target or several (REPEATED).

#include "curved.h"
#include "paths.h"

namespace {

enum Kind { SQUARED, LOGISTIC, HUBER, POISSON };
enum Shape { L1_NORM, GROUPS, MCP, SCAD, L_HALF };

// What a call is given, in the layout of `_regression_native.Input`.
struct Input {
  Index n, p;
  const T* x;
  const Index* start;
  const int32_t* row;
  const T *y, *samples;            // (n,), (n,); for q targets (q, n)
  Index tasks, blocks;
  const Index *block_start, *member;
  const double *weights, *strengths;
  Index count, k;
  const T *m, *basis, *norms;
  double l2, tol, delta, gamma;
  Index positive, intercept, max_steps;
  T *w, *offset;
  Answer* answers;
};

auto penalty(const Input& in, double strength) {
  auto bound = bounds(in.weights, in.blocks, strength);
  if constexpr (SHAPE == L1_NORM) return L1<T>{{std::move(bound)}, in.positive != 0};
  if constexpr (SHAPE == MCP || SHAPE == SCAD) {
    return Concave<T>{{std::move(bound)}, in.gamma, SHAPE == SCAD};
  }
  if constexpr (SHAPE == L_HALF) {
    std::vector<double> curvatures(in.p);
    for (Index j = 0; j < in.p; ++j) curvatures[j] = in.norms[j] / in.n + in.l2;
    return SquareRoot<T>{std::move(bound), std::move(curvatures)};
  }
  if constexpr (SHAPE == GROUPS) {
    const Index* start = in.block_start;
    return Groups<T>{std::move(bound), Indices(start, start + in.blocks + 1),
                     Indices(in.member, in.member + start[in.blocks])};
  }
}
using Penalty = decltype(penalty(std::declval<const Input&>(), 1));

// Of a loss that is not squared.
auto loss(const Input& in) {
  if constexpr (LOSS == LOGISTIC) return Logistic();
  else if constexpr (LOSS == POISSON) return Poisson();
  else return Huber(in.delta);
}

template <class Solve> void path(const Input& in, Index p, const Solve& solve) {
  for (Index s = 0; s < in.count; ++s) {
    T* own = in.w + s * p;
    if (s > 0) std::copy_n(own - p, p, own), in.offset[s] = in.offset[s - 1];
    in.answers[s] = solve(penalty(in, in.strengths[s]), own, in.offset[s]);
  }
}

template <class Design> void squares(const Input& in, Design& X) {
  Gram<T> gram(X.p);
  path(in, X.p, [&](Penalty penalty, T* w, T&) {
    LeastSquares<T, Design, Penalty> one(X, std::move(penalty), in.l2, in.tol, in.norms, w, gram, in.y,
                                         in.m, in.basis, in.k);
    const Index result = one.run(in.max_steps);
    return answer(one, result);
  });
}

template <class Design> void curved(const Input& in, Design& X) {
  const auto of_targets = loss(in);
  path(in, X.p, [&](Penalty penalty, T* w, T& offset) {
    Curved<T, Design, Penalty> one(X, std::move(penalty), in.l2, in.tol, in.norms, w, of_targets,
                                   in.y, in.samples, in.intercept != 0, offset);
    const Index result = one.run(in.max_steps);
    one.finish();
    offset = one.offset();
    return answer(one, result);
  });
}

}  // namespace

extern "C" void regression_path(const Input* in) {
  auto X = design(in->n, in->p, in->x, in->start, in->row);
  if constexpr (LOSS != SQUARED) {
    curved(*in, X);
  } else if constexpr (REPEATED) {
    Tasks<decltype(X), T> repeated{X, in->tasks};
    squares(*in, repeated);
  } else {
    squares(*in, X);
  }
}
