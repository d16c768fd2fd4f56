// Products of dense float32 matrices with block-sparse and N:M matrices on a CPU, as calls that
// XLA makes. Compiled on the user's machine when first asked for (see _native.py).
//
// Everything is one small dense product, `Sums`, that stays in registers: entries of A are
// broadcast, rows of B are read as vectors. What differs is where the rows of B come from: stored
// blocks, values of columns that share their positions, or groups that are expanded on the way. Only
// where few entries of a group are stored, x changes places instead.

#include "native.h"

namespace {

constexpr int kRows = 6;
constexpr int64_t kWidth = kLanes * kVectors;
constexpr int64_t kChunk = 192;    // rows of x that stay in the cache while all of W passes
constexpr int64_t kColumns = 256;  // of an N:M matrix that are unpacked at once,
constexpr int64_t kDepth = 128;    // and rows of them

// v[place[i]] in lane i.
inline Vector Shuffle(Vector v, Lanes place) {
#if defined(__clang__)
  Vector to;
  for (int i = 0; i < kLanes; ++i) to[i] = v[place[i] & (kLanes - 1)];
  return to;
#else
  return __builtin_shuffle(v, place);
#endif
}

using In = ffi::Buffer<ffi::F32>;
using Int = ffi::Buffer<ffi::S32>;
using Out = ffi::ResultBuffer<ffi::F32>;

bool Matrix(const In& x, int64_t rows, int64_t columns) {
  auto shape = x.dimensions();
  return shape.size() == 2 && shape[0] == rows && shape[1] == columns;
}

// Whether there are `lists` lists of `slots` entries, and a count for each.
bool Lists(const Int& index, const Int& count, int64_t lists, int64_t slots) {
  auto shape = index.dimensions(), counts = count.dimensions();
  return shape.size() == 2 && shape[0] == lists && shape[1] == slots && counts.size() == 1 &&
         counts[0] == lists;
}

ffi::Error Invalid(const char* what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                    std::string("matmul(implementation=\"native\"): ") + what);
}

// Whether the first counts[i] of the `slots` entries of each list are at least 0 and below `end`.
// The lists are short beside the blocks that they refer to: one pass before the product.
bool Within(const int32_t* lists, const int32_t* counts, int64_t count, int64_t slots, int64_t end) {
  bool within = true;
  for (int64_t i = 0; i < count; ++i) {
    if (counts[i] < 0 || counts[i] > slots) return false;
    for (int64_t l = 0; l < counts[i]; ++l) {
      within &= lists[i * slots + l] >= 0 && lists[i * slots + l] < end;
    }
  }
  return within;
}

constexpr char kLists[] =
    "W refers to blocks out of its range, so its lists are damaged; make it with "
    "BlockArray.fromdense, or check it with W.validate().";
constexpr char kShapes[] =
    "the parts of W and x do not fit each other; make W with fromdense, or check it with "
    "W.validate().";

// Calls f with `rows`, 1 to kRows, as a constant.
template <int R = kRows, typename F>
inline void WithRows(int rows, const F& f) {
  if constexpr (R == 1) {
    f(std::integral_constant<int, 1>());
  } else if (rows == R) {
    f(std::integral_constant<int, R>());
  } else {
    WithRows<R - 1>(rows, f);
  }
}

// The same for as many vectors as `columns` need.
template <int V = kVectors, typename F>
inline void WithVectors(int64_t columns, const F& f) {
  if constexpr (V == 1) {
    f(std::integral_constant<int, 1>());
  } else if (columns > (V - 1) * kLanes) {
    f(std::integral_constant<int, V>());
  } else {
    WithVectors<V - 1>(columns, f);
  }
}

// Splits `count` rows as evenly as panels of at most kRows allow: f(first, rows).
template <typename F>
inline void Panels(int64_t begin, int64_t end, const F& f) {
  int64_t panels = (end - begin + kRows - 1) / kRows;
  for (int64_t i = 0; i < panels; ++i) {
    int64_t first = (end - begin) * i / panels, last = (end - begin) * (i + 1) / panels;
    f(begin + first, int(last - first));
  }
}

// A tile of a result, in registers.
template <int R, int V>
struct Sums {
  Vector at[R][V] = {};

