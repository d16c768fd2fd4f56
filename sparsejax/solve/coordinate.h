// Least squares with a penalty: coordinate descent, Newton steps on the support, Anderson steps.
//
//   min_w |y - X w|^2 / (2 n) + penalty(w) + l2 |w|^2 / 2

#pragma once
#include "working_sets.h"

constexpr int EPOCHS = 10;        // of coordinate descent between two looks at the gap
constexpr int FEWEST = 4;         // where a Newton step is cheaper
constexpr int NEWTON = 3;         // Newton steps in a row; each but the last sets coordinates to 0
constexpr int PATIENCE = 4;       // rounds until supports of more than n columns take one too
constexpr int TANGENTS = 16;      // rounds until penalties that bend further than the loss do
constexpr int CROSSINGS = 8;      // sign changes at which a Newton step may end
constexpr double SAFETY = 1e-12;  // of the largest diagonal entry, added before factorising

template <class T, class Design, class Penalty>
struct LeastSquares : WorkingSets<T, Design, Penalty> {
  using Base = WorkingSets<T, Design, Penalty>;
  using Base::X, Base::penalty, Base::l2, Base::tol, Base::norms, Base::w, Base::m, Base::basis;
  using Base::k, Base::n, Base::p, Base::r, Base::g, Base::c, Base::limit, Base::gap, Base::rounds;
  using Base::blocks, Base::features, Base::measure, Base::nonzero;

  Gram<T>& gram;
  const T* y;  // (n,) without its part in the basis
  double yy = dot(y, y, n) / double(n);
  std::vector<T> buffer = std::vector<T>(penalty.widest());

  LeastSquares(Design& X, Penalty given, double l2, double tol, const T* norms, T* w,
               Gram<T>& gram, const T* y, const T* m, const T* basis, Index k)
      : Base(X, std::move(given), l2, tol, norms, w), gram(gram), y(y) {
    this->m = m, this->basis = basis, this->k = k;
    g.assign(k, 0);
  }

  double slope(Index j) const {  // minus the derivative of the smooth part, from the residual
    return (X.product(j, r.data()) + dot(m + j * k, g.data(), k)) / n - l2 * w[j];
  }
  void move(Index j, T to) {
    const T change = to - w[j];
    X.add(j, -change, r.data());
    axpy(change, m + j * k, g.data(), k);
    w[j] = to;
  }
  // The largest second derivative of the smooth part within a block, or a bound.
  double steepness(Index b) {
    if constexpr (Penalty::single) return norms[b] / double(n) + l2;
    return gram.steepness(X, this->features({b}), b, m, k) / n + l2;
  }

  void begin() override {
    limit = tol * yy / 2;
    if (Penalty::convex) return;
    std::copy_n(y, n, r.begin());
    std::fill(g.begin(), g.end(), T(0));
    Indices all(blocks);
    std::iota(all.begin(), all.end(), Index(0));
    X.products(r.data(), all, c.data());
    limit = 0;
    for (Index b : all)
      if (this->movable(b)) limit = std::max(limit, tol * penalty.size(b, c.data()) / n);
  }

  std::vector<T> residual() const {
    std::vector<T> full(r);
    for (Index u = 0; u < k; ++u) axpy(g[u], basis + u * n, full.data(), n);
    return full;
  }

  void recompute() override {
    const Indices support = features(nonzero());
    X.need(support);
    std::copy_n(y, n, r.begin());
    std::fill(g.begin(), g.end(), T(0));
    for (Index j : support) X.add(j, -w[j], r.data()), axpy(w[j], m + j * k, g.data(), k);
    r = residual();
    std::fill(g.begin(), g.end(), T(0));
    // Columns with long parts in the basis multiply what rounding leaves of the residual there.
    for (Index u = 0; u < k; ++u) axpy(-dot(basis + u * n, r.data(), n), basis + u * n, r.data(), n);
  }

  double loss_gap(double s) override {
    const std::vector<T> full = residual();
    const double rr = dot(full.data(), full.data(), n) / double(n);
    const double ry = dot(full.data(), y, n) / double(n);
    return rr / 2 - s * ry + s * s * rr / 2;
  }

  void descend(const Indices& set) {
    for (Index b : set) {
      const double q = steepness(b);
      if constexpr (Penalty::single) {  // without a detour through memory
        T to = w[b] + slope(b) / q;
        penalty.shrink(b, &to, q);
        if (to != w[b]) move(b, to);
        continue;
      }
      T* next = buffer.data();
      penalty.each(b, [&](Index j) { *next++ = w[j] + slope(j) / q; });
      penalty.shrink(b, next = buffer.data(), q);
      penalty.each(b, [&](Index j) {
        if (*next != w[j]) move(j, *next);
        ++next;
      });
    }
  }

