"""Decoders whose small products run together, behind gates with thresholds."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from ..._arguments import checked
from ..._tree import expression
from ...formats import Skipping
from ...kernels import gated_layer, gated_mlp, gated_products, matmul
from ...models import Llama, generate
from ...nn import SparseKernel, replace
from ...select import Threshold
from ._contextual import prompt_tokens
from ._decode import skip_inputs
from ._gates import ActivationGate, InputGate

MOST = 8  # rows of a batch that are decoded together


class GateLimit(nnx.Variable):
    """The norms and the threshold of a gate."""


class FusedLinears(nnx.Module):
    """Linear layers of one input, behind gates: for a token of each row in one product.

    Args:
      layers: Layers with a `sj.formats.Skipping` kernel and without biases, with their gates.
      limits: The norms and threshold of each gate, as for `sj.kernels.gated_products`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 8, use_bias=False, rngs=nnx.Rngs(0)))
      >>> layer = activation_sparsity.skip_inputs(model).layers[0]
      >>> none = (jnp.ones(4), jnp.float32(-1))
      >>> fused = activation_sparsity.FusedLinears([layer], [none])
      >>> fused(jnp.ones((2, 1, 4)))[0].shape
      (2, 1, 8)
    """

    def __init__(self, layers: Sequence[Any], limits: Sequence[Any]):
        self.layers = nnx.List(layers)
        self.limits = nnx.List([GateLimit(limit) for limit in limits])

    def __call__(self, x: Shaped[Array, "b t d"]) -> tuple[Array, ...]:
        if not _one_token(x):
            return tuple(layer(x) for layer in self.layers)
        kernels = [layer.kernel[...] for layer in self.layers]
        limits = [limit.get_value() for limit in self.limits]
        return tuple(y[:, None] for y in gated_products(x[:, 0], kernels, limits))


class FusedMLP(nnx.Module):
    """A gated feed-forward network behind gates: for a token of each row in one product.

    Args:
      plain: The network, with `gate`, `up` and `down` as for `FusedLinears`.
      limits: The gates of the three, as for `sj.kernels.gated_mlp`.
      by_neuron: Whether the second is a gate of neurons (CATS); Wup is then stored transposed, too.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> mlp = activation_sparsity.skip_inputs(model).layers[0].mlp
      >>> none = [(jnp.ones(n), jnp.float32(-1)) for n in (16, 16, 32)]
      >>> activation_sparsity.FusedMLP(mlp, none)(jnp.ones((2, 1, 16))).shape
      (2, 1, 16)
    """

    def __init__(self, plain: Any, limits: Sequence[Any], *, by_neuron: bool = False):
        self.plain, self.by_neuron = plain, by_neuron
        self.limits = nnx.List([GateLimit(limit) for limit in limits])
        up = plain.up.kernel[...]
        self.by_output = nnx.data(nnx.Variable(up.todense().T) if by_neuron else None)

    def __call__(self, x: Shaped[Array, "b t d"]) -> Shaped[Array, "b t d"]:
        if not _one_token(x):
            return self.plain(x)
        limits = [limit.get_value() for limit in self.limits]
        return gated_mlp(x[:, 0], self.kernels, limits, by_neuron=self.by_neuron)[:, None]

    @property
    def kernels(self) -> tuple[Skipping, ...]:
        """Those of gate, up and down as `sj.kernels.gated_mlp` takes them."""
        layers = (self.plain.gate, self.plain.up, self.plain.down)
        gate, up, down = (layer.kernel[...] for layer in layers)
        return gate, up if self.by_output is None else Skipping(self.by_output[...]), down


class FusedLayer(nnx.Module):
    """A layer of a decoder behind gates: for a token of each row in one call, with its cache.

    Args:
      plain: The layer, with the attention and network of `fast_decoder`.
      limits: The gates of query, key, value, output, gate, up and down, as for
        `sj.kernels.gated_layer`.

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> layer = activation_sparsity.fast_decoder(model).layers[0]
      >>> isinstance(layer, activation_sparsity.FusedLayer)
      True
    """

    def __init__(self, plain: Any, limits: Sequence[Any]):
        self.plain = plain
        self.limits = nnx.List([GateLimit(limit) for limit in limits])

    @property
    def attention(self) -> Any:
        """The attention of the layer."""
        return self.plain.attention

    @property
    def mlp(self) -> Any:
        """The network of the layer."""
        return self.plain.mlp

    def __call__(self, x, places, cache=None, *attend):
        if cache is None or attend or not _one_token(x):
            return self.plain(x, places, cache, *attend)
        part, mlp = self.plain.attention, self.plain.mlp
        kernels = [layer.kernel[...] for layer in (part.query, part.key, part.value, part.out.only)]
        y, cache = gated_layer(
            x[:, 0], cache, places[:, 0], part.config.angles(places[:, 0]),
            (self.plain.attention_norm.scale[...], self.plain.norm.scale[...]),
            [*kernels, *mlp.kernels], [limit.get_value() for limit in self.limits],
            heads=part.config.heads, epsilon=part.config.epsilon,
            interleaved=part.config.interleaved, by_neuron=mlp.by_neuron,
        )  # fmt: skip
        return y[:, None], cache


def _one_token(x: Array) -> bool:
    return x.ndim == 3 and x.shape[1] == 1 and x.shape[0] <= MOST


class _Head(nnx.Module):
    """The logits, by a kernel that is stored by inputs."""

    def __init__(self, kernel: Skipping):
        self.kernel = SparseKernel(kernel)

    def __call__(self, x):
        return matmul(x, self.kernel[...])


@checked()
def fast_decoder(
    model: Llama,
    gates: Mapping[str, Any] | None = None,
    *,
    int8: bool = False,
    head: DTypeLike | None = None,
) -> Any:
    r"""A decoder behind gates that reads only the weights in use, in few calls for each token.

    The outputs are those of `sj.nn.replace(model, gates)`, up to rounding. `skip_inputs` with the
    layers of a token in one call each (`sj.kernels.gated_layer`), for batches of one to eight;
    prompts are multiplied as before. Gates without a threshold, as of `sj.select.TopK`, keep their
    products as of `skip_inputs`, and the others of such a layer are fused in parts
    (`sj.kernels.gated_products`, `sj.kernels.gated_mlp`).

    Args:
      model: A decoder with its layers in a list; it is not changed.
      gates: From `input_gates` or `activation_gates` with counts, or other taps as of
        `sj.nn.replace`; None for a dense decoder.
      int8: Whether to round the kernels of the layers to int8 with a scale per output.
      head: Dtype in which to store the head, which is not gated: float32, bfloat16 (half the bytes)
        or int8 with a scale per token; a tied one is copied. None keeps the head of the model.

    Raises:
      ValueError: If the layers are one stack, a gate matches no layer, the dtype of the head is
        another one, or it is given beside a gate of the head.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> counts = activation_sparsity.input_counts(model, [jnp.arange(9)[None]])
      >>> gates = activation_sparsity.input_gates(model, 0.5, counts)
      >>> fast = activation_sparsity.fast_decoder(model, gates)
      >>> slow = sj.nn.replace(model, gates)
      >>> sj.models.generate(fast, [[1, 2]], 4) == sj.models.generate(slow, [[1, 2]], 4)
      True
    """
    gates = {} if gates is None else dict(gates)
    made = skip_inputs(model, int8=int8)
    made = replace(made, gates) if gates else made
    for i, layer in enumerate(made.layers):
        made.layers[i] = _fused(layer, partial(_tap_of, gates, f"layers/{i}"), int8)
    if head is not None:
        if _tap_of(gates, "head") is not None:
            raise ValueError("fast_decoder: gates must leave the head to head=, got one for it.")
        made.head = _head_of(model, head)
    return made


def _tap_of(gates: Mapping[str, Any], *path: str) -> Any:
    """The tap that `sj.nn.replace` attaches to a module: the first match."""
    rules = ((expression("gates: the rule", where), tap) for where, tap in gates.items())
    return next((tap for where, tap in rules if where.search("/".join(path))), None)


def _fused(layer: Any, tap_of: Callable[..., Any], int8: bool) -> Any:
    """A layer whose products run together, as far as its taps are gates with thresholds."""
    part, mlp = layer.attention, layer.mlp
    taken = [tap_of(*names) for names in _NAMES]
    limits = [_limit(tap, w) for tap, w in zip(taken, _kernels(part, mlp))]
    if None not in limits[:3]:
        part.projection = FusedLinears((part.query, part.key, part.value), limits[:3])
    if limits[3] is not None:
        part.out = _First(FusedLinears([part.out], limits[3:4]))
    neurons = _neuron_limit(taken[4], mlp.gate.kernel[...])
    by_neuron = neurons is not None and not int8 and taken[5] is None
    if by_neuron and limits[6] is not None:
        limits[4:6] = _limit(None, mlp.gate.kernel[...]), neurons
    if None not in limits[4:] and tap_of("mlp") is None:
        layer.mlp = FusedMLP(mlp, limits[4:], by_neuron=by_neuron)
    # Norms of `orthogonalize` are others, and a call with a tap must be made.
    plain = all(isinstance(norm, nnx.RMSNorm) for norm in (layer.attention_norm, layer.norm))
    whole = plain and all(tap_of(*names) is None for names in _AROUND)
    return FusedLayer(layer, limits) if whole and None not in limits else layer


_NAMES = (
    ("attention", "query"), ("attention", "key"), ("attention", "value"), ("attention", "out"),
    ("mlp", "gate"), ("mlp", "up"), ("mlp", "down"),
)  # fmt: skip
# The modules around them, which one call of a layer replaces.
_AROUND = ((), ("attention",), ("mlp",), ("attention_norm",), ("norm",))


def _head_of(model: Llama, dtype: DTypeLike) -> Any:
    """The head in another dtype, behind no gate."""
    kernel = model.embed.embedding[...].T if model.head is None else model.head.kernel[...]
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.int8):
        raise ValueError(f"fast_decoder: head must be float32, bfloat16 or int8, got {dtype}.")
    if dtype == jnp.int8:
        made = Skipping.quantized(kernel)
    else:
        made = Skipping(jnp.asarray(kernel, dtype))
    return _First(FusedLinears([_Head(made)], [_limit(None, made)]))


def _kernels(part: Any, mlp: Any) -> list[Skipping]:
    layers = (part.query, part.key, part.value, part.out, mlp.gate, mlp.up, mlp.down)
    return [layer.kernel[...] for layer in layers]


class _First(nnx.Module):
    """The only output of fused layers."""

    def __init__(self, layers: FusedLinears):
        self.inner = layers

    @property
    def only(self) -> Any:
        """The only layer."""
        return self.inner.layers[0]

    def __call__(self, x):
        return self.inner(x)[0]


def _is_limit(selector: Any) -> TypeGuard[Threshold]:
    """Whether it is one threshold for all units."""
    return isinstance(selector, Threshold) and jnp.ndim(selector.tau) == 0


def _limit(tap: Any, w: Skipping) -> tuple[Array, Array] | None:
    """Norms and threshold of a gate, those of no gate without one; None for other taps."""
    ones = jnp.ones(w.shape[0], jnp.float32)
    if tap is None:
        return ones, jnp.float32(-1)
    if not isinstance(tap, InputGate) or not _is_limit(tap.selector):
        return None
    norms = ones if tap.norms is None else jnp.asarray(tap.norms, jnp.float32)
    return norms, jnp.float32(tap.selector.tau)


def _neuron_limit(tap: Any, w: Skipping) -> tuple[Array, Array] | None:
    """Those of a gate of neurons behind a SiLU; None for other taps."""
    if not isinstance(tap, ActivationGate) or not _is_limit(tap.selector):
        return None
    if tap.shared or tap.activation not in (nnx.silu, nnx.swish):
        return None
    return jnp.ones(w.shape[1], jnp.float32), jnp.float32(tap.selector.tau)


def _text(model: Any, ids: Any, steps: int, stop: tuple[int, ...] = (-1,)) -> list[int]:
    return generate(model, [ids], steps + 1, stop=stop)[0]


def _written_in(whole: float, read: float) -> float:
    """The time behind the prompt; with the prompt where noise is longer than that."""
    return whole - read if whole > read else whole


class Choice(NamedTuple):
    """The decoder to use, by measured speed.

    Attributes:
      name: Of the fastest candidate, or "dense" if none is faster.
      model: The decoder.
      speeds: Tokens per second by name, without the time to read the prompt, unless that is lost
        in the noise.
      text: A sentence with the reason.
    """

    name: str
    model: Any
    speeds: dict[str, float]
    text: str


@checked(steps="[1, inf)", rounds="[1, inf)")
def choose_decoder(
    dense: Llama,
    candidates: Mapping[str, Any],
    prompt: Any,
    *,
    steps: int = 16,
    rounds: int = 3,
) -> Choice:
    """Measures decoders on this machine and returns the fastest; the dense one where none gains.

    Sparse products are not faster everywhere: at low sparsity, for large batches, or without a C++
    compiler they lose.

    Args:
      dense: The decoder to compare with.
      candidates: Decoders by name, such as from `fast_decoder`; their texts differ from those of
        the dense one: check the perplexity.
      prompt: Token ids.
      steps: Tokens of a run.
      rounds: Runs of each; the best is compared.

    Raises:
      ValueError: If there are no candidates, or one is named "dense".

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> fast = activation_sparsity.fast_decoder(model)
      >>> choice = activation_sparsity.choose_decoder(model, {"fused": fast}, [1, 2], steps=2)
      >>> choice.name in ("dense", "fused"), sorted(choice.speeds)
      (True, ['dense', 'fused'])
    """
    if not candidates or "dense" in candidates:
        raise ValueError(
            "choose_decoder: candidates must be decoders by name, at least one, none named "
            f"'dense', got {sorted(candidates)}."
        )
    for name, model in candidates.items():
        if not isinstance(model, Llama):
            raise TypeError(
                f"choose_decoder: candidates must be decoders, got a {type(model).__name__} for "
                f"{name}."
            )
    ids = prompt_tokens("choose_decoder", prompt, dense)
    every = {"dense": dense, **candidates}
    # A token that no model writes, or the first one of its text, at which it stops.
    stops = {name: [(-1,), (_text(model, ids, steps)[0],)] for name, model in every.items()}
    best = {name: [float("inf")] * 2 for name in every}
    for _ in range(rounds):
        for name, model in every.items():
            for i, stop in enumerate(stops[name]):
                start = time.perf_counter()
                _text(model, ids, steps, stop)
                best[name][i] = min(best[name][i], time.perf_counter() - start)
    speeds = {name: steps / max(_written_in(*times), 1e-9) for name, times in best.items()}
    name = max(speeds, key=lambda name: speeds[name])
    ratio = max(speeds[other] for other in candidates) / speeds["dense"]
    text = f"{name} decodes fastest, {ratio:.2f} times dense."
    if name == "dense":
        text = f"dense: no candidate is faster; the best has {ratio:.2f} times its speed."
    return Choice(name, every[name], speeds, text)