  // += A B: A[r, k] at a[r * row + k * step], B[k, :] at b + k * stride.
  inline void Accumulate(const float* a, int64_t row, int64_t step, const float* b, int64_t stride,
                         int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) Add(a + k * step, row, b + k * stride);
  }

  // The same with A[r, k] at a[r * row + list[k]].
  inline void Gather(const float* a, int64_t row, const int32_t* list, const float* b,
                     int64_t stride, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) Add(a + list[k], row, b + k * stride);
  }

  inline void Add(const float* a, int64_t row, const float* b) {
    Vector w[V];
    for (int v = 0; v < V; ++v) w[v] = Load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) at[r][v] += a[r * row] * w[v];
    }
  }

  inline void Read(const float* y, int64_t row, int64_t columns) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) at[r][v] = Some(y + r * row + v * kLanes, columns - v * kLanes);
    }
  }

  inline void Write(float* y, int64_t row, int64_t columns) const {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        Keep(y + r * row + v * kLanes, at[r][v], columns - v * kLanes);
      }
    }
  }
};

// Tiles of rows begin to end of y, at most `Most` vectors wide: f(sums, row, column) adds to what is
// there, or to zeros if that is `fresh`.
template <int Most = kVectors, typename F>
inline void Tiles(float* y, int64_t stride, int64_t begin, int64_t end, int64_t columns, bool fresh,
                  const F& f) {
  for (int64_t c = 0; c < columns; c += Most * kLanes) {
    int64_t width = std::min<int64_t>(columns - c, Most * kLanes);
    WithVectors<Most>(width, [&](auto vectors) {
      Panels(begin, end, [&](int64_t row, int rows) {
        WithRows(rows, [&](auto r) {
          Sums<r(), vectors()> sums;
          if (!fresh) sums.Read(y + row * stride + c, stride, width);
          f(sums, row, c);
          sums.Write(y + row * stride + c, stride, width);
        });
      });
    });
  }
}

// y = x W. One task is a block column for a chunk of rows.
ffi::Error BlockProduct(ffi::ThreadPool pool, In x, In values, Int index, Int count, Out y) {
  auto shape = values.dimensions();
  int64_t m = x.dimensions()[0], k = x.dimensions()[1];
  int64_t columns = shape[0], slots = shape[1], bk = shape[2], bn = shape[3], n = columns * bn;
  const float *from = x.typed_data(), *stored = values.typed_data();
  const int32_t *lists = index.typed_data(), *counts = count.typed_data();
  float* to = y->typed_data();
  if (!Lists(index, count, columns, slots) || !Matrix(*y, m, n) || k % bk) return Invalid(kShapes);
  if (!Within(lists, counts, columns, slots, k / bk)) return Invalid(kLists);
  Parallel(pool, (m + kChunk - 1) / kChunk * columns, [=](int64_t task) {
    int64_t j = task % columns, begin = task / columns * kChunk, used = counts[j];
    const int32_t* list = lists + j * slots;
    const float* blocks = stored + j * slots * bk * bn;
    Tiles(to + j * bn, n, begin, std::min(begin + kChunk, m), bn, true,
          [&](auto& sums, int64_t row, int64_t c) {
            for (int64_t l = 0; l < used; ++l) {
              sums.Accumulate(from + row * k + list[l] * bk, k, 1, blocks + l * bk * bn + c, bn, bk);
            }
          });
  });
  return ffi::Error::Success();
}

// dy W^T, by the lists of block rows, whose blocks are transposed first.
ffi::Error BlockTransposed(ffi::ThreadPool pool, In dy, In values, Int index, Int slot, Int count,
                           Out dx) {
  auto shape = values.dimensions();
  int64_t m = dy.dimensions()[0], n = dy.dimensions()[1], bk = shape[2], bn = shape[3];
  int64_t rows = index.dimensions()[0], slots = index.dimensions()[1], k = rows * bk;
  const float *from = dy.typed_data(), *stored = values.typed_data();
  const int32_t *lists = index.typed_data(), *places = slot.typed_data();
  const int32_t* counts = count.typed_data();
  float* to = dx->typed_data();
  bool fits = Lists(index, count, rows, slots) && Lists(slot, count, rows, slots);
  if (!fits || !Matrix(*dx, m, k) || shape[0] * bn != n) return Invalid(kShapes);
  if (!Within(lists, counts, rows, slots, shape[0]) ||
      !Within(places, counts, rows, slots, shape[0] * shape[1])) {
    return Invalid(kLists);
  }
  Parallel(pool, (m + kChunk - 1) / kChunk * rows, [=](int64_t task) {
    int64_t i = task % rows, begin = task / rows * kChunk, end = std::min(begin + kChunk, m);
    std::vector<float> tile(counts[i] * bn * bk);
    for (int64_t l = 0; l < counts[i]; ++l) {
      const float* block = stored + int64_t(places[i * slots + l]) * bk * bn;
      for (int64_t a = 0; a < bk; ++a) {
        for (int64_t b = 0; b < bn; ++b) tile[(l * bn + b) * bk + a] = block[a * bn + b];
      }
    }
    Tiles(to + i * bk, k, begin, end, bk, true, [&](auto& sums, int64_t row, int64_t c) {
      for (int64_t l = 0; l < counts[i]; ++l) {
        sums.Accumulate(from + row * n + lists[i * slots + l] * bn, n, 1,
                        tile.data() + l * bn * bk + c, bk, bn);
      }
    });
  });
  return ffi::Error::Success();
}

