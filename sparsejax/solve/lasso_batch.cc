// The Lasso within XLA's programs: a batch of problems in one call, on XLA's threads.

#include "coordinate.h"
#include "native.h"

namespace {

template <ffi::DataType D> using Array = ffi::Buffer<D>;
template <ffi::DataType D> using Result = ffi::Result<ffi::Buffer<D>>;

// Of an operand with leading batch axes, each as long as the batch's or 1: the part of problem t.
template <class Buffer> auto part(const Buffer& x, const std::vector<int64_t>& batch, int64_t t) {
  auto shape = x.dimensions();
  int64_t own = 1, at = 0, stride = 1;
  for (size_t i = batch.size(); i < shape.size(); ++i) own *= shape[i];
  for (size_t i = batch.size(); i-- > 0; t /= batch[i]) {
    if (shape[i] != 1) at += stride * (t % batch[i]), stride *= shape[i];
  }
  return x.typed_data() + at * own;
}

// w and the gap; counts: working sets, rounds, size of the support, 0 or why it ended before.
template <class T, ffi::DataType D>
ffi::Error solve_batch(ffi::ThreadPool pool, Array<D> X, Array<D> y, Array<D> thresholds,
                       Array<D> l2, Array<D> tol, Array<D> norms, Array<D> w0, Result<D> w,
                       Result<D> gap, Result<ffi::S32> counts, int64_t max_steps, bool positive) {
  const auto shape = gap->dimensions();
  const std::vector<int64_t> batch(shape.begin(), shape.end());
  const auto dims = X.dimensions();
  if (dims.size() != batch.size() + 2) return ffi::Error::InvalidArgument("lasso: shapes");
  const Index n = dims[batch.size()], p = dims[batch.size() + 1];
  Parallel(pool, gap->element_count(), [&](int64_t t) {
    T* own = w->typed_data() + t * p;
    std::copy_n(part(w0, batch, t), p, own);
    const T* bounds = part(thresholds, batch, t);
    Rows<T> design(n, p, part(X, batch, t));
    Gram<T> gram(p);
    LeastSquares<T, Rows<T>, L1<T>> one(
        design, L1<T>{{std::vector<double>(bounds, bounds + p)}, positive}, *part(l2, batch, t),
        *part(tol, batch, t), part(norms, batch, t), own, gram, part(y, batch, t), nullptr, nullptr, 0);
    const Index result = one.run(max_steps), support = one.nonzero().size();
    bool empty = support == 0;  // where the gap is exactly 0, despite rounding
    for (Index j = 0; j < p && empty; ++j) 
      empty = !one.movable(j) || one.penalty.size(j, one.c.data()) <= bounds[j];
    gap->typed_data()[t] = empty && std::isfinite(one.gap) ? 0 : T(one.gap);
    int32_t* count = counts->typed_data() + 4 * t;
    count[0] = one.outer, count[1] = one.rounds, count[2] = support, count[3] = result;
  });
  return ffi::Error::Success();
}

}  // namespace

#define DEFINE(T, D, NAME)                                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, (solve_batch<T, ffi::D>),                              \
                                ffi::Ffi::Bind()                                             \
                                    .Ctx<ffi::ThreadPool>()                                  \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Arg<Array<ffi::D>>()                                    \
                                    .Ret<Array<ffi::D>>()                                    \
                                    .Ret<Array<ffi::D>>()                                    \
                                    .Ret<Array<ffi::S32>>()                                  \
                                    .Attr<int64_t>("max_steps")                              \
                                    .Attr<bool>("positive"))

DEFINE(float, F32, SparsejaxLassoFloat);
DEFINE(double, F64, SparsejaxLassoDouble);
