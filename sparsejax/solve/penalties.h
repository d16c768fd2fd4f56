// Penalties on blocks of coefficients for working_sets.h: the l1 norm, group norms, MCP, SCAD, l_1/2.
//
// Each has `bounds`, the norms of the correlations up to which blocks stay 0; each(b, call), a call
// for the features of a block; size(b, c), the norm of correlations that a bound bounds; admit(u), a
// coefficient in the domain; cost(b, w);
// drop(norms), which leaves features whose columns are 0 out of their blocks, where rounding errors
// would move them with the others; shrink(b, v, q), which replaces v by the minimum of
// q |x - v|^2 / 2 + cost; violation(b, w, c), the distance of c from the subdifferential;
// part(blocks), for losses that are not squared, the same penalty of these blocks, their features
// numbered in order. For Newton steps where w is not 0: slope(b, j, w), a derivative;
// bend(b, w, add), second derivatives; rest(b, w, step), what these do not say of the cost.

#pragma once
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "designs.h"

// Blocks of one feature.
template <class T> struct Single {
  static constexpr bool single = true;
  std::vector<double> bounds;

  Index blocks() const { return bounds.size(); }
  Index widest() const { return 1; }
  template <class Call> void each(Index b, const Call& call) const { call(b); }
  std::vector<double> bounds_of(const Indices& which) const {
    std::vector<double> found;
    for (Index b : which) found.push_back(bounds[b]);
    return found;
  }
  double admit(double u) const { return u; }
  void drop(const T*) {}
  double size(Index b, const T* c) const { return std::abs(c[b]); }
  double inward(Index b, const T* c) const { return std::abs(c[b]); }
};

template <class T> struct L1 : Single<T> {
  static constexpr bool convex = true;
  using Single<T>::bounds;
  bool positive = false;

  double admit(double u) const { return positive ? std::max(u, 0.0) : u; }
  double size(Index b, const T* c) const { return std::abs(admit(c[b])); }
  // With a sign where there is one: negative correlations of what must be positive.
  double inward(Index b, const T* c) const { return positive ? c[b] : std::abs(c[b]); }
  double cost(Index b, const T* w) const {
    return positive && w[b] < 0 ? INFINITY : bounds[b] * std::abs(w[b]);
  }
  void shrink(Index b, T* v, double q) const {
    const double u = *v, left = std::abs(admit(u)) - bounds[b] / q;
    *v = left > 0 ? std::copysign(left, u) : 0;
  }
  double violation(Index b, const T* w, const T* c) const {
    return w[b] != 0 ? std::abs(c[b] - slope(b, b, w)) : std::max(size(b, c) - bounds[b], 0.0);
  }
  double slope(Index b, Index, const T* w) const { return bounds[b] * (w[b] > 0 ? 1 : -1); }
  template <class Add> void bend(Index, const T*, const Add&) const {}
  double rest(Index, const T*, const T*) const { return 0; }
  L1 part(const Indices& which) const { return {{this->bounds_of(which)}, positive}; }
};