// x^T dy where W stores blocks, zero in the padding.
ffi::Error BlockSampled(ffi::ThreadPool pool, In x, In dy, Int index, Int count, Out values) {
  auto shape = values->dimensions();
  int64_t m = x.dimensions()[0], k = x.dimensions()[1], n = dy.dimensions()[1];
  int64_t columns = shape[0], slots = shape[1], bk = shape[2], bn = shape[3];
  const float *left = x.typed_data(), *right = dy.typed_data();
  const int32_t *lists = index.typed_data(), *counts = count.typed_data();
  float* to = values->typed_data();
  bool fits = Lists(index, count, columns, slots) && Matrix(dy, m, columns * bn);
  if (!fits || k % bk) return Invalid(kShapes);
  if (!Within(lists, counts, columns, slots, k / bk)) return Invalid(kLists);
  Parallel(pool, columns, [=](int64_t j) {
    float* blocks = to + j * slots * bk * bn;
    std::fill(blocks + counts[j] * bk * bn, blocks + slots * bk * bn, 0.f);
    // Rows of dy lie far apart: those of this column beside each other, as many as stay in cache.
    std::vector<float> rows(std::min(m, kChunk) * bn);
    if (!m) std::fill(blocks, blocks + slots * bk * bn, 0.f);
    for (int64_t begin = 0; begin < m; begin += kChunk) {
      int64_t depth = std::min(kChunk, m - begin);
      for (int64_t r = 0; r < depth; ++r) {
        std::memcpy(&rows[r * bn], right + (begin + r) * n + j * bn, 4 * bn);
      }
      for (int64_t l = 0; l < counts[j]; ++l) {
        const float* from = left + begin * k + lists[j * slots + l] * bk;
        Tiles(blocks + l * bk * bn, bn, 0, bk, bn, begin == 0,
              [&](auto& sums, int64_t row, int64_t c) {
                sums.Accumulate(from + row, 1, k, rows.data() + c, bn, depth);
              });
      }
    }
  });
  return ffi::Error::Success();
}

// An N:M matrix: `code` holds the positions of a group's slots, of `width` bits each, in one number
// for a tile of columns; or, where `planes`, there is one number for each slot.
struct Grouped {
  int64_t n, m, groups, columns, tiles, width;
  bool planes;
  const float* values;
  const void* code;
  ffi::DataType type;

  // Positions are below m <= 2^width by their bits, or are found to be out of x where they are used.
  bool Fits(ffi::Span<const int64_t> code, int64_t k) const {
    int64_t bits = type == ffi::DataType::U8    ? 8
                   : type == ffi::DataType::U16 ? 16
                   : type == ffi::DataType::U32 ? 32
                                                : 0;
    bool packed = code.size() == 2 && code[0] == groups && n * width <= bits;
    bool apart = code.size() == 3 && code[0] == n && code[1] == groups && width <= bits;
    return n > 0 && m > 0 && m <= kDepth && k > (groups - 1) * m && k <= groups * m &&
           width >= 0 && m <= int64_t(1) << width && (planes ? apart : packed) &&
           (tiles ? columns % tiles == 0 : !columns);
  }

  // Positions of one slot in `count` tiles from the first on.
  void Positions(int64_t slot, int64_t group, int64_t first, int64_t count, int32_t* to) const {
    int64_t at = ((planes ? slot * groups : 0) + group) * tiles + first;
    int shift = planes ? 0 : int(slot * width);
    uint32_t mask = planes ? ~0u : (1u << width) - 1;
    auto decode = [&](auto* from) {
      for (int64_t i = 0; i < count; ++i) to[i] = uint32_t(from[at + i]) >> shift & mask;
    };
    if (type == ffi::DataType::U8) {
      decode(static_cast<const uint8_t*>(code));
    } else if (type == ffi::DataType::U16) {
      decode(static_cast<const uint16_t*>(code));
    } else {
      decode(static_cast<const uint32_t*>(code));
    }
  }