  // A Newton step on the support; true if another one may lower the objective further.
  bool newton(int round) {
    const Indices some = nonzero(), on = features(some);
    const Index q = on.size();
    if (q == 0 || q > LARGEST || (q > n && round < PATIENCE)) return false;
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
    for (Index i = 0; i < q; ++i) h[i * q + i] += jitter;
    std::vector<T> straight(Penalty::convex ? std::vector<T>() : h);
    Index at = 0;
    for (Index b : some) {
      const Index first = at;
      auto add = [&](Index i, Index j, double x) { h[(first + i) * q + first + j] += x; };
      penalty.bend(b, w, add);
      penalty.each(b, [&](Index j) { direction[at++] = slope(j) - penalty.slope(b, j, w); });
    }
    const std::vector<T> climb(direction);
    if (!solve(h, direction)) {
      // Where a penalty bends further than the loss, the step for its tangents lowers their sum.
      if (Penalty::convex || round < TANGENTS || !solve(straight, direction = climb)) return false;
    }
    return line(some, on, climb, direction);
  }

  // The best of a few lengths: whole steps, parts, and up to where the first coordinates reach 0.
  bool line(const Indices& some, const Indices& on, const std::vector<T>& climb,
            const std::vector<T>& direction) {
    const Index q = on.size();
    std::vector<double> crossings, lengths = {1, .5, .25, .1, .03};
    for (Index i = 0; i < q && Penalty::single; ++i)
      if (w[on[i]] * direction[i] < 0 && -w[on[i]] / direction[i] < 1)
        crossings.push_back(-w[on[i]] / direction[i]);
    if (crossings.empty() && Penalty::single && Penalty::convex) lengths = {1};
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
        const bool crosses = Penalty::single && (from + step) * from <= 0;
        change[i] = crosses ? -from : step;
        if (crosses) add(image, -from - step, i);
        value -= climb[i] * change[i];
      }
      value += dot(change.data(), image.data(), q) / 2 + curved(some, change.data());
      if (value < lowest) lowest = value, best = change;
      if (length == 1 && value < 0) break;
    }
    bool again = !Penalty::single && lowest < 0;
    for (Index i = 0; i < q; ++i)
      if (best[i] != 0) {
        const T to = w[on[i]] + best[i];
        const bool cut = Penalty::single && to * w[on[i]] <= 0;
        again |= cut;
        move(on[i], cut ? 0 : to);
      }
    return again;
  }
  // The cost of a change of nonzero blocks beyond its first derivative.
  double curved(const Indices& some, const T* change) const {
    double total = 0;
    for (Index b : some) {
      penalty.bend(b, w, [&](Index i, Index j, double x) {
        total += x * change[i] * change[j] / (i == j ? 2 : 1);
      });
      total += penalty.rest(b, w, change);
      penalty.each(b, [&](Index) { ++change; });
    }
    return total;
  }

  // Solves the problem of a few blocks to a gap.
  void inner(const Indices& set, double target, int most) override {
    const Indices on = features(set);
    X.need(on);
    Anderson<T> mixer;
    double spent = 0;
    const double epoch = 2 * this->length(on);
    for (int round = 0; round < most; ++round) {
      // Where a pass over X is cheap it is worth a look whether a few epochs were enough.
      const bool often = 4 * epoch > X.entries();
      const int epochs = often ? std::min(EPOCHS, FEWEST << std::min(round, 8)) : EPOCHS;
      for (int e = 0; e < epochs && (e < FEWEST || spent <= newton_cost(on)); ++e) {
        descend(set);
        if (round > 0) mixer.push(state(on));
        if (mixer.full()) extrapolate(set, on, mixer);
        spent += epoch;
      }
      ++rounds;
      if (spent > newton_cost(on)) {
        for (int s = 0; s < NEWTON && newton(round); ++s) {}
        spent = 0;
        mixer.clear();
      }
      for (Index j : on) c[j] = slope(j);
      measure(set);
      if (!(gap > target)) break;
    }
  }

  // Of a Newton step, in steps of a coordinate times stored entries; a factorisation runs faster.
  double newton_cost(const Indices& on) const {
    double support = 0, fresh = 0;
    for (Index j : on)
      if (w[j] != 0) ++support, fresh += gram.place[j] < 0 ? X.length(j) : 0;
    return fresh * (gram.members.size() + support) / 6 + support * support * support / 24;
  }

  // Coefficients of some features, then the residual in both its parts.
  std::vector<T> state(const Indices& on) const {
    std::vector<T> all;
    all.reserve(on.size() + n + k);
    for (Index j : on) all.push_back(w[j]);
    all.insert(all.end(), r.begin(), r.end());
    all.insert(all.end(), g.begin(), g.end());
    return all;
  }
  void restore(const Indices& on, const std::vector<T>& all) {
    for (size_t i = 0; i < on.size(); ++i) w[on[i]] = all[i];
    std::copy_n(all.begin() + on.size(), n, r.begin());
    std::copy_n(all.begin() + on.size() + n, k, g.begin());
  }
  double objective(const Indices& set) const {
    const std::vector<T> full = residual();
    double value = dot(full.data(), full.data(), n) / double(n) / 2;
    for (Index b : set) {
      value += penalty.cost(b, w);
      penalty.each(b, [&](Index j) { value += l2 * double(w[j]) * w[j] / 2; });
    }
    return value;
  }
  // Moves to the extrapolated point if the objective is lower there.
  void extrapolate(const Indices& set, const Indices& on, Anderson<T>& mixer) {
    std::vector<T> there;
    const double now = objective(set);
    if (mixer.extrapolate(there)) {
      restore(on, there);
      if (!(objective(set) < now)) restore(on, mixer.iterates.back());
    }
    mixer.clear();
  }
};
