// The three layouts of a design X (n, p): columns, rows, and sparse columns.
//
// Each has: length(j), stored entries of a column, and entries() of all; square(j); product(j, r),
// x_j . r, and products of many columns; add(j, a, r), r += a x_j; need(which), what is about to be
// read column by column; gram(rows, with). Columns and sparse columns also have part(which, root), a copy
// of some columns with their rows scaled. Tasks repeats a design for several targets.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Index = int64_t;
using Indices = std::vector<Index>;

// Vectors as wide as the registers: GCC keeps wider ones in memory. ABREAST: columns of 4 x 4 sums
// at a time, as many as there are registers for.
#if defined(__AVX512F__)
constexpr int WIDTH = 64, ABREAST = 4;
#elif defined(__AVX__)
constexpr int WIDTH = 32, ABREAST = 2;
#else
constexpr int WIDTH = 16, ABREAST = 2;
#endif

template <class T> struct Simd {
  static constexpr int lanes = WIDTH / sizeof(T);
  typedef T type __attribute__((vector_size(WIDTH)));
  static type load(const T* at) {
    type v;
    std::memcpy(&v, at, sizeof(v));
    return v;
  }
  static T sum(type v) {
    T total = 0;
    for (int i = 0; i < lanes; ++i) total += v[i];
    return total;
  }
};

template <class T> T dot(const T* a, const T* b, Index n) {
  using S = Simd<T>;
  constexpr int L = S::lanes;
  typename S::type s[4] = {};
  Index i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int u = 0; u < 4; ++u) s[u] += S::load(a + i + u * L) * S::load(b + i + u * L);
  for (; i + L <= n; i += L) s[0] += S::load(a + i) * S::load(b + i);
  T total = S::sum((s[0] + s[1]) + (s[2] + s[3]));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

template <class T> void axpy(T scale, const T* a, T* b, Index n) {
  for (Index i = 0; i < n; ++i) b[i] += scale * a[i];
}

// out[4 i + j] = a_i . b_j for four vectors and four vectors.
template <class T> void sixteen_dots(const T* const* a, const T* const* b, Index n, T* out) {
  using S = Simd<T>;
  const Index whole = n - n % S::lanes;
  for (int j0 = 0; j0 < 4; j0 += ABREAST) {
    typename S::type s[4][ABREAST] = {};
    for (Index k = 0; k < whole; k += S::lanes) {
      typename S::type right[ABREAST];
      for (int j = 0; j < ABREAST; ++j) right[j] = S::load(b[j0 + j] + k);
      for (int i = 0; i < 4; ++i) {
        const auto left = S::load(a[i] + k);
        for (int j = 0; j < ABREAST; ++j) s[i][j] += left * right[j];
      }
    }
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < ABREAST; ++j) {
        T total = S::sum(s[i][j]);
        for (Index t = whole; t < n; ++t) total += a[i][t] * b[j0 + j][t];
        out[4 * i + j0 + j] = total;
      }
  }
}

// out (rows.size(), with.size()): inner products of dense columns, 4 x 4 at a time.
template <class T, class Column>
void dense_gram(const Column& column, Index n, const Indices& rows, const Indices& with, T* out) {
  const Index R = rows.size(), C = with.size();
  for (Index i = 0; i < R; i += 4)
    for (Index j = 0; j < C; j += 4) {
      const T *a[4], *b[4];
      T block[16];
      for (Index u = 0; u < 4; ++u) a[u] = column(rows[std::min(i + u, R - 1)]);
      for (Index v = 0; v < 4; ++v) b[v] = column(with[std::min(j + v, C - 1)]);
      sixteen_dots(a, b, n, block);
      for (Index u = 0; u < std::min<Index>(4, R - i); ++u)
        for (Index v = 0; v < std::min<Index>(4, C - j); ++v)
          out[(i + u) * C + j + v] = block[4 * u + v];
    }
}

template <class T> struct OwnColumns;
template <class T> struct OwnSparse;

// Fortran order.
template <class T> struct Columns {
  using Part = OwnColumns<T>;
  Part part(const Indices& which, const std::vector<T>& root) const;

  Index n, p;
  const T* x;

  Index length(Index) const { return n; }
  double entries() const { return double(n) * p; }
  const T* column(Index j) const { return x + j * n; }
  T square(Index j) const { return dot(column(j), column(j), n); }
  T product(Index j, const T* r) const { return dot(column(j), r, n); }
  void add(Index j, T scale, T* r) const { axpy(scale, column(j), r, n); }
  void products(const T* r, const Indices& which, T* out) const {
    for (Index j : which) out[j] = product(j, r);
  }
  void squares(T* out) const {
    for (Index j = 0; j < p; ++j) out[j] = square(j);
  }
  void need(const Indices&) {}
  void gram(const Indices& rows, const Indices& with, T* out) const {
    dense_gram([this](Index j) { return column(j); }, n, rows, with, out);
  }
};

template <class T> struct OwnColumns : Columns<T> {
  std::vector<T> values;
  OwnColumns(Index n, Index p) : Columns<T>{n, p, nullptr}, values(n * p) { this->x = values.data(); }
  OwnColumns(OwnColumns&&) = default;  // a copy would point to the values of another
};

template <class T> OwnColumns<T> Columns<T>::part(const Indices& which, const std::vector<T>& root) const {
  OwnColumns<T> found(n, which.size());
  for (size_t i = 0; i < which.size(); ++i)
    for (Index t = 0; t < n; ++t) found.values[i * n + t] = root[t] * column(which[i])[t];
  return found;
}