  const float* Values(int64_t slot, int64_t group, int64_t column) const {
    return values + (slot * groups + group) * columns + column;
  }
};

// Rows of B, `Width` columns of them beside each other: what one tile reads lies in one piece.
template <typename T, int64_t Width>
struct Rows {
  std::vector<T> data = std::vector<T>(kDepth * ((kColumns + Width - 1) / Width * Width));

  // Where a tile that begins at column c, a multiple of Width, finds its first row.
  T* At(int64_t c) { return data.data() + c * kDepth; }

  // f(to, c, count) for the pieces of one row.
  template <typename F>
  void Fill(int64_t row, int64_t columns, const F& f) {
    for (int64_t c = 0; c < columns; c += Width) {
      f(At(c) + row * Width, c, std::min(Width, columns - c));
    }
  }
};

// Columns of one tile: their values are rows of B, and the positions say which columns of x they
// meet.
void Shared(const Grouped& w, const float* x, float* y, int64_t k, int64_t begin, int64_t end,
            int64_t column, int64_t columns) {
  Rows<float, kWidth> rows;
  std::vector<int32_t> list(kDepth);
  int64_t filled = 0;
  bool fresh = true;
  auto flush = [&] {
    Tiles(y + column, w.columns, begin, end, columns, fresh,
          [&](auto& sums, int64_t row, int64_t c) {
            sums.Gather(x + row * k, k, list.data(), rows.At(c), kWidth, filled);
          });
    filled = 0, fresh = false;
  };
  for (int64_t g = 0; g < w.groups; ++g) {
    for (int64_t s = 0; s < w.n; ++s) {
      int32_t position;
      w.Positions(s, g, column * w.tiles / w.columns, 1, &position);
      int64_t at = g * w.m + position;
      if (at < 0 || at >= k) continue;  // a slot without use in the last group
      const float* values = w.Values(s, g, column);
      rows.Fill(filled, columns, [&](float* to, int64_t c, int64_t count) {
        std::memcpy(to, values + c, 4 * count);
      });
      list[filled] = int32_t(at);
      if (++filled == kDepth) flush();
    }
  }
  if (filled || fresh) flush();
}

// Groups as dense rows of B.
void Expanded(const Grouped& w, const float* x, float* y, int64_t k, int64_t begin, int64_t end,
              int64_t column, int64_t columns) {
  Rows<float, kWidth> rows;
  int32_t position[kColumns];
  int64_t step = kDepth / w.m;
  for (int64_t first = 0; first < w.groups; first += step) {
    int64_t last = std::min(first + step, w.groups);
    for (int64_t g = first; g < last; ++g) {
      for (int64_t s = 0; s < w.n; ++s) {
        const float* values = w.Values(s, g, column);
        w.Positions(s, g, column, columns, position);
        for (int64_t c = 0; c < columns; c += kLanes) {
          Vector value = Some(values + c, columns - c), zero = {};
          Lanes place;
          std::memcpy(&place, position + c, sizeof place);
          float* to = rows.At(c / kWidth * kWidth) + (g - first) * w.m * kWidth + c % kWidth;
          for (int32_t r = 0; r < w.m; ++r, to += kWidth) {
            Store(to, place == r ? value : s ? Load(to) : zero);
          }
        }
      }
    }
    int64_t from = first * w.m, depth = std::min(last * w.m, k) - from;
    Tiles(y + column, w.columns, begin, end, columns, first == 0,
          [&](auto& sums, int64_t row, int64_t c) {
            sums.Accumulate(x + row * k + from, k, 1, rows.At(c), kWidth, depth);
          });
  }
}

