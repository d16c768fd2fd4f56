// Products of one to eight rows with only some units of a matrix on a CPU, as calls that XLA makes.
// Compiled on the user's machine when first used (see _native.py).
//
// The weights of a unit are contiguous, so only those of active units are read.

#include "products.h"

namespace {

using Int = ffi::Buffer<ffi::S32>;

constexpr char kSet[] = "the set refers to units that do not exist; make it with a selector.";

// Whether the weights are (n, size, d), or (n, d) for units of one.
template <typename Shape>
bool Units(const Shape& weights, int64_t size) {
  return weights.size() == 3 ? weights[1] == size : weights.size() == 2 && size == 1;
}

// Lists of units, `size` rows of W each: one list for all tokens, or one for each of them.
struct Lists {
  Int index, count;
  int64_t slots, units, size;
  bool each = index.dimensions().size() == 2;
  std::vector<int64_t> rows = {};  // of the list read last

  int64_t together() const { return each ? 1 : kMost; }
  bool Fit(int64_t tokens) const {
    int64_t lists = each ? tokens : 1;
    return int64_t(index.element_count()) == lists * slots && int64_t(count.element_count()) == lists;
  }
  // Reads the rows for a token; false if a unit does not exist.
  bool Read(int64_t t) {
    if (t && !each) return true;
    const int32_t* list = index.typed_data() + (each ? t * slots : 0);
    int32_t length = count.typed_data()[each ? t : 0];
    if (length < 0 || length > slots) return false;
    rows.clear();
    rows.reserve(length * size);
    for (int32_t j = 0; j < length; ++j) {
      if (list[j] < 0 || list[j] >= units) return false;
      for (int64_t i = 0; i < size; ++i) rows.push_back(list[j] * size + i);
    }
    return true;
  }
};

// y = sum_j h_j w[index_j], one list for all rows of h or one for each.
ffi::Error ActiveReduce(ffi::ThreadPool pool, In h, AnyBuffer w, Int index, Int count, Out y) {
  auto shape = h.dimensions(), weights = w.dimensions();
  if (shape.size() != 3 || !Units(weights, shape[2])) return Invalid(kShapes);
  int64_t tokens = shape[0], slots = shape[1], size = shape[2];
  int64_t units = weights[0], d = weights[weights.size() - 1];
  Lists lists{index, count, slots, units, size};
  if (y->dimensions().size() != 2 || y->dimensions()[0] != tokens || y->dimensions()[1] != d ||
      !lists.Fit(tokens)) {
    return Invalid(kShapes);
  }
  const std::vector<int64_t>& rows = lists.rows;
  for (int64_t t = 0; t < tokens; t += lists.together()) {
    if (!lists.Read(t)) return Invalid(kSet);
    int64_t stride = slots * size, some = std::min(lists.together(), tokens - t);
    bool known = Contract(pool, some, {{w.element_type(), w.untyped_data(), rows.data(),
                                        int64_t(rows.size()), h.typed_data() + t * stride, stride, d,
                                        y->typed_data() + t * d}});
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

// u_j = x w[index_j]^T, zero from `count` on.
ffi::Error ActiveExpand(ffi::ThreadPool pool, In x, AnyBuffer w, Int index, Int count, Out u) {
  auto shape = u->dimensions(), weights = w.dimensions();
  if (shape.size() != 3 || !Units(weights, shape[2])) return Invalid(kShapes);
  int64_t tokens = shape[0], slots = shape[1], size = shape[2];
  int64_t units = weights[0], d = weights[weights.size() - 1];
  Lists lists{index, count, slots, units, size};
  if (x.dimensions().size() != 2 || x.dimensions()[0] != tokens || x.dimensions()[1] != d ||
      !lists.Fit(tokens)) {
    return Invalid(kShapes);
  }
  const std::vector<int64_t>& rows = lists.rows;
  for (int64_t t = 0; t < tokens; t += lists.together()) {
    if (!lists.Read(t)) return Invalid(kSet);
    int64_t some = std::min(lists.together(), tokens - t), used = rows.size();
    float* to = u->typed_data() + t * slots * size;
    for (int64_t i = 0; i < some; ++i) {
      std::fill(to + i * slots * size + used, to + (i + 1) * slots * size, 0.f);
    }
    bool known = WithType(w, [&](auto p) {
      if (used) {
        Produce(pool, x.typed_data() + t * d, p, rows.data(), used, d, to, slots * size, some);
      }
    });
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

// y = x W, reading only the rows of W for which some row of x is not zero.
ffi::Error SkippingProduct(ffi::ThreadPool pool, In x, AnyBuffer w, Out y) {
  auto shape = x.dimensions(), weights = w.dimensions();
  if (shape.size() != 2 || weights.size() != 2 || shape[1] != weights[0]) return Invalid(kShapes);
  int64_t tokens = shape[0], k = shape[1], d = weights[1];
  if (y->dimensions().size() != 2 || y->dimensions()[0] != tokens || y->dimensions()[1] != d) {
    return Invalid(kShapes);
  }
  std::vector<int64_t> rows;
  std::vector<float> h;
  for (int64_t t = 0; t < tokens; t += kMost) {
    int64_t some = std::min<int64_t>(kMost, tokens - t);
    const float* from = x.typed_data() + t * k;
    rows.clear();
    for (int64_t i = 0; i < k; ++i) {
      bool used = false;
      for (int64_t r = 0; r < some; ++r) used |= from[r * k + i] != 0;
      if (used) rows.push_back(i);
    }
    h.resize(some * rows.size());
    for (int64_t r = 0; r < some; ++r) {
      for (size_t j = 0; j < rows.size(); ++j) h[r * rows.size() + j] = from[r * k + rows[j]];
    }
    int64_t count = rows.size();
    bool known = Contract(pool, some, {{w.element_type(), w.untyped_data(), rows.data(), count,
                                        h.data(), count, d, y->typed_data() + t * d}});
    if (!known) return Invalid(kTypes);
  }
  return ffi::Error::Success();
}

auto Call() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().Arg<AnyBuffer>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxActiveReduce, ActiveReduce,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxActiveExpand, ActiveExpand,
                              Call().Arg<Int>().Arg<Int>().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxSkippingProduct, SkippingProduct, Call().Ret<In>());
