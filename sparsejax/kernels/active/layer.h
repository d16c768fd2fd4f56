// A layer of a decoder for one token of each row: attention with a cache, then a gated network.
//
//   x += out(attention(rms(x)));  y = x + network(rms(x))
//
// Queries and keys are turned by the angles of their place. All of it is one call: between the small
// products of a token XLA's other operations take as long as the products.

#ifndef SPARSEJAX_LAYER_H_
#define SPARSEJAX_LAYER_H_

#include "gated.h"

namespace {

constexpr int64_t kAhead = 12;     // places whose keys are fetched before they are read
constexpr int64_t kFew = 1 << 15;  // products of attention that one thread does alone

struct Layer {
  int64_t tokens, width, heads, key_heads, size, room;
  Matrix matrices[7];  // query, key, value, out, gate, up, down
  const float *cos, *sin;      // (tokens, size / 2)
  const float *first, *second;  // of the norms
  float *keys, *values;         // (tokens, room, key heads, size)
  bool interleaved, by_neuron;
  float epsilon;
  int64_t places[kMost];

  void Run(ffi::ThreadPool pool, const float* x, float* y) const {
    int64_t q = heads * size, kv = key_heads * size;
    std::vector<float> h(tokens * width), query(tokens * q), k(tokens * kv), v(tokens * kv);
    std::vector<float> seen(tokens * q), more(tokens * width);
    Normalize(x, first, h.data());
    Multiply(pool, h.data(), tokens, {matrices[0], matrices[1], matrices[2]},
             {query.data(), k.data(), v.data()});
    for (int64_t t = 0; t < tokens; ++t) {
      Turn(query.data() + t * q, heads, t);
      Turn(k.data() + t * kv, key_heads, t);
      int64_t to = (t * room + places[t]) * kv;
      std::copy_n(k.data() + t * kv, kv, keys + to);
      std::copy_n(v.data() + t * kv, kv, values + to);
    }
    Attend(pool, query.data(), seen.data());
    Multiply(pool, seen.data(), tokens, {matrices[3]}, {more.data()});
    for (int64_t i = 0; i < tokens * width; ++i) y[i] = x[i] + more[i];
    Normalize(y, second, h.data());
    auto network = by_neuron ? Network<true> : Network<false>;
    network(pool, h.data(), tokens, matrices[4], matrices[5], matrices[6], more.data());
    for (int64_t i = 0; i < tokens * width; ++i) y[i] += more[i];
  }

  // x / sqrt(mean x^2 + epsilon) times the weight.
  void Normalize(const float* x, const float* weight, float* to) const {
    for (int64_t t = 0; t < tokens; ++t, x += width, to += width) {
      double squares = 0;
      for (int64_t i = 0; i < width; ++i) squares += double(x[i]) * x[i];
      float factor = 1 / std::sqrt(squares / width + epsilon);
      for (int64_t i = 0; i < width; ++i) to[i] = x[i] * factor * weight[i];
    }
  }

  // Turns the pairs of some heads of a token.
  void Turn(float* x, int64_t count, int64_t token) const {
    int64_t half = size / 2;
    for (int64_t head = 0; head < count; ++head, x += size) {
      for (int64_t i = 0; i < half; ++i) {
        float c = cos[token * half + i], s = sin[token * half + i];
        float& a = interleaved ? x[2 * i] : x[i];
        float& b = interleaved ? x[2 * i + 1] : x[i + half];
        float turned = a * c - b * s;
        b = a * s + b * c;
        a = turned;
      }
    }
  }

  void Attend(ffi::ThreadPool pool, const float* query, float* seen) const {
    int64_t work = 0, group = heads / key_heads;
    for (int64_t t = 0; t < tokens; ++t) work += (places[t] + 1) * heads * size;
    auto one = [&](int64_t task) {
      int64_t token = task / key_heads, head = task % key_heads * group, end = head + group;
      for (int64_t some; head < end; head += some) {
        some = std::min<int64_t>(end - head, 4);
        WithRows<4>(some, [&](auto G) { AttendSome<G()>(query, seen, token, head); });
      }
    };
    if (work > kFew) return Parallel(pool, tokens * key_heads, one);
    for (int64_t task = 0; task < tokens * key_heads; ++task) one(task);
  }

  // For G heads of the same keys: the softmax over the places up to that of the token, times the
  // values.
  template <int G>
  void AttendSome(const float* query, float* seen, int64_t token, int64_t head) const {
    int64_t row = key_heads * size, count = places[token] + 1;
    int64_t from = token * room * row + head / (heads / key_heads) * size;
    const float *k = keys + from, *v = values + from;
    const float* q = query + (token * heads + head) * size;
    float* y = seen + (token * heads + head) * size;
    std::unique_ptr<float[]> memory(new float[G * count]);
    float *p = memory.get(), totals[G] = {}, scale = 1 / std::sqrt(float(size));
    for (int64_t j = 0; j < count; ++j) {
      Vector sums[G] = {};
      for (int64_t i = 0; i < size; i += kLanes) {
        Vector key = Some(k + j * row + i, size - i);
        __builtin_prefetch(k + std::min(j + kAhead, places[token]) * row + i);
        __builtin_prefetch(v + j * row + i);
        for (int g = 0; g < G; ++g) sums[g] += key * Some(q + g * size + i, size - i);
      }
      for (int g = 0; g < G; ++g) p[g * count + j] = Total(sums[g]) * scale;
    }
    for (int g = 0; g < G; ++g) {
      float *own = p + g * count, largest = -INFINITY;
      for (int64_t j = 0; j < count; ++j) {
        if (own[j] > largest) largest = own[j];  // NaN is not, and stays in the sum
      }
      for (int64_t j = 0; j < count; j += kLanes) {
        Keep(own + j, Exp(Some(own + j, count - j) - largest), count - j);
      }
      for (int64_t j = 0; j < count; ++j) totals[g] += own[j];
    }
    for (int64_t i = 0; i < size; i += kLanes) {
      Vector sums[G] = {};
      for (int64_t j = 0; j < count; ++j) {
        Vector value = Some(v + j * row + i, size - i);
        for (int g = 0; g < G; ++g) sums[g] += p[g * count + j] * value;
      }
      for (int g = 0; g < G; ++g) Keep(y + g * size + i, sums[g] / totals[g], size - i);
    }
  }
};

// The memory of a result that has replaced an argument, with its values.
inline float* Same(const In& argument, Out& result) {
  float* to = result->typed_data();
  if (to != argument.typed_data()) {
    std::memcpy(to, argument.typed_data(), argument.size_bytes());
  }
  return to;
}

}  // namespace

#endif  // SPARSEJAX_LAYER_H_
