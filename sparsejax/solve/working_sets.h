// The loop of working sets of a penalised linear model: duality gaps, gap-safe screening, blocks.
//
//   min_w F(X w) + penalty(w) + l2 |w|^2 / 2,   F the mean of a loss over n samples
//
// A model says what its residual is, minus the derivatives of the losses, how it solves the problem
// of a few blocks, and what its loss adds to the duality gap. Columns may be projected onto the
// complement of k orthonormal vectors B, never formed: x_j - B m_j with m_j = B^T x_j. The residual is
// then r + B g, so that a step of one coordinate touches the stored entries of one column.

#pragma once
#include <limits>
#include <numeric>

#include "penalties.h"
#include "steps.h"

constexpr Index LEAST = 100;  // features of a working set, if there are so many

template <class T, class Design, class Penalty> struct WorkingSets {
  Design& X;
  Penalty penalty;
  double l2, tol;
  const T* norms;  // squares of the columns, projected
  T* w;
  const T *m = nullptr, *basis = nullptr;  // (p, k) and (k, n)
  Index k = 0;

  Index n = X.n, p = X.p, blocks = penalty.blocks();
  std::vector<T> r = std::vector<T>(n), g, c = std::vector<T>(p);
  std::vector<char> screened = std::vector<char>(blocks);
  double curvature = 1;  // of the losses, at most
  double limit = 0, gap = 0, scale = 1;
  Index rounds = 0, outer = 0;

  WorkingSets(Design& X, Penalty given, double l2, double tol, const T* norms, T* w)
      : X(X), penalty(std::move(given)), l2(l2), tol(tol), norms(norms), w(w) {
    penalty.drop(norms);
  }
  virtual ~WorkingSets() = default;

  virtual void begin() = 0;                // sets the limit for the gap
  virtual void recompute() = 0;            // the residual, without the errors of many steps
  virtual double loss_gap(double s) = 0;   // F plus its conjugate at s times the residual
  virtual void inner(const Indices& set, double target, int most) = 0;

  double square(Index b) const {
    double total = 0;
    penalty.each(b, [&](Index j) { total += norms[j]; });
    return total;
  }
  bool movable(Index b) const { return square(b) > 0 && std::isfinite(penalty.bounds[b]); }
  bool moved(Index b) const {
    bool some = false;
    penalty.each(b, [&](Index j) { some |= w[j] != 0; });
    return some;
  }
  Indices nonzero() const {
    Indices found;
    for (Index b = 0; b < blocks; ++b)
      if (moved(b)) found.push_back(b);
    return found;
  }
  Indices features(const Indices& which) const {
    if constexpr (Penalty::single) return which;
    Indices found;
    for (Index b : which) penalty.each(b, [&](Index j) { found.push_back(j); });
    return found;
  }
  double length(const Indices& which) const {
    double total = 0;
    for (Index j : which) total += X.length(j);
    return total;
  }

  void look(const Indices& which) {
    const Indices all = features(which);
    X.products(r.data(), all, c.data());
    for (Index j : all) c[j] = (c[j] + dot(m + j * k, g.data(), k)) / n - l2 * w[j];
  }

  // The duality gap over some blocks, from c and the residual alone, as who checks it would; for
  // penalties that are not convex the largest distance from the subdifferential.
  void measure(const Indices& which) {
    if (!Penalty::convex) return distance(which);
    double s = 1, cost = 0, ridge = 0, free = 0;
    for (Index b : which) {
      const double a = penalty.bounds[b], u = penalty.size(b, c.data());
      if (a > 0 && u * s > a) s = a / u;
      cost += penalty.cost(b, w);
      penalty.each(b, [&](Index j) {
        ridge += double(w[j]) * w[j];
        // Without a bound any multiple is feasible where there is a ridge, and this one is best.
        const double own = a > 0 ? w[j] : penalty.admit(c[j] + l2 * w[j]) / l2;
        free += own * own;
      });
    }
    scale = s;
    const double found = loss_gap(s) + cost + l2 * ridge / 2 + s * s * l2 * free / 2;
    gap = found < 0 ? 0 : found;  // NaN stays
    const double other = ridge_gap(which);
    if (other < gap) gap = other, scale = 1;
  }
  void distance(const Indices& which) {
    gap = 0;
    for (Index b : which) {
      const double found = penalty.violation(b, w, c.data());
      if (!(found <= gap)) gap = found;
    }
  }

  // The same with the residual itself as dual point, feasible where there is a ridge: precise where
  // bounds are below the rounding of c, so that no multiple of the residual is feasible.
  double ridge_gap(const Indices& which) {
    if (!(l2 > 0)) return INFINITY;
    double squares = 0, slack = 0;
    std::vector<T> u(Penalty::single ? 0 : p);
    for (Index b : which) {
      double size, along = 0;
      auto at = [&](Index j) -> T { return c[j] + l2 * w[j]; };
      if constexpr (Penalty::single) {
        u.assign(1, at(b));
        size = penalty.inward(0, u.data());
      } else {
        penalty.each(b, [&](Index j) { u[j] = at(j); });
        size = penalty.inward(b, u.data());
      }
      const double a = penalty.bounds[b], bound = std::min(a, size);
      double norm = 0;
      penalty.each(b, [&](Index j) {
        const double unit = size != 0 ? at(j) / size : 0, off = l2 * w[j] - unit * (size - bound);
        squares += off * off, along += unit * w[j], norm += double(w[j]) * w[j];
      });
      norm = std::sqrt(norm);
      if (norm > 0) slack += (a - bound) * norm + bound * (norm - along);
    }
    return squares / (2 * l2) + slack;
  }

  // The nonzero blocks and those with the largest ratio of correlation to bound.
  Indices working_set(const Indices& alive) const {
    Indices set = nonzero(), others;
    for (Index b : alive)
      if (penalty.bounds[b] == 0 && !moved(b)) set.push_back(b);
      else if (!moved(b)) others.push_back(b);
    const size_t least = Penalty::single ? LEAST : std::max<Index>(10, LEAST * blocks / (p + 1));
    const size_t room = std::max<size_t>(least, 2 * set.size()) - set.size();
    std::vector<double> score(others.size() > room ? blocks : 0);
    if (others.size() > room) {
      for (Index b : others) score[b] = penalty.size(b, c.data()) / penalty.bounds[b];
      auto before = [&](Index i, Index j) { return score[i] > score[j]; };
      std::nth_element(others.begin(), others.begin() + room, others.end(), before);
      others.resize(room);
    }
    set.insert(set.end(), others.begin(), others.end());
    std::sort(set.begin(), set.end());
    return set;
  }

  // 0: reached; 1: max_steps; 2: not finite.
  Index run(Index max_steps) {
    for (Index j = 0; j < p; ++j)
      if (!(norms[j] > 0)) w[j] = 0;
    for (Index b = 0; b < blocks; ++b)
      if (!movable(b) || !std::isfinite(penalty.cost(b, w)))
        penalty.each(b, [&](Index j) { w[j] = 0; });
    std::fill(screened.begin(), screened.end(), 0);
    begin();
    for (outer = 0;; ++outer) {
      recompute();
      Indices alive;
      for (Index b = 0; b < blocks; ++b)
        if (movable(b) && !screened[b]) alive.push_back(b);
      look(alive);
      measure(alive);
      if (!std::isfinite(gap)) return 2;
      // Without convexity 0 may be stationary beside a lower minimum of a coordinate.
      if (gap <= limit && (Penalty::convex || outer > 0)) {
        if (all_agree()) return 0;
        continue;
      }
      if (outer >= max_steps) return 1;
      if (Penalty::convex) screen(alive);
      inner(working_set(alive), std::max(0.3 * gap, 0.3 * limit), 100);
    }
  }

  // Whether the gap is as small over the screened blocks too; they come back otherwise.
  bool all_agree() {
    if (std::count(screened.begin(), screened.end(), 1) == 0) return true;
    std::fill(screened.begin(), screened.end(), 0);
    Indices all;
    for (Index b = 0; b < blocks; ++b)
      if (movable(b)) all.push_back(b);
    look(all);
    measure(all);
    return gap <= limit;
  }

  void screen(Indices& alive) {
    Indices left;
    const double radius = std::sqrt(2 * gap);
    bool cut = false;
    for (Index b : alive) {
      const double steepest = std::sqrt(curvature * square(b) / n + l2);
      if (scale * penalty.size(b, c.data()) < penalty.bounds[b] - radius * steepest) {
        screened[b] = 1;
        cut |= moved(b);
        penalty.each(b, [&](Index j) { w[j] = 0; });
      } else {
        left.push_back(b);
      }
    }
    if (cut) recompute();
    alive.swap(left);
  }
};
