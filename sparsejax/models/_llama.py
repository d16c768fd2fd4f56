"""Decoders of the Llama family in NNX, with a cache of keys and values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from .._arguments import checked
from .._arrays import turned
from ._ids import ids_of


@checked(
    vocabulary="[1, inf)",
    width="[1, inf)",
    hidden="[1, inf)",
    layers="[1, inf)",
    heads="[1, inf)",
    key_heads="[1, inf)",
    head_size="[1, inf)",
    positions="[1, inf)",
    theta="(0, inf)",
    epsilon="(0, inf)",
    scaling="(0, inf)",
)
@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    r"""The sizes of a `Llama`.

    Attributes:
      vocabulary: Number of tokens.
      width: Width of the residual stream.
      hidden: Width of the feed-forward networks.
      layers: Number of layers.
      heads: Number of query heads.
      key_heads: Number of key and value heads; each serves heads / key_heads queries.
      head_size: Width of a head.
      theta: Base of the rotary frequencies theta^(-2i/head_size).
      epsilon: Epsilon of the norms.
      tied: Whether the embedding is the head too.
      interleaved: Whether rotary pairs are neighbours (2i, 2i+1), as in GGUF files, or halves
        (i, i + head_size/2), as at Hugging Face.
      scaling: The `rope_scaling` of type llama3: factor, low and high frequency factors and the
        original length; or (factor,) for the linear type.
      positions: Longest sequence of training; longer ones run, worse.
      bos: The token that begins a text, if one does.
      eos: The tokens that end one.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    theta: float = 10_000.0
    epsilon: float = 1e-5
    tied: bool = False
    interleaved: bool = False
    scaling: tuple[float, ...] = ()
    positions: int = 2048
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self):
        if self.heads % self.key_heads:
            raise ValueError(
                f"LlamaConfig: heads must be a multiple of key_heads, got {self.heads} and "
                f"{self.key_heads}."
            )
        if self.head_size % 2:
            raise ValueError(f"LlamaConfig: head_size must be even, got {self.head_size}.")
        if len(self.scaling) not in (0, 1, 4):
            raise ValueError(
                "LlamaConfig: scaling must be (), (factor,) or (factor, low, high, length), got "
                f"{self.scaling}."
            )

    def angles(self, places: Int[Array, "*b"]) -> Float[Array, "*b half"]:
        """The angles by which pairs of entries of queries and keys are turned at some places."""
        return places[..., None] * self._frequencies()

    def _frequencies(self) -> Float[Array, " half"]:
        plain = self.theta ** (-jnp.arange(0, self.head_size, 2) / self.head_size)
        if not self.scaling:
            return plain
        factor, *rest = self.scaling
        if not rest:
            return plain / factor
        # Llama 3: long waves are stretched by the factor, short ones kept, those between mixed.
        low, high, length = rest
        turns = length * plain / (2 * jnp.pi)
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        return plain * (kept + (1 - kept) / factor)


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in buffers of a fixed length.

    Attributes:
      keys: One array (batch, room, key heads, head size) per layer; one array with a leading axis
        of layers if the model scans.
      values: As `keys`.
      counts: Number of tokens so far, (batch,).
    """

    keys: Any
    values: Any
    counts: Int[Array, " batch"]


class Attended(NamedTuple):
    """The states that `Llama.features_by` returned for the tokens so far.

    Attributes:
      states: One pytree per layer; one pytree with a leading axis of layers if the model scans.
      counts: Number of tokens so far, (batch,).
    """

    states: Any
    counts: Int[Array, " batch"]


class Attention(nnx.Module):
    """Causal attention with grouped queries and rotary positions."""

    def __init__(self, config: LlamaConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.config = config
        self.query = linear(config.width, config.heads * config.head_size)
        self.key = linear(config.width, config.key_heads * config.head_size)
        self.value = linear(config.width, config.key_heads * config.head_size)
        self.out = linear(config.heads * config.head_size, config.width)
        # A module that gives all three projections at once, for decoding.
        self.projection: Any = nnx.data(None)

    def project(self, x):
        """Queries, keys and values."""
        if self.projection is not None:
            return self.projection(x)
        return self.query(x), self.key(x), self.value(x)

    def __call__(self, x, places, cache=None, attend=None):
        split = lambda y: y.reshape(*y.shape[:2], -1, self.config.head_size)  # noqa: E731
        q, k, v = map(split, self.project(x))
        angles = self.config.angles(places)
        q, k = (turned(y, angles, self.config.interleaved) for y in (q, k))
        if attend is not None:
            seen, cache = attend(q, k, v, cache)
        elif cache is None:
            seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        else:
            # Row b writes at its own place; what lies behind it is not seen.
            write = jax.vmap(lambda room, new, at: lax.dynamic_update_slice(room, new, (at, 0, 0)))
            k = write(cache[0], k.astype(cache[0].dtype), places[:, 0])
            v = write(cache[1], v.astype(cache[1].dtype), places[:, 0])
            mask = jnp.arange(k.shape[1]) <= places[:, None, :, None]
            cache = k, v
            k, v = k.astype(q.dtype), v.astype(q.dtype)
            seen = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.out(seen.reshape(*x.shape[:2], -1)), cache


class GatedMLP(nnx.Module):
    """The feed-forward network (silu(x Wgate) * (x Wup)) Wdown."""

    def __init__(self, config: LlamaConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.gate = linear(config.width, config.hidden)
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width)

    def __call__(self, x):
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def _norm(config: LlamaConfig, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.width, epsilon=config.epsilon, param_dtype=dtype, dtype=dtype, rngs=rngs
    )


class LlamaLayer(nnx.Module):
    """Attention and a gated feed-forward network, each on the normalised stream and added to it."""

    def __init__(self, config: LlamaConfig, dtype: Any, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, dtype, rngs)
        self.attention = Attention(config, dtype, rngs)
        self.norm = _norm(config, dtype, rngs)
        self.mlp = GatedMLP(config, dtype, rngs)

    def __call__(self, x, places, cache=None, *attend):
        seen, cache = self.attention(self.attention_norm(x), places, cache, *attend)
        x = x + seen
        return x + self.mlp(self.norm(x)), cache


@checked()
class Llama(nnx.Module):
    r"""A decoder of the Llama family: RMS norms, rotary positions, grouped queries, SwiGLU.

    For the residual stream x of each layer, x += attention(rms(x)), then
    x += (silu(rms(x) Wgate) * (rms(x) Wup)) Wdown; the logits are rms(x) Whead.

    Args:
      config: The sizes.
      scan: Whether the layers are one stack that `nnx.scan` runs: one layer is compiled, not all.
      dtype: Dtype of the parameters and of the computation; norms, rotary angles and softmax are
        computed in float32.
      rngs: Keys of the initial parameters.

    Reference:
      Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023 (arXiv
      2302.13971); Ainslie et al., GQA, 2023 (arXiv 2305.13245).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=2, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> model(jnp.array([[1, 2, 3]])).shape
      (1, 3, 50)
    """

    def __init__(
        self, config: LlamaConfig, *, scan: bool = False, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        self.config, self.scan = config, scan
        self.layers: Any  # a list of layers, or one stack of them
        self.embed = nnx.Embed(config.vocabulary, config.width, param_dtype=dtype, rngs=rngs)
        if scan:
            make = nnx.vmap(lambda rngs: LlamaLayer(config, dtype, rngs), in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=config.layers)(make)(rngs)
        else:
            self.layers = nnx.List([LlamaLayer(config, dtype, rngs) for _ in range(config.layers)])
        self.norm = _norm(config, dtype, rngs)
        self.head = nnx.data(None if config.tied else nnx.Linear(
            config.width, config.vocabulary, use_bias=False, param_dtype=dtype, rngs=rngs
        ))  # fmt: skip

    def __call__(
        self, ids: Integer[Array | np.ndarray, "batch length"], cache: Cache | None = None
    ) -> Any:
        """Logits (batch, length, vocabulary) of the next tokens.

        Args:
          ids: Tokens; where they are traced, one outside of the vocabulary makes its row NaN.
          cache: The tokens before them; its room must suffice, since tokens beyond it overwrite
            the last places.

        Returns:
          The logits; with a cache the logits and the cache with these tokens added.
        """
        x, cache = self.features(ids, cache)
        return self.logits(x) if cache is None else (self.logits(x), cache)

    def features(
        self, ids: Integer[Array | np.ndarray, "batch length"], cache: Cache | None = None
    ) -> tuple[Float[Array, "batch length width"], Cache | None]:
        """The stream behind the last layer, before its norm, and the cache with these tokens."""
        ids = ids_of("Llama", ids, self.config.vocabulary)
        counts = jnp.zeros(ids.shape[:1], jnp.int32) if cache is None else cache.counts
        places = counts[:, None] + jnp.arange(ids.shape[1])
        x = self.embed(ids)
        if cache is None:
            return self._run(x, places), None
        x, keys, values = self._run_cached(x, places, cache)
        return x, Cache(keys, values, counts + ids.shape[1])

    def features_by(
        self,
        attend: Callable[..., tuple[Any, Any]],
        ids: Integer[Array | np.ndarray, "batch length"],
        cache: Attended | None = None,
    ) -> tuple[Float[Array, "batch length width"], Attended]:
        """As `features`, with a function in place of the attention.

        Args:
          attend: `(q, k, v, state)`, queries and keys rotated, (batch, length, heads, size), to the
            output (batch, length, heads, size) and the state of the layer.
          ids: Tokens.
          cache: The tokens before them, with the states that `attend` returned for them.
        """
        ids = ids_of("Llama", ids, self.config.vocabulary)
        empty = None if self.scan else (None,) * self.config.layers
        cache = Attended(empty, jnp.zeros(ids.shape[:1], jnp.int32)) if cache is None else cache
        places = cache.counts[:, None] + jnp.arange(ids.shape[1])
        run = lambda x, layer, state: layer(x, places, state, attend)  # noqa: E731
        x, states = self.embed(ids), []
        if self.scan:
            scan = nnx.scan(run, in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
            x, states = scan(x, self.layers, cache.states)
        else:
            for layer, state in zip(self.layers, cache.states):
                x, state = run(x, layer, state)
                states.append(state)
            states = tuple(states)
        return x, Attended(states, cache.counts + ids.shape[1])

    def logits(
        self, x: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length vocabulary"]:
        """The logits of what `features` gives."""
        x = self.norm(x)
        return self.embed.attend(x) if self.head is None else self.head(x)

    def empty_cache(self, batch: int, room: int) -> Cache:
        """A cache for `room` tokens in each of `batch` rows."""
        config = self.config
        shape = (batch, room, config.key_heads, config.head_size)
        dtype = self.embed.embedding[...].dtype
        if self.scan:
            empty = jnp.zeros((config.layers, *shape), dtype)
        else:
            empty = (jnp.zeros(shape, dtype),) * config.layers
        return Cache(empty, empty, jnp.zeros(batch, jnp.int32))

    def _run(self, x, places):
        if not self.scan:
            for layer in self.layers:
                x, _ = layer(x, places)
            return x
        step = nnx.scan(
            lambda x, layer: layer(x, places)[0], in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )
        return step(x, self.layers)

    def _run_cached(self, x, places, cache):
        if self.scan:

            def step(x, layer, keys, values):
                x, (keys, values) = layer(x, places, (keys, values))
                return x, keys, values

            scan = nnx.scan(step, in_axes=(nnx.Carry, 0, 0, 0), out_axes=(nnx.Carry, 0, 0))
            return scan(x, self.layers, cache.keys, cache.values)
        keys, values = [], []
        for layer, *old in zip(self.layers, cache.keys, cache.values):
            x, (k, v) = layer(x, places, tuple(old))
            keys.append(k)
            values.append(v)
        return x, tuple(keys), tuple(values)
