// Losses that are not quadratic: Newton steps, each a problem of weighted least squares.
//
//   min_{w, z} sum_i s_i loss(y_i, (X w + F z)_i) / n + penalty(w) + l2 |w|^2 / 2
//
// The columns F (an intercept, features without a penalty) are projected out of each of these, and z
// is solved for exactly before a gap is measured, so that the residual is orthogonal to F.

#pragma once
#include "coordinate.h"
#include "losses.h"

constexpr int HALVINGS = 60;    // of a step that does not lower the objective
constexpr int POLISHES = 50;    // Newton steps for z
constexpr int MOST = 20;        // rounds for the model of a Newton step
constexpr double SHARE = 0.1;   // of the gap, to which this model is solved

template <class T, class Design, class Penalty>
struct Curved : WorkingSets<T, Design, Penalty> {
  using Base = WorkingSets<T, Design, Penalty>;
  using Base::X, Base::penalty, Base::l2, Base::tol, Base::norms, Base::w, Base::n, Base::p;
  using Base::r, Base::c, Base::limit, Base::gap, Base::rounds, Base::blocks;
  using Base::features, Base::measure, Base::nonzero, Base::look;
  using Vector = std::vector<T>;

  const Loss& loss;
  const T *y, *s;  // targets and weights of samples, of mean 1
  bool intercept;
  Indices free;    // blocks without a penalty
  Vector F;        // (columns, n)
  Vector u = Vector(n), z;
  double unpolished = 0;  // what a step of one entry of z may still lower n times the objective by

  Curved(Design& X, Penalty given, double l2, double tol, const T* norms, T* w, const Loss& loss,
         const T* y, const T* s, bool intercept, double offset)
      : Base(X, std::move(given), l2, tol, norms, w), loss(loss), y(y), s(s), intercept(intercept) {
    if (intercept) F.assign(n, 1), z.push_back(offset);
    for (Index b = 0; b < blocks && l2 == 0; ++b)
      if (penalty.bounds[b] == 0 && this->square(b) > 0) free.push_back(b);
    const Indices columns = features(free);
    X.need(columns);
    for (Index j : columns) {
      F.resize(F.size() + n);
      X.add(j, 1, &F[F.size() - n]);
      z.push_back(w[j]);
    }
    for (Index b : free) penalty.bounds[b] = INFINITY;
    this->curvature = loss.curvature() * *std::max_element(s, s + n);
  }
  double offset() const { return intercept ? z[0] : 0; }
  // The coefficients of F among the others.
  void finish() {
    const Indices columns = features(free);
    for (size_t i = 0; i < columns.size(); ++i) w[columns[i]] = z[i + intercept];
  }

  double value(const Vector& at) const {
    double total = 0;
    for (Index i = 0; i < n; ++i)
      if (s[i] > 0) total += s[i] * loss.value(y[i], at[i]);
    return total / n;
  }
  double cost(const T* at, const Indices& set) const {
    double total = 0;
    for (Index b : set) {
      total += penalty.cost(b, at);
      penalty.each(b, [&](Index j) { total += l2 * double(at[j]) * at[j] / 2; });
    }
    return total;
  }
  void pull() {
    for (Index i = 0; i < n; ++i) r[i] = s[i] > 0 ? s[i] * loss.pull(y[i], u[i]) : 0;
  }

  void begin() override {
    Vector kept(w, w + p), z0 = z;
    std::fill(w, w + p, T(0));
    recompute();
    limit = tol * value(u);
    if (!Penalty::convex) {
      Indices all;
      for (Index b = 0; b < blocks; ++b)
        if (this->movable(b)) all.push_back(b);
      look(all);
      limit = 0;
      for (Index b : all) limit = std::max(limit, tol * penalty.size(b, c.data()));
    }
    std::copy(kept.begin(), kept.end(), w);
    if (!nonzero().empty()) z = z0;
  }

  void recompute() override {
    const Indices support = features(nonzero());
    X.need(support);
    std::fill(u.begin(), u.end(), T(0));
    for (Index j : support) X.add(j, w[j], u.data());
    for (size_t i = 0; i < z.size(); ++i) axpy(z[i], &F[i * n], u.data(), n);
    polish();
    pull();
  }

