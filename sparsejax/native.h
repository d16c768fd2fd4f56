// Vectors of float32 and tasks on XLA's threads, shared by the calls in C++.

#ifndef SPARSEJAX_NATIVE_H_
#define SPARSEJAX_NATIVE_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;  // 32 registers: 6 x 4 sums, 4 of B
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;  // 16 registers: 6 x 2 sums, 2 of B
#else
constexpr int kLanes = 4, kVectors = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));

inline Vector Load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void Store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// The same for vectors of which only `count` lanes are there, where it is less than all.
inline Vector Some(const float* p, int64_t count) {
  if (count >= kLanes) return Load(p);
  Vector v = {};
  std::memcpy(&v, p, 4 * count);
  return v;
}

inline void Keep(float* p, Vector v, int64_t count) {
  if (count >= kLanes) return Store(p, v);
  std::memcpy(p, &v, 4 * count);
}

// exp of each lane, to two units in the last place; 0 and infinity beyond the range.
inline Vector Exp(Vector x) {
  constexpr float kRound = 12582912;  // 1.5 * 2^23: the sum is rounded to an integer
  x = x < -104 ? Vector{} - 104 : x > 89 ? Vector{} + 89 : x;
  Vector n = (x * 1.44269504f + kRound) - kRound;
  Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector sum = {};
  for (float c : {1.9875691e-4f, 1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, .5f,
                  1.f, 1.f}) {
    sum = sum * r + c;
  }
  // 2^n as a product of two: one alone overflows or underflows at the ends.
  Lanes power = __builtin_convertvector(n, Lanes), half = power >> 1;
  Lanes bits[] = {(half + 127) << 23, (power - half + 127) << 23};
  Vector factors[2];
  std::memcpy(factors, bits, sizeof bits);
  return sum * factors[0] * factors[1];
}

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Runs work(i) for i < count on XLA's threads and this one. Waits for what has begun, not for
// threads to come free, so that calls that wait for each other's threads end.
template <typename Work>
void Parallel(ffi::ThreadPool pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all;
    std::atomic<int64_t> finished{0};
  };
  auto shared = std::make_shared<Shared>();
  auto run = [shared, count, &work] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) work(i);
    if (!mine) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->finished += mine) == count) shared->all.notify_all();
  };
  for (int64_t i = std::min(pool.num_threads(), count); i > 1; --i) pool.Schedule([run] { run(); });
  run();
  // Tasks are short: to be woken would take longer than most of them.
  for (int spins = 0; shared->finished.load() < count && spins < 200; ++spins) Pause();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->finished.load() == count; });
}

}  // namespace

#endif  // SPARSEJAX_NATIVE_H_
