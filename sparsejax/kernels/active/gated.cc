// Products behind gates on a CPU, as calls that XLA makes: several matrices of the same input, a gated
// feed-forward network, and a layer of a decoder. Compiled on the user's machine when first used (see
// _native.py).

#include "layer.h"

namespace {

// y_j = (x kept by gate j) W_j for every (W, norms, limit, scale) of the arguments.
ffi::Error GatedProducts(ffi::ThreadPool pool, In x, ffi::RemainingArgs rest,
                         ffi::RemainingRets results) {
  auto shape = x.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMost) return Invalid(kShapes);
  int64_t tokens = shape[0], k = shape[1], count = results.size();
  if (int64_t(rest.size()) != 4 * count) return Invalid(kShapes);
  std::vector<Matrix> matrices(count);
  std::vector<float*> ys(count);
  for (int64_t j = 0; j < count; ++j) {
    auto y = results.get<In>(j);
    if (!y) return Invalid(kTypes);
    auto out = (*y)->dimensions();
    if (out.size() != 2 || out[0] != tokens) return Invalid(kShapes);
    if (const char* why = Read(rest, 4 * j, k, out[1], &matrices[j])) return Invalid(why);
    ys[j] = (*y)->typed_data();
  }
  Multiply(pool, x.typed_data(), tokens, matrices, ys);
  return ffi::Error::Success();
}

// y = (silu(x Wgate) * (x Wup)) Wdown for the matrices of the arguments, as (W, norms, limit, scale).
template <bool transposed>
ffi::Error GatedMLP(ffi::ThreadPool pool, In x, ffi::RemainingArgs rest, Out y) {
  auto shape = x.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMost || rest.size() != 12 ||
      !Alike(*y, x)) {
    return Invalid(kShapes);
  }
  Matrix three[3];
  if (const char* why = ReadNetwork<transposed>(rest, 0, shape[1], three)) return Invalid(why);
  Network<transposed>(pool, x.typed_data(), shape[0], three[0], three[1], three[2],
                      y->typed_data());
  return ffi::Error::Success();
}

// A layer of a decoder for one token of each row; see layer.h. The caches are written in place.
ffi::Error GatedLayer(ffi::ThreadPool pool, In x, In cos, In sin, ffi::Buffer<ffi::S32> counts,
                      In keys, In values, In first, In second, ffi::RemainingArgs rest, Out y,
                      Out new_keys, Out new_values, int64_t heads, bool interleaved,
                      bool by_neuron, float epsilon) {
  auto shape = x.dimensions(), room = keys.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[0] > kMost || room.size() != 4 ||
      !Alike(values, keys) || !Alike(*new_keys, keys) || !Alike(*new_values, keys) ||
      room[0] != shape[0] || rest.size() != 28 ||
      !Alike(*y, x)) {
    return Invalid(kShapes);
  }
  Layer layer{shape[0], shape[1], heads, room[2], room[3], room[1]};
  size_t halves = layer.tokens * layer.size / 2;
  if (layer.key_heads < 1 || heads % layer.key_heads || layer.size % 2 || layer.room < 1 ||
      cos.element_count() != halves || sin.element_count() != halves ||
      int64_t(counts.element_count()) != layer.tokens ||
      int64_t(first.element_count()) != layer.width ||
      int64_t(second.element_count()) != layer.width) {
    return Invalid(kShapes);
  }
  int64_t q = heads * layer.size, kv = layer.key_heads * layer.size;
  const int64_t inputs[] = {layer.width, layer.width, layer.width, q}, outputs[] = {q, kv, kv, layer.width};
  for (int j = 0; j < 4; ++j) {
    if (const char* why = Read(rest, 4 * j, inputs[j], outputs[j], &layer.matrices[j])) {
      return Invalid(why);
    }
  }
  Matrix* three = layer.matrices + 4;
  const char* why = by_neuron ? ReadNetwork<true>(rest, 16, layer.width, three)
                              : ReadNetwork<false>(rest, 16, layer.width, three);
  if (why) return Invalid(why);
  layer.cos = cos.typed_data(), layer.sin = sin.typed_data();
  layer.first = first.typed_data(), layer.second = second.typed_data();
  layer.interleaved = interleaved, layer.by_neuron = by_neuron, layer.epsilon = epsilon;
  layer.keys = Same(keys, new_keys), layer.values = Same(values, new_values);
  for (int64_t t = 0; t < layer.tokens; ++t) {
    // As lax.dynamic_update_slice: the last place for tokens beyond the room.
    layer.places[t] = std::clamp<int64_t>(counts.typed_data()[t], 0, layer.room - 1);
  }
  layer.Run(pool, x.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SparsejaxGatedProducts, GatedProducts,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SparsejaxGatedMLP, GatedMLP<false>,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().RemainingArgs().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SparsejaxGatedNeurons, GatedMLP<true>,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<In>().RemainingArgs().Ret<In>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SparsejaxGatedLayer, GatedLayer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<In>().Arg<In>().Arg<In>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<In>().Arg<In>().Arg<In>().Arg<In>()
                                  .RemainingArgs()
                                  .Ret<In>().Ret<In>().Ret<In>()
                                  .Attr<int64_t>("heads")
                                  .Attr<bool>("interleaved")
                                  .Attr<bool>("by_neuron")
                                  .Attr<float>("epsilon"));