  double loss_gap(double scale) override {
    double total = 0;
    for (Index i = 0; i < n; ++i)
      if (s[i] > 0)
        total += s[i] * (loss.value(y[i], u[i]) + loss.conjugate(y[i], scale * r[i] / s[i]));
    // What rounding leaves of the residual along F is taken out; more than that counts as far as z has
    // moved, and has to move.
    for (size_t a = 0; a < z.size(); ++a) {
      const double left = z[a] * dot(&F[a * n], r.data(), n);
      total += unpolished > 0 ? std::abs(left) : scale * left;
    }
    return (total + unpolished) / n;
  }

  // Newton's method for z alone.
  void polish() {
    const Index q = z.size();
    unpolished = 0;
    for (int step = 0; step < POLISHES && q > 0; ++step) {
      Vector h(q * q), d(q), along(n);
      bool done = true;
      pull();
      for (Index i = 0; i < n; ++i) along[i] = s[i] > 0 ? s[i] * loss.bend(y[i], u[i]) : 0;
      for (Index a = 0; a < q; ++a) {
        const T* column = &F[a * n];
        double total = 0;  // of what is rounded
        for (Index i = 0; i < n; ++i)
          total += std::abs(column[i]) * (std::abs(r[i]) + along[i] * std::abs(u[i]));
        d[a] = dot(column, r.data(), n);
        done &= std::abs(d[a]) <= 16 * std::numeric_limits<T>::epsilon() * total;
      }
      unpolished = 0;
      if (done) return;
      for (Index a = 0; a < q; ++a)
        for (Index b = 0; b <= a; ++b)
          for (Index i = 0; i < n; ++i) h[a * q + b] += along[i] * F[a * n + i] * F[b * n + i];
      for (Index a = 0; a < q; ++a) {
        h[a * q + a] *= 1 + SAFETY;
        if (d[a] != 0) unpolished += std::abs(d[a]) * (std::abs(d[a]) / h[a * q + a]);
      }
      if (!solve(h, d)) return;
      std::fill(along.begin(), along.end(), T(0));
      for (Index a = 0; a < q; ++a) axpy(d[a], &F[a * n], along.data(), n);
      if (!(step_along(along, {}, nullptr, d) > 0)) return;
    }
  }

  // Moves by the longest of a few parts of a step that does not raise the objective; its length.
  double step_along(const Vector& along, const Indices& set, const T* to, const Vector& dz) {
    const double now = value(u) + cost(w, set);
    const Indices on = features(set);
    Vector from(w, w + (set.empty() ? 0 : p)), there(n);
    double length = 1;
    for (int half = 0; half < HALVINGS; ++half, length /= 2) {
      for (Index i = 0; i < n; ++i) there[i] = u[i] + length * along[i];
      for (size_t i = 0; i < on.size(); ++i)
        w[on[i]] = length == 1 ? to[i] : T(from[on[i]] + length * (to[i] - from[on[i]]));
      if (value(there) + cost(w, set) <= now + 1e-15 * std::abs(now)) {
        u.swap(there);
        for (size_t a = 0; a < z.size(); ++a) z[a] += length * dz[a];
        return length;
      }
    }
    for (Index j : on) w[j] = from[j];
    return 0;
  }

  void inner(const Indices& set, double target, int most) override {
    const Indices on = features(set);
    X.need(on);
    for (int round = 0; round < most; ++round) {
      const double length = newton(set, on, std::max(SHARE * gap, SHARE * target));
      ++rounds;
      polish();
      pull();
      look(set);
      measure(set);
      if (!(gap > target) || !(length > 0)) break;
    }
  }

