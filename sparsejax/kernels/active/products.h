// Products of one to eight rows with rows of matrices: sums of scaled rows (R), for one or several
// matrices at once, and inner products with rows (E).

#ifndef SPARSEJAX_PRODUCTS_H_
#define SPARSEJAX_PRODUCTS_H_

#include "rows.h"

namespace {

constexpr int64_t kWide = 16 * 1024;  // columns from which tasks are panels of them

// y[t, 0:d] = sum_j h[t * stride + j] w[rows[j]], for `count` rows of a matrix with d columns.
struct Sum {
  ffi::DataType type;
  const void* w;
  const int64_t* rows;
  int64_t count;
  const float* h;
  int64_t stride, d;
  float* y;

  int64_t bytes() const {
    return count * d * (type == ffi::F32 ? 4 : type == ffi::BF16 ? 2 : 1);
  }
};

// All sums, in one set of tasks; false if a type is not supported.
//
// Tasks are ranges of rows, whose sums are added at the end, since few columns of a row are slower to
// read than all; they are panels of columns where the sums would be large.
inline bool Contract(ffi::ThreadPool pool, int64_t tokens, const std::vector<Sum>& sums) {
  struct Task {
    const Sum* sum;
    int64_t first, last, begin, width;  // rows and columns
    int64_t part;                       // where its sums are, below 0 for y
  };
  int64_t bytes = 1, room = 0;
  for (const Sum& sum : sums) bytes += sum.bytes();
  int64_t most = Tasks(pool, bytes);
  std::vector<Task> tasks;
  for (const Sum& sum : sums) {
    bool panels = sum.d > kWide;
    int64_t lines = (sum.d + 63) / 64, rows = sum.count;
    int64_t own = std::clamp<int64_t>((most * sum.bytes() + bytes / 2) / bytes, 1,
                                      std::max<int64_t>(panels ? lines / 8 : rows / 16, 1));
    for (int64_t i = 0; i < own; ++i) {
      if (panels) {
        int64_t begin = lines * i / own * 64, end = std::min(lines * (i + 1) / own * 64, sum.d);
        tasks.push_back({&sum, 0, rows, begin, end - begin, -1});
      } else {
        tasks.push_back({&sum, rows * i / own, rows * (i + 1) / own, 0, sum.d, i ? room : -1});
        room += i ? tokens * sum.d : 0;
      }
    }
  }
  std::unique_ptr<float[]> parts(new float[room]);  // set by the tasks
  std::atomic<bool> known{true};
  Parallel(pool, tasks.size(), [&](int64_t index) {
    const Task& task = tasks[index];
    const Sum& sum = *task.sum;
    float* to = task.part < 0 ? sum.y + task.begin : parts.get() + task.part;
    WithRows(tokens, [&](auto constant) {
      constexpr int T = constant(), U = std::min(Together(T), 8);  // more are slower for whole rows
      for (int t = 0; t < T; ++t) std::fill_n(to + t * sum.d, task.width, 0.f);
      bool done = WithType(sum.type, sum.w, [&](auto w) {
        Groups<U>(w + task.begin, sum.rows, task.first, task.last, sum.d,
                  [&](int64_t j, int64_t step, auto u, auto at, auto next) {
                    Add<T, u()>(sum.h + j, sum.stride, step, at, next, to, sum.d, task.width);
                  });
      });
      if (!done) known = false;
    });
  });
  for (const Task& task : tasks) {
    if (task.part < 0) continue;
    const float* part = parts.get() + task.part;
    for (int64_t i = 0; i < tokens * task.width; ++i) task.sum->y[i] += part[i];
  }
  return known;
}

// u[t * stride + j] = x[t] . w[rows[j]] for `count` rows of a matrix with `depth` columns.
template <typename W>
void Produce(ffi::ThreadPool pool, const float* x, const W* w, const int64_t* rows, int64_t count,
             int64_t depth, float* u, int64_t stride, int64_t tokens) {
  int64_t tasks =
      std::clamp<int64_t>(count / 16, 1, Tasks(pool, count * depth * sizeof(W)));
  WithRows(tokens, [&](auto constant) {
    constexpr int T = constant(), U = T == 1 ? 8 : T == 2 ? 4 : 2;
    Parallel(pool, tasks, [=](int64_t task) {
      Groups<U>(w, rows, count * task / tasks, count * (task + 1) / tasks, depth,
                [&](int64_t j, int64_t step, auto together, auto at, auto next) {
                  Dot<T, together()>(x, at, next, depth, u + j, stride, step);
                });
    });
  });
}

}  // namespace

#endif  // SPARSEJAX_PRODUCTS_H_