// C order: a pass over all columns reads rows; the columns of working sets are copied once.
template <class T> struct Rows {
  Index n, p;
  const T* x;
  Indices place;
  std::vector<std::vector<T>> kept;

  Rows(Index n, Index p, const T* x) : n(n), p(p), x(x), place(p, -1) {}
  Index length(Index) const { return n; }
  double entries() const { return double(n) * p; }
  const T* column(Index j) const { return kept[place[j]].data(); }
  T product(Index j, const T* r) const { return dot(column(j), r, n); }
  void add(Index j, T scale, T* r) const { axpy(scale, column(j), r, n); }
  void products(const T* r, const Indices& which, T* out) const {
    std::vector<T> all(p, 0);
    for (Index i = 0; i < n; ++i) axpy(r[i], x + i * p, all.data(), p);
    for (Index j : which) out[j] = all[j];
  }
  void squares(T* out) const {
    std::fill(out, out + p, T(0));
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < p; ++j) out[j] += x[i * p + j] * x[i * p + j];
  }
  void need(const Indices& which) {
    Indices missing;
    for (Index j : which)
      if (place[j] < 0) {
        place[j] = kept.size();
        kept.emplace_back(n);
        missing.push_back(j);
      }
    std::sort(missing.begin(), missing.end());
    for (Index i = 0; i < n; ++i)
      for (Index j : missing) kept[place[j]][i] = x[i * p + j];
  }
  void gram(const Indices& rows, const Indices& with, T* out) const {
    dense_gram([this](Index j) { return column(j); }, n, rows, with, out);
  }
};

// Compressed sparse columns, rows of a column in any order, without duplicates.
template <class T> struct Sparse {
  using Part = OwnSparse<T>;
  Part part(const Indices& which, const std::vector<T>& root) const;

  Index n, p;
  const T* x;
  const Index* start;
  const int32_t* row;
  mutable std::vector<T> dense;

  Index length(Index j) const { return start[j + 1] - start[j]; }
  double entries() const { return start[p]; }
  T square(Index j) const { return dot(x + start[j], x + start[j], start[j + 1] - start[j]); }
  T product(Index j, const T* r) const {
    T total = 0;
    for (Index k = start[j]; k < start[j + 1]; ++k) total += x[k] * r[row[k]];
    return total;
  }
  void add(Index j, T scale, T* r) const {
    for (Index k = start[j]; k < start[j + 1]; ++k) r[row[k]] += scale * x[k];
  }
  void products(const T* r, const Indices& which, T* out) const {
    for (Index j : which) out[j] = product(j, r);
  }
  void squares(T* out) const {
    for (Index j = 0; j < p; ++j) out[j] = square(j);
  }
  void need(const Indices&) {}
  void gram(const Indices& rows, const Indices& with, T* out) const {
    dense.assign(n, 0);
    for (size_t i = 0; i < rows.size(); ++i) {
      add(rows[i], 1, dense.data());
      for (size_t j = 0; j < with.size(); ++j) out[i * with.size() + j] = product(with[j], dense.data());
      for (Index k = start[rows[i]]; k < start[rows[i] + 1]; ++k) dense[row[k]] = 0;
    }
  }
};

template <class T> struct OwnSparse : Sparse<T> {
  std::vector<T> values;
  Indices starts = {0};
  std::vector<int32_t> rows;
  explicit OwnSparse(Index n) : Sparse<T>{n, 0, nullptr, nullptr, nullptr} {}
  OwnSparse(OwnSparse&&) = default;
};

template <class T> OwnSparse<T> Sparse<T>::part(const Indices& which, const std::vector<T>& root) const {
  OwnSparse<T> found(n);
  for (Index j : which) {
    for (Index k = start[j]; k < start[j + 1]; ++k) {
      found.values.push_back(root[row[k]] * x[k]);
      found.rows.push_back(row[k]);
    }
    found.starts.push_back(found.rows.size());
  }
  found.p = which.size(), found.x = found.values.data();
  found.start = found.starts.data(), found.row = found.rows.data();
  return found;
}

// A design for q targets at once: column j q + t is x_j in the rows of target t, of q n.
template <class Design, class T> struct Tasks {
  Design& X;
  Index q, n = X.n * q, p = X.p * q;

  Index length(Index j) const { return X.length(j / q); }
  double entries() const { return X.entries() * q; }
  T square(Index j) const { return X.square(j / q); }
  T product(Index j, const T* r) const { return X.product(j / q, r + j % q * X.n); }
  void add(Index j, T scale, T* r) const { X.add(j / q, scale, r + j % q * X.n); }
  void products(const T* r, const Indices& which, T* out) const {
    for (Index j : which) out[j] = product(j, r);
  }
  void need(const Indices&) {}
  void gram(const Indices& rows, const Indices& with, T* out) const {
    Indices left, right;  // each column once
    for (Index j : rows)
      if (left.empty() || left.back() != j / q) left.push_back(j / q);
    for (Index j : with)
      if (right.empty() || right.back() != j / q) right.push_back(j / q);
    std::vector<T> products(left.size() * right.size());
    X.gram(left, right, products.data());
    Index a = -1, last = -1;
    for (size_t i = 0; i < rows.size(); ++i) {
      a += rows[i] / q != last, last = rows[i] / q;
      Index b = -1, before = -1;
      for (size_t j = 0; j < with.size(); ++j) {
        b += with[j] / q != before, before = with[j] / q;
        const bool same = rows[i] % q == with[j] % q;
        out[i * with.size() + j] = same ? products[a * right.size() + b] : 0;
      }
    }
  }
};
