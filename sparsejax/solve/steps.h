// Steps beside coordinate descent: Gram matrices and linear systems of Newton steps, Anderson
// extrapolation.

#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "designs.h"

constexpr int KEPT = 5;           // steps from which an Anderson step extrapolates
constexpr Index LARGEST = 4096;   // supports above this size take no Newton steps
constexpr int SQUARINGS = 6;      // for a bound of an eigenvalue: at most q^(1/64) too large

// A bound of the largest eigenvalue of A (q, q), semidefinite: the trace of A^64 to the power 1/64.
template <class T> double largest_eigenvalue(std::vector<T> a, Index q) {
  if (q == 1) return a[0];
  double logarithm = 0, power = 1;
  std::vector<T> next(q * q);
  for (int s = 0;; ++s) {
    double trace = 0;
    for (Index i = 0; i < q; ++i) trace += a[i * q + i];
    if (!(trace > 0)) return s == 0 ? 0 : std::exp(logarithm);
    logarithm += std::log(trace) * power;
    if (s == SQUARINGS) return std::exp(logarithm);
    for (T& x : a) x /= trace;
    Indices all(q);
    std::iota(all.begin(), all.end(), Index(0));
    dense_gram([&](Index i) { return &a[i * q]; }, q, all, all, next.data());
    a.swap(next);
    power /= 2;
  }
}

// Inner products of all columns that were in a support, kept for a whole path.
template <class T> struct Gram {
  Indices place, members;
  std::vector<T> values;  // members.size() rows of length room
  Index room = 0;
  std::vector<double> steep;  // bounds of the largest eigenvalue within blocks, negative: not yet

  explicit Gram(Index p) : place(p, -1) {}

  template <class Design> void include(Design& X, const Indices& which, const T* m, Index k) {
    Indices fresh;
    for (Index j : which)
      if (place[j] < 0) fresh.push_back(j);
    if (fresh.empty()) return;
    if ((Index)(members.size() + fresh.size()) > LARGEST) {
      for (Index j : members) place[j] = -1;
      members.clear();
      fresh = which;
    }
    const Index old = members.size(), count = old + fresh.size();
    if (count > room) grow(std::max<Index>(count, std::min(2 * room, LARGEST)), old);
    for (Index j : fresh) {
      place[j] = members.size();
      members.push_back(j);
    }
    std::vector<T> products(fresh.size() * count);
    X.gram(fresh, members, products.data());
    for (size_t i = 0; i < fresh.size(); ++i)
      for (Index c = 0; c < count; ++c) {
        const T* left = m + fresh[i] * k;
        const T* right = m + members[c] * k;
        T value = products[i * count + c] - dot(left, right, k);
        values[(old + i) * room + c] = values[c * room + old + i] = value;
      }
  }

  // A bound of the largest eigenvalue of the inner products within block b.
  template <class Design>
  double steepness(Design& X, const Indices& which, Index b, const T* m, Index k) {
    if (steep.empty()) steep.assign(place.size(), -1);
    if (steep[b] >= 0) return steep[b];
    const Index q = which.size();
    std::vector<T> products(q * q);
    X.gram(which, which, products.data());
    for (Index i = 0; i < q; ++i)
      for (Index j = 0; j < q; ++j) products[i * q + j] -= dot(m + which[i] * k, m + which[j] * k, k);
    return steep[b] = largest_eigenvalue(std::move(products), q);
  }

  void grow(Index size, Index old) {
    std::vector<T> larger(size * size);
    for (Index i = 0; i < old; ++i)
      std::copy_n(values.begin() + i * room, old, larger.begin() + i * size);
    values.swap(larger);
    room = size;
  }
};

// Solves A x = b in place by Cholesky, rows of the lower triangle; false if A is not definite.
template <class T> bool solve(std::vector<T>& a, std::vector<T>& b) {
  const Index q = b.size();
  constexpr Index TILE = 4;
  for (Index i0 = 0; i0 < q; i0 += TILE) {
    const Index i1 = std::min(i0 + TILE, q);
    for (Index j0 = 0; j0 <= i0; j0 += TILE) {  // what the columns before j0 contribute
      const T *left[4], *right[4];
      T block[16];
      for (Index u = 0; u < 4; ++u) left[u] = &a[std::min(i0 + u, q - 1) * q];
      for (Index v = 0; v < 4; ++v) right[v] = &a[std::min(j0 + v, q - 1) * q];
      sixteen_dots(left, right, j0, block);
      for (Index i = i0; i < i1; ++i)
        for (Index j = j0; j < std::min(j0 + TILE, i + 1); ++j) {
          T value = a[i * q + j] - block[4 * (i - i0) + j - j0];
          for (Index t = j0; t < j; ++t) value -= a[i * q + t] * a[j * q + t];
          if (i == j && !(value > 0)) return false;
          a[i * q + j] = i == j ? std::sqrt(value) : value / a[j * q + j];
        }
    }
  }
  for (Index i = 0; i < q; ++i) b[i] = (b[i] - dot(&a[i * q], b.data(), i)) / a[i * q + i];
  for (Index i = q; i--;) {
    b[i] /= a[i * q + i];
    axpy(-b[i], &a[i * q], b.data(), i);
  }
  return true;
}

// Anderson extrapolation of a sequence: its last iterates, combined so that their steps cancel.
template <class T> struct Anderson {
  std::vector<std::vector<T>> iterates;

  void clear() { iterates.clear(); }
  void push(std::vector<T> x) { iterates.push_back(std::move(x)); }
  bool full() const { return iterates.size() > KEPT; }

  bool extrapolate(std::vector<T>& out) const {
    const Index size = iterates[0].size();
    std::vector<double> products(KEPT * KEPT), z(KEPT, 1);
    std::vector<std::vector<T>> steps(KEPT, std::vector<T>(size));
    for (int i = 0; i < KEPT; ++i)
      for (Index t = 0; t < size; ++t) steps[i][t] = iterates[i + 1][t] - iterates[i][t];
    double trace = 0;
    for (int i = 0; i < KEPT; ++i)
      for (int j = 0; j <= i; ++j)
        products[i * KEPT + j] = dot(steps[i].data(), steps[j].data(), size);
    for (int i = 0; i < KEPT; ++i) trace += products[i * KEPT + i];
    for (int i = 0; i < KEPT; ++i) products[i * KEPT + i] += 1e-12 * trace;
    if (!solve(products, z)) return false;
    const double total = std::accumulate(z.begin(), z.end(), 0.0);
    if (!std::isfinite(total) || total == 0) return false;
    out.assign(size, 0);
    for (int i = 0; i < KEPT; ++i) axpy(T(z[i] / total), iterates[i + 1].data(), out.data(), size);
    return true;
  }
};