// MCP and SCAD: the slope is a bound near 0, falls along a parabola, and is 0 from gamma bounds on.
template <class T> struct Concave : Single<T> {
  static constexpr bool convex = false;
  using Single<T>::bounds;
  double gamma = 3;
  bool scad = false;

  double from(double a) const { return scad ? a : 0; }
  double curvature() const { return 1 / (scad ? gamma - 1 : gamma); }
  double value(double a, double u) const {
    const double end = gamma * a, fallen = std::min(std::max(u, from(a)), end) - from(a);
    return a * std::min(u, end) - curvature() * fallen * fallen / 2;
  }
  double cost(Index b, const T* w) const { return value(bounds[b], std::abs(double(w[b]))); }
  // The best of the minima of the three pieces.
  void shrink(Index b, T* v, double q) const {
    const double a = bounds[b], u = std::abs(double(*v)), end = gamma * a, k = curvature();
    const double line = std::min(std::max(u - a / q, 0.0), from(a));
    const double turn = q > k ? (u - (a + k * from(a)) / q) / (1 - k / q) : 0;
    double best = 0, lowest = q * u * u / 2;
    for (double x : {line, std::min(std::max(turn, from(a)), end), std::max(u, end)}) {
      const double here = q * (x - u) * (x - u) / 2 + value(a, x);
      if (here < lowest) lowest = here, best = x;
    }
    *v = std::copysign(best, double(*v));
  }
  double violation(Index b, const T* w, const T* c) const {
    return w[b] != 0 ? std::abs(c[b] - slope(b, b, w)) : std::max(std::abs(c[b]) - bounds[b], T(0));
  }
  double slope(Index b, Index, const T* w) const {
    const double a = bounds[b], u = std::abs(double(w[b])), end = gamma * a;
    return std::copysign(u < end ? a - curvature() * std::max(u - from(a), 0.0) : 0, double(w[b]));
  }
  bool falls(Index b, const T* w) const {
    const double a = bounds[b], u = std::abs(double(w[b]));
    return u > from(a) && u < gamma * a;
  }
  template <class Add> void bend(Index b, const T* w, const Add& add) const {
    if (falls(b, w)) add(0, 0, -curvature());
  }
  double rest(Index b, const T* w, const T* step) const {
    const T there = w[b] + *step;
    const double second = falls(b, w) ? -curvature() : 0, d = there - w[b];
    const double change = value(bounds[b], std::abs(double(there))) - cost(b, w);
    return change - slope(b, b, w) * d - second * d * d / 2;
  }
  Concave part(const Indices& which) const { return {{this->bounds_of(which)}, gamma, scad}; }
};

// sum_b a_b |w_b|^(1/2), whose slope is infinite at 0: each w_b is the minimum of its own problem, of
// curvature q_b, which is 0 up to a correlation of 1.5 a_b^(2/3) q_b^(1/3). The violation is q_b times
// the distance from it: at 0 every correlation is in the subdifferential.
template <class T> struct SquareRoot : Single<T> {
  static constexpr bool convex = false;
  using Single<T>::bounds;
  std::vector<double> weights, curvatures;

  SquareRoot(std::vector<double> a, std::vector<double> q)
      : Single<T>{std::vector<double>(a.size())}, weights(std::move(a)), curvatures(std::move(q)) {
    for (Index b = 0; b < this->blocks(); ++b)
      bounds[b] = 1.5 * std::pow(std::cbrt(weights[b]), 2) * std::cbrt(curvatures[b]);
  }
  double cost(Index b, const T* w) const {
    return w[b] == 0 ? 0 : weights[b] * std::sqrt(std::abs(double(w[b])));
  }
  // A root of x + (a / 2 q) x^(-1/2) = u, a cubic equation in x^(1/2).
  void shrink(Index b, T* v, double q) const {
    const double u = std::abs(double(*v)), m = weights[b] / q, root = std::cbrt(m);
    if (!(u > 1.5 * root * root)) return void(*v = 0);
    constexpr double turn = 2.0943951023931953;  // 2 pi / 3
    const double angle = std::acos(std::min(0.75 * m * std::sqrt(3 / u) / u, 1.0));
    double x = 2 * u / 3 * (1 + std::cos(turn - 2 * angle / 3));
    const double pull = m / (2 * std::sqrt(x));  // and a Newton step against the rounding
    x -= (x + pull - u) / (1 - pull / (2 * x));
    *v = std::copysign(x, double(*v));
  }
  double violation(Index b, const T* w, const T* c) const {
    const double q = curvatures[b];
    T to = w[b] + c[b] / q;
    shrink(b, &to, q);
    return q * std::abs(double(w[b]) - to);
  }
  double slope(Index b, Index, const T* w) const {
    return std::copysign(weights[b] / (2 * std::sqrt(std::abs(double(w[b])))), double(w[b]));
  }
  double bending(Index b, const T* w) const { return -slope(b, b, w) / (2 * double(w[b])); }
  template <class Add> void bend(Index b, const T* w, const Add& add) const {
    add(0, 0, bending(b, w));
  }
  double rest(Index b, const T* w, const T* step) const {
    const T there = w[b] + *step;
    const double d = there - w[b];
    const double change = weights[b] * std::sqrt(std::abs(double(there))) - cost(b, w);
    return change - slope(b, b, w) * d - bending(b, w) * d * d / 2;
  }
};