  // A step to the solution of the quadratic model over some blocks; its length.
  double newton(const Indices& set, const Indices& on, double target) {
    const Index q = on.size(), k = z.size();
    const Vector root = roots();
    Vector basis(F), upper(k * k), rest(n), there(q), m(q * k);
    for (Index a = 0; a < k; ++a)
      for (Index i = 0; i < n; ++i) basis[a * n + i] *= root[i];
    orthonormalize(basis, upper, k);
    typename Design::Part own = X.part(on, root);
    Design& part = own;
    // The model is to predict the residual and what the columns predict now.
    for (Index i = 0; i < n; ++i) rest[i] = root[i] > 0 ? r[i] / root[i] : 0;
    for (Index i = 0; i < q; ++i) part.add(i, there[i] = w[on[i]], rest.data());
    const Vector whole(rest);
    for (int twice = 0; twice < 2; ++twice)
      for (const T* unit = basis.data(); unit < basis.data() + k * n; unit += n)
        axpy(-dot(unit, rest.data(), n), unit, rest.data(), n);
    const Vector squares = project(part, basis, m, k);
    Gram<T> gram(q);
    LeastSquares<T, Design, Penalty> model(part, penalty.part(set), l2, tol, squares.data(),
                                           there.data(), gram, rest.data(), m.data(), basis.data(), k);
    Indices all;
    for (Index b = 0; b < model.blocks; ++b)
      if (model.movable(b)) all.push_back(b);
    model.recompute();
    model.inner(all, target, MOST);
    return follow(set, on, part, there, whole, basis, upper);
  }

  // Of the second derivatives of the losses.
  Vector roots() const {
    Vector found(n);
    for (Index i = 0; i < n; ++i)
      found[i] = s[i] > 0 ? std::sqrt(s[i] * loss.bend(y[i], u[i])) : 0;
    return found;
  }

  // Inner products m (p, k) of columns and basis; squares of the columns without their part in it.
  Vector project(const Design& part, const Vector& basis, Vector& m, Index k) const {
    Vector squares(part.p);
    for (Index j = 0; j < part.p; ++j) {
      const double before = part.square(j);
      double left = before;
      for (Index a = 0; a < k; ++a) {
        const T product = m[j * k + a] = part.product(j, &basis[a * n]);
        left -= double(product) * product;
      }
      squares[j] = left > 1e-12 * before ? left : 0;
    }
    return squares;
  }

  // Moves from the current point towards the solution of a model.
  double follow(const Indices& set, const Indices& on, Design& part,
                const Vector& there, Vector rest, const Vector& basis,
                const Vector& upper) {
    const Index k = z.size();
    Vector along(n), dz(k);
    for (size_t i = 0; i < on.size(); ++i) part.add(i, -there[i], rest.data());
    for (Index a = 0; a < k; ++a) dz[a] = dot(&basis[a * n], rest.data(), n);
    for (Index a = k; a--;) {  // upper z = dz; columns that depend on others get 0
      for (Index b = a + 1; b < k; ++b) dz[a] -= upper[a * k + b] * dz[b];
      dz[a] = upper[a * k + a] > 0 ? dz[a] / upper[a * k + a] : 0;
    }
    for (size_t i = 0; i < on.size(); ++i)
      if (there[i] != w[on[i]]) X.add(on[i], there[i] - w[on[i]], along.data());
    for (Index a = 0; a < k; ++a) axpy(dz[a], &F[a * n], along.data(), n);
    return step_along(along, set, there.data(), dz);
  }

  // Orthonormal rows in place of k rows, twice Gram and Schmidt; rows = upper^T times these.
  void orthonormalize(Vector& rows, Vector& upper, Index k) const {
    for (Index a = 0; a < k; ++a) {
      T* row = &rows[a * n];
      const double before = std::sqrt(double(dot(row, row, n)));
      for (int twice = 0; twice < 2; ++twice)
        for (Index b = 0; b < a; ++b) {
          const T share = dot(&rows[b * n], row, n);
          upper[b * k + a] += share;
          axpy(-share, &rows[b * n], row, n);
        }
      const double size = std::sqrt(double(dot(row, row, n)));
      const bool fresh = size > 1e-10 * before && size > 0;
      upper[a * k + a] = fresh ? size : 0;
      for (Index i = 0; i < n; ++i) row[i] = fresh ? row[i] / size : 0;
    }
  }
};
