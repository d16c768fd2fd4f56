// Coordinate descent for the Lasso: working sets, gap-safe screening, Newton steps on the support.
//
//   min_w |y - X w|^2 / (2 n) + sum_j a_j |w_j| + l2 |w|^2 / 2
//
// Columns are projected onto the complement of k orthonormal vectors B (an intercept, features
// without a penalty), never formed: x_j - B m_j with m_j = B^T x_j. The residual is r + B g, so that
// a step of one coordinate touches the stored entries of one column.

#pragma once
#include <limits>
#include <numeric>

#include "steps.h"

constexpr int EPOCHS = 10;        // of coordinate descent between two looks at the gap
constexpr int FEWEST = 4;         // where a Newton step is cheaper
constexpr int NEWTON = 3;         // Newton steps in a row; each but the last sets coordinates to 0
constexpr int PATIENCE = 4;       // rounds until supports of more than n columns take one too
constexpr int CROSSINGS = 8;      // sign changes at which a Newton step may end
constexpr double SAFETY = 1e-12;  // of the largest diagonal entry, added before factorising

template <class T, class Design> struct Lasso {
  Design& X;
  Gram<T>& gram;
  const T *y, *m, *basis;  // y (n,) without its part in the basis (k, n); m (p, k)
  Index k;
  const double* thresholds;
  double l2, tol;
  bool positive;
  const T* norms;  // squares of the projected columns
  T* w;

  Index n = X.n, p = X.p;
  std::vector<T> r = std::vector<T>(n), g = std::vector<T>(k), c = std::vector<T>(p);
  std::vector<char> screened = std::vector<char>(p);
  double yy = dot(y, y, n) / double(n), gap = 0, scale = 1;
  Index rounds = 0, outer = 0;

  double quadratic(Index j) const { return norms[j] / double(n) + l2; }
  bool movable(Index j) const { return norms[j] > 0 && std::isfinite(thresholds[j]); }
  double size(double c) const { return positive ? std::max(c, 0.0) : std::abs(c); }
  double slope(Index j) const {  // minus the derivative of the smooth part, from the residual
    return (X.product(j, r.data()) + dot(m + j * k, g.data(), k)) / n - l2 * w[j];
  }
  void move(Index j, T to) {
    const T change = to - w[j];
    X.add(j, -change, r.data());
    axpy(change, m + j * k, g.data(), k);
    w[j] = to;
  }

  std::vector<T> residual() const {
    std::vector<T> full(r);
    for (Index u = 0; u < k; ++u) axpy(g[u], basis + u * n, full.data(), n);
    return full;
  }

  // The residual anew, without the rounding errors of many steps.
  void recompute() {
    Indices support = nonzero();
    X.need(support);
    std::copy_n(y, n, r.begin());
    std::fill(g.begin(), g.end(), T(0));
    for (Index j : support) X.add(j, -w[j], r.data()), axpy(w[j], m + j * k, g.data(), k);
    r = residual();
    std::fill(g.begin(), g.end(), T(0));
    // Columns with long parts in the basis multiply what rounding leaves of the residual there.
    for (Index u = 0; u < k; ++u) axpy(-dot(basis + u * n, r.data(), n), basis + u * n, r.data(), n);
  }

  Indices nonzero() const {
    Indices found;
    for (Index j = 0; j < p; ++j)
      if (w[j] != 0) found.push_back(j);
    return found;
  }

  // The duality gap over some features, from c and the residual alone, as who checks it would.
  void measure(const Indices& which) {
    double s = 1, cost = 0, ridge = 0, free = 0;
    for (Index j : which) {
      const double a = thresholds[j], u = size(c[j]);
      if (a > 0 && u * s > a) s = a / u;
    }
    for (Index j : which) {
      const double a = thresholds[j], v = w[j];
      cost += a * std::abs(v);
      ridge += v * v;
      // Without a threshold any multiple is feasible where there is a ridge, and this one is best.
      const double own = a > 0 ? v : size(c[j] + l2 * v) / l2;
      free += own * own;
    }
    const std::vector<T> full = residual();
    const double rr = dot(full.data(), full.data(), n) / double(n);
    const double ry = dot(full.data(), y, n) / double(n);
    const double value = s * ry - s * s * rr / 2 - s * s * l2 * free / 2;
    scale = s;
    const double found = rr / 2 + cost + l2 * ridge / 2 - value;
    gap = found < 0 ? 0 : found;  // NaN stays
    const double other = ridge_gap(which);
    if (other < gap) gap = other, scale = 1;
  }

  // The same with the residual itself as dual point, feasible where there is a ridge: precise where
  // thresholds are below the rounding of c, so that no multiple of the residual is feasible.
  double ridge_gap(const Indices& which) const {
    if (!(l2 > 0)) return INFINITY;
    double squares = 0, slack = 0;
    for (Index j : which) {
      const double a = thresholds[j], v = w[j], u = c[j] + l2 * v;
      const double size = positive ? u : std::abs(u), own = positive || u >= 0 ? v : -v;
      const double bound = std::min(a, size), off = l2 * own - (size - bound);
      squares += off * off;
      if (v != 0) slack += (a - bound) * std::abs(v) + bound * (std::abs(v) - own);
    }
    return squares / (2 * l2) + slack;
  }

  void look(const Indices& which) {
    X.products(r.data(), which, c.data());
    for (Index j : which) c[j] = (c[j] + dot(m + j * k, g.data(), k)) / n - l2 * w[j];
  }

  void descend(const Indices& set) {
    for (Index j : set) {
      const double q = quadratic(j), u = w[j] + slope(j) / q, bound = thresholds[j] / q;
      const double left = size(u) - bound;
      const T next = left > 0 ? std::copysign(left, u) : 0;
      if (next != w[j]) move(j, next);
    }
  }

  // A Newton step for the current signs; true if it set coordinates to 0 and lowered the objective.
  bool newton(bool dependent) {
    const Indices on = nonzero();
    const Index q = on.size();
    if (q == 0 || q > LARGEST || (q > n && !dependent)) return false;
    gram.include(X, on, m, k);
    std::vector<T> h(q * q), direction(q);
    T largest = 0;
    for (Index i = 0; i < q; ++i) {
      const T* row = &gram.values[gram.place[on[i]] * gram.room];
      for (Index j = 0; j <= i; ++j) h[i * q + j] = row[gram.place[on[j]]] / n;
      h[i * q + i] += l2;
      largest = std::max(largest, h[i * q + i]);
    }
    const T jitter = largest * std::max<T>(SAFETY, 8 * std::numeric_limits<T>::epsilon());
    for (Index i = 0; i < q; ++i) {
      h[i * q + i] += jitter;
      const Index j = on[i];
      direction[i] = slope(j) - thresholds[j] * (w[j] > 0 ? 1 : -1);
    }
    const std::vector<T> climb(direction);
    if (!solve(h, direction)) return false;
    return line(on, climb, direction);
  }

  // The best of a few lengths: whole steps, parts, and up to where the first coordinates reach 0.
  bool line(const Indices& on, const std::vector<T>& climb, const std::vector<T>& direction) {
    const Index q = on.size();
    std::vector<double> crossings, lengths = {1, .5, .25, .1, .03};
    for (Index i = 0; i < q; ++i)
      if (w[on[i]] * direction[i] < 0 && -w[on[i]] / direction[i] < 1)
        crossings.push_back(-w[on[i]] / direction[i]);
    if (crossings.empty()) lengths = {1};
    std::sort(crossings.begin(), crossings.end());
    crossings.resize(std::min<size_t>(crossings.size(), CROSSINGS));
    lengths.insert(lengths.end(), crossings.begin(), crossings.end());
    std::vector<T> best(q, 0), change(q), whole(q, 0), image(q);
    Indices slots(q);
    for (Index i = 0; i < q; ++i) slots[i] = gram.place[on[i]];
    auto add = [&](std::vector<T>& to, T scale, Index i) {  // a column of the Hessian
      const T* row = &gram.values[slots[i] * gram.room];
      for (Index j = 0; j < q; ++j) to[j] += scale * row[slots[j]] / n;
      to[i] += scale * l2;
    };
    for (Index i = 0; i < q; ++i) add(whole, direction[i], i);
    double lowest = 0;
    for (double length : lengths) {
      for (Index j = 0; j < q; ++j) image[j] = length * whole[j];
      double value = 0;
      for (Index i = 0; i < q; ++i) {
        const T from = w[on[i]], step = length * direction[i];
        const bool crosses = (from + step) * from <= 0;
        change[i] = crosses ? -from : step;
        if (crosses) add(image, -from - step, i);
        value -= climb[i] * change[i];
      }
      value += dot(change.data(), image.data(), q) / 2;
      if (value < lowest) lowest = value, best = change;
      if (crossings.empty() || (length == 1 && value < 0)) break;
    }
    bool cut = false;
    for (Index i = 0; i < q; ++i)
      if (best[i] != 0) {
        const T to = w[on[i]] + best[i];
        cut |= to * w[on[i]] <= 0;
        move(on[i], to * w[on[i]] > 0 ? to : 0);
      }
    return cut;
  }

  // Solves the problem of a few features to a gap.
  void inner(const Indices& set, double target, int most) {
    X.need(set);
    Anderson<T> mixer;
    double spent = 0, epoch = 0;
    for (Index j : set) epoch += 2 * X.length(j);
    for (int round = 0; round < most; ++round) {
      // Where a pass over X is cheap it is worth a look whether a few epochs were enough.
      const bool often = 4 * epoch > X.entries();
      const int epochs = often ? std::min(EPOCHS, FEWEST << std::min(round, 8)) : EPOCHS;
      for (int e = 0; e < epochs && (e < FEWEST || spent <= newton_cost(set)); ++e) {
        descend(set);
        if (round > 0) mixer.push(state(set));
        if (mixer.full()) extrapolate(set, mixer);
        spent += epoch;
      }
      ++rounds;
      if (spent > newton_cost(set)) {
        for (int s = 0; s < NEWTON && newton(round >= PATIENCE); ++s) {}
        spent = 0;
        mixer.clear();
      }
      look_at(set);
      measure(set);
      if (!(gap > target)) break;
    }
  }

  // Of a Newton step, in steps of a coordinate times stored entries; a factorisation runs faster.
  double newton_cost(const Indices& set) const {
    double support = 0, fresh = 0;
    for (Index j : set)
      if (w[j] != 0) ++support, fresh += gram.place[j] < 0 ? X.length(j) : 0;
    return fresh * (gram.members.size() + support) / 6 + support * support * support / 24;
  }

  // Coefficients of the set, then the residual in both its parts.
  std::vector<T> state(const Indices& set) const {
    std::vector<T> all;
    all.reserve(set.size() + n + k);
    for (Index j : set) all.push_back(w[j]);
    all.insert(all.end(), r.begin(), r.end());
    all.insert(all.end(), g.begin(), g.end());
    return all;
  }
  void restore(const Indices& set, const std::vector<T>& all) {
    for (size_t i = 0; i < set.size(); ++i) w[set[i]] = all[i];
    std::copy_n(all.begin() + set.size(), n, r.begin());
    std::copy_n(all.begin() + set.size() + n, k, g.begin());
  }
  double objective(const Indices& set) const {
    const std::vector<T> full = residual();
    double value = dot(full.data(), full.data(), n) / double(n) / 2;
    for (Index j : set) {
      if (positive && w[j] < 0) return INFINITY;
      value += thresholds[j] * std::abs(w[j]) + l2 * double(w[j]) * w[j] / 2;
    }
    return value;
  }
  // Moves to the extrapolated point if the objective is lower there.
  void extrapolate(const Indices& set, Anderson<T>& mixer) {
    std::vector<T> there;
    const double now = objective(set);
    if (mixer.extrapolate(there)) {
      restore(set, there);
      if (!(objective(set) < now)) restore(set, mixer.iterates.back());
    }
    mixer.clear();
  }
  void look_at(const Indices& set) {
    for (Index j : set) c[j] = slope(j);
  }

  // The support and the features with the largest ratio of correlation to threshold.
  Indices working_set(const Indices& alive) const {
    Indices set = nonzero(), others;
    for (Index j : alive)
      if (thresholds[j] == 0 && w[j] == 0) set.push_back(j);
      else if (w[j] == 0) others.push_back(j);
    const size_t room = std::max<size_t>(100, 2 * set.size()) - set.size();
    auto score = [this](Index j) { return size(c[j]) / thresholds[j]; };
    auto before = [&](Index i, Index j) { return score(i) > score(j); };
    if (others.size() > room) {
      std::nth_element(others.begin(), others.begin() + room, others.end(), before);
      others.resize(room);
    }
    set.insert(set.end(), others.begin(), others.end());
    std::sort(set.begin(), set.end());
    return set;
  }

  // 0: reached; 1: max_steps; 2: not finite.
  int run(Index max_steps) {
    for (Index j = 0; j < p; ++j)
      if (!movable(j) || (positive && w[j] < 0)) w[j] = 0;
    std::fill(screened.begin(), screened.end(), 0);
    for (outer = 0;; ++outer) {
      recompute();
      Indices alive;
      for (Index j = 0; j < p; ++j)
        if (movable(j) && !screened[j]) alive.push_back(j);
      look(alive);
      measure(alive);
      if (!std::isfinite(gap)) return 2;
      if (gap <= tol * yy / 2) {
        if (all_agree(alive)) return 0;
        continue;
      }
      if (outer >= max_steps) return 1;
      screen(alive);
      inner(working_set(alive), std::max(0.3 * gap, 0.3 * tol * yy / 2), 100);
    }
  }

  // Whether the gap is as small over the screened features too; they come back otherwise.
  bool all_agree(Indices& alive) {
    if (std::count(screened.begin(), screened.end(), 1) == 0) return true;
    std::fill(screened.begin(), screened.end(), 0);
    Indices all;
    for (Index j = 0; j < p; ++j)
      if (movable(j)) all.push_back(j);
    look(all);
    measure(all);
    alive.swap(all);
    return gap <= tol * yy / 2;
  }

  void screen(Indices& alive) {
    Indices left;
    const double radius = std::sqrt(2 * gap);
    for (Index j : alive)
      if (scale * size(c[j]) < thresholds[j] - radius * std::sqrt(quadratic(j))) {
        screened[j] = 1;
        if (w[j] != 0) X.need({j}), move(j, 0);
      } else {
        left.push_back(j);
      }
    alive.swap(left);
  }
};