// sum_b a_b |w_b| over disjoint groups of features.
template <class T> struct Groups {
  static constexpr bool single = false, convex = true;
  std::vector<double> bounds;
  Indices start, member;

  Index blocks() const { return bounds.size(); }
  double admit(double u) const { return u; }
  Index widest() const {
    Index most = 0;
    for (Index b = 0; b < blocks(); ++b) most = std::max(most, start[b + 1] - start[b]);
    return most;
  }
  template <class Call> void each(Index b, const Call& call) const {
    for (Index i = start[b]; i < start[b + 1]; ++i) call(member[i]);
  }
  void drop(const T* norms) {
    Index kept = 0;
    for (Index b = 0, from = 0; b < blocks(); ++b) {
      const Index end = start[b + 1];
      for (; from < end; ++from)
        if (norms[member[from]] > 0) member[kept++] = member[from];
      start[b + 1] = kept;
    }
    member.resize(kept);
  }
  double size(Index b, const T* c) const {
    double squares = 0;
    each(b, [&](Index j) { squares += double(c[j]) * c[j]; });
    return std::sqrt(squares);
  }
  double inward(Index b, const T* c) const { return size(b, c); }
  double cost(Index b, const T* w) const { return bounds[b] * size(b, w); }
  void shrink(Index b, T* v, double q) const {
    const Index width = start[b + 1] - start[b];
    const double length = std::sqrt(double(dot(v, v, width))), bound = bounds[b] / q;
    const T factor = length > bound ? 1 - bound / length : 0;
    for (Index i = 0; i < width; ++i) v[i] = factor > 0 ? v[i] * factor : 0;  // not -0
  }
  double violation(Index b, const T* w, const T* c) const {
    if (!(size(b, w) > 0)) return std::max(size(b, c) - bounds[b], 0.0);
    double squares = 0;
    each(b, [&](Index j) { squares += std::pow(c[j] - slope(b, j, w), 2); });
    return std::sqrt(squares);
  }
  double slope(Index b, Index j, const T* w) const { return bounds[b] * w[j] / size(b, w); }
  template <class Add> void bend(Index b, const T* w, const Add& add) const {
    const double length = size(b, w), scale = bounds[b] / length;
    for (Index i = start[b]; i < start[b + 1]; ++i)
      for (Index k = start[b]; k <= i; ++k) {
        const double along = w[member[i]] / length * (w[member[k]] / length);
        add(i - start[b], k - start[b], scale * ((i == k) - along));
      }
  }
  double rest(Index b, const T* w, const T* step) const {
    double along = 0, there = 0, squares = 0, length = size(b, w);
    for (Index i = start[b]; i < start[b + 1]; ++i) {
      const double from = w[member[i]], d = step[i - start[b]];
      along += from / length * d, squares += d * d, there += (from + d) * (from + d);
    }
    const double across = std::max(squares - along * along, 0.0);
    return bounds[b] * (std::sqrt(there) - length - along - across / (2 * length));
  }
  Groups part(const Indices& which) const {
    Groups found;
    found.start.push_back(0);
    for (Index b : which) {
      found.bounds.push_back(bounds[b]);
      for (Index i = start[b]; i < start[b + 1]; ++i) found.member.push_back(found.member.size());
      found.start.push_back(found.member.size());
    }
    return found;
  }
};