// Each stored value times the entry of x it selects: a group of x fits a vector, whose entries
// change places.
void Selected(const Grouped& w, const float* x, float* y, int64_t k, int64_t begin, int64_t end,
              int64_t column, int64_t columns) {
  constexpr int kWide = std::max(1, kVectors / 2);  // positions need registers, too
  constexpr int64_t kPart = kWide * kLanes;
  Rows<float, kPart> values;
  Rows<int32_t, kPart> positions;
  int32_t position[kColumns];
  int64_t step = std::max<int64_t>(1, kDepth / w.n);
  for (int64_t first = 0; first < w.groups; first += step) {
    int64_t last = std::min(first + step, w.groups);
    for (int64_t g = first; g < last; ++g) {
      for (int64_t s = 0; s < w.n; ++s) {
        const float* from = w.Values(s, g, column);
        w.Positions(s, g, column, columns, position);
        int64_t at = (g - first) * w.n + s;
        values.Fill(at, columns, [&](float* to, int64_t c, int64_t count) {
          std::memcpy(to, from + c, 4 * count);
          std::memcpy(positions.At(c) + at * kPart, position + c, 4 * count);
        });
      }
    }
    // Groups from here on are shorter than a vector in the last row of x.
    int64_t whole = std::clamp((k - kLanes) / w.m + 1, first, last);
    if (k < kLanes) whole = first;
    Tiles<kWide>(
        y + column, w.columns, begin, end, columns, first == 0,
        [&](auto& sums, int64_t row, int64_t c) {
          constexpr int R = std::extent_v<decltype(sums.at), 0>;
          constexpr int V = std::extent_v<decltype(sums.at), 1>;
          auto add = [&](int64_t g, auto group) {
            for (int64_t s = 0; s < w.n; ++s) {
              int64_t at = ((g - first) * w.n + s) * kPart;
              Vector value[V];
              Lanes place[V];
              for (int v = 0; v < V; ++v) {
                value[v] = Load(values.At(c) + at + v * kLanes);
                std::memcpy(&place[v], positions.At(c) + at + v * kLanes, sizeof place[v]);
              }
              for (int r = 0; r < R; ++r) {
                Vector entries = group(r);
                for (int v = 0; v < V; ++v) {
                  sums.at[r][v] += Shuffle(entries, place[v]) * value[v];
                }
              }
            }
          };
          for (int64_t g = first; g < whole; ++g) {
            add(g, [&](int r) { return Load(x + (row + r) * k + g * w.m); });
          }
          for (int64_t g = whole; g < last; ++g) {
            add(g, [&](int r) { return Some(x + (row + r) * k + g * w.m, k - g * w.m); });
          }
        });
  }
}

// y = x W for an N:M matrix W. One task is a panel of columns for a chunk of rows.
ffi::Error GroupedProduct(ffi::ThreadPool pool, In x, In values, ffi::AnyBuffer code, Out y,
                          int64_t length, int64_t width) {
  auto shape = values.dimensions();
  Grouped w;
  w.n = shape[0], w.groups = shape[1], w.columns = shape[2], w.m = length, w.width = width;
  w.planes = code.dimensions().size() == 3, w.tiles = code.dimensions().back();
  w.values = values.typed_data(), w.code = code.untyped_data(), w.type = code.element_type();
  int64_t m = x.dimensions()[0], k = x.dimensions()[1];
  if (!w.Fits(code.dimensions(), k) || !Matrix(*y, m, w.columns)) return Invalid(kShapes);
  if (!w.columns) return ffi::Error::Success();
  const float* from = x.typed_data();
  float* to = y->typed_data();
  // Few rows do not pay for what is expanded; entries that change places do not for half of them.
  bool selects = w.m <= kLanes && (2 * w.n < w.m || m <= 4);
  auto product = w.tiles < w.columns ? Shared : selects ? Selected : Expanded;
  int64_t side = w.tiles < w.columns ? w.columns / w.tiles : w.columns;
  int64_t parts = (side + kColumns - 1) / kColumns, panels = w.columns / side * parts;
  Parallel(pool, (m + kChunk - 1) / kChunk * panels, [=](int64_t task) {
    int64_t panel = task % panels, begin = task / panels * kChunk;
    int64_t column = panel % parts * kColumns, columns = std::min(kColumns, side - column);
    product(w, from, to, k, begin, std::min(begin + kChunk, m), panel / parts * side + column,
            columns);
  });
  return ffi::Error::Success();
}

auto Call() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().Arg<In>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxBlockProduct, BlockProduct,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxBlockTransposed, BlockTransposed,
                              Call().Arg<Int>().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxBlockSampled, BlockSampled,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxGroupedProduct, GroupedProduct,
                              Call().Arg<ffi::AnyBuffer>().Ret<In>().Attr<int64_t>("length")
                                  .Attr<int64_t>("width"));
