"""Norm-aware attention as a layer, for sequences and images."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_count
from ._features import norm_aware
from ._products import LinearState, linear_attention, linear_attention_step
from ._rotary import rotary_angles, rotate


class AttentionState(NamedTuple):
    """The state of a causal `NormAwareAttention` after some tokens.

    Attributes:
      sums: Sums over all tokens.
      values: Values of the last four tokens, for the convolution.
    """

    sums: LinearState
    values: Float[Array, "b 4 d"]


class NormAwareAttention(nnx.Module):
    r"""Multi-head linear attention by `norm_aware` features, gated, for sequences and images.

    `y = Linear(LayerNorm(attention + lepe(v)) * silu(g))` with `q, k, v, g = Linear(x)`, where lepe
    is a depthwise convolution of width 5 of the values. Queries are divided by the root of the head
    size, so that their norms start near 1.

    Args:
      width: Features of x, a multiple of the heads.
      heads: Number of heads.
      axes: 1 for sequences (batch, n, width), 2 for images (batch, rows, columns, width).
      map: As for `norm_aware`.
      gated: Whether to norm and gate; else `y = Linear(attention + lepe(v))`.
      lepe: Whether to add the convolution.
      rotary: Whether to rotate the features of the numerator by their positions.
      causal: Whether a token sees no later one, for sequences; then `step` continues a text.
      chunk: As for `linear_attention`.
      param_dtype: Dtype of the parameters.
      rngs: Keys of the initial parameters.

    Raises:
      ValueError: If the heads do not divide the width, causal images are requested, or the size of
        a head cannot be rotated.

    Reference:
      Meng et al., NaLaFormer: Norm-Aware Linear Attention for Transformer Models, 2025 (arXiv
      2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import linear_attention
      >>> layer = linear_attention.NormAwareAttention(8, 2, axes=2, rotary=True, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((3, 4, 5, 8))).shape
      (3, 4, 5, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        axes: int = 1,
        map: Literal["split", "cos"] = "split",
        gated: bool = True,
        lepe: bool = True,
        rotary: bool = False,
        causal: bool = False,
        chunk: int = 128,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(width, heads, axes, map, rotary, causal)
        more: Any = {"param_dtype": param_dtype, "rngs": rngs}
        self.inputs = nnx.Linear(width, (4 if gated else 3) * width, use_bias=False, **more)
        self.outputs = nnx.Linear(width, width, **more)
        self.norm = nnx.data(nnx.LayerNorm(width, **more) if gated else None)
        self.lepe = nnx.data(depthwise(width, 5, axes, causal, **more) if lepe else None)
        self.map: Literal["split", "cos"] = map
        self.heads, self.axes, self.chunk = heads, axes, chunk
        self.rotary, self.causal = rotary, causal

    def __call__(
        self, x: Shaped[Array, "..."], mask: Bool[Array, "..."] | None = None
    ) -> Shaped[Array, "..."]:
        """The attention of whole sequences or images.

        Args:
          x: `(*batch, n, width)` or `(*batch, rows, columns, width)`.
          mask: False at tokens that are padding, of the shape of x without the last axis.
        """
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(
                f"NormAwareAttention: mask must have the shape {x.shape[:-1]} for x of shape "
                f"{x.shape}, got {mask.shape}."
            )
        space, width = x.shape[-1 - self.axes : -1], x.shape[-1]
        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, space), indexing="ij"), -1)
        rows = x.reshape(math.prod(x.shape[: -1 - self.axes]), *space, width)
        seen = None if mask is None else mask.reshape(rows.shape[:-1])
        q, k, v, g = self._projected(rows)
        v = hide(v, seen)
        fq, fk, more = self._features(q, k, places)
        flat = lambda f: f.reshape(len(rows), math.prod(space), *f.shape[-2:])  # noqa: E731
        y = linear_attention(
            flat(fq), flat(fk), flat(self._split(v)), causal=self.causal, chunk=self.chunk,
            mask=None if seen is None else seen.reshape(len(rows), math.prod(space)),
            rotated=more and tuple(flat(f) for f in more),
        )  # fmt: skip
        local = None if self.lepe is None else self.lepe(v)
        return self._finished(y.reshape(v.shape), local, g).reshape(x.shape)

    def step(
        self, x: Shaped[Array, "b n d"], state: AttentionState | None = None
    ) -> tuple[Shaped[Array, "b n d"], AttentionState]:
        """The attention of further tokens of causal sequences, and the state for the next ones.

        Args:
          x: The next n tokens, of a prompt or one.
          state: The state of the call before; None at the start.
        """
        if not self.causal:
            raise ValueError(
                "NormAwareAttention.step: causal must be True, got False; construct the layer "
                "with causal=True."
            )
        q, k, v, g = self._projected(x)
        sums, past = (None, None) if state is None else state
        first = jnp.zeros(len(x), jnp.int32) if sums is None else sums.count
        places = first[:, None, None] + jnp.arange(x.shape[1])[:, None]
        fq, fk, more = self._features(q, k, places)
        y, sums = linear_attention_step(
            fq, fk, self._split(v), sums, rotated=more, chunk=self.chunk
        )
        local, past = convolve_step(self.lepe, v, past, 5)
        return self._finished(y.reshape(v.shape), local, g), AttentionState(sums, past)

    def _projected(self, x: Array) -> tuple[Array, Array, Array, Array | None]:
        q, k, v, *g = jnp.split(self.inputs(x), 3 if self.norm is None else 4, -1)
        return q, k, v, g[0] if g else None

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _features(self, q: Array, k: Array, places: Array) -> tuple[Array, Array, Any]:
        """The features of denominator and numerator; None for the same."""
        q, k = self._split(q), self._split(k)
        size = q.shape[-1]
        fq, fk = norm_aware(q * size**-0.5, k, map=self.map)
        if not self.rotary:
            return fq, fk, None
        angles = rotary_angles(places, size)
        return fq, fk, (rotate(fq, angles), rotate(fk, angles))

    def _finished(self, y: Array, local: Array | None, g: Any) -> Array:
        y = y if local is None else y + local
        return self.outputs(y if self.norm is None else self.norm(y) * jax.nn.silu(g))


def _check(width: int, heads: int, axes: int, map: str, rotary: bool, causal: bool) -> None:
    what = "NormAwareAttention"
    check_count(f"{what}: width", width)
    check_count(f"{what}: heads", heads)
    if width % heads:
        raise ValueError(f"{what}: heads must divide the width {width}, got {heads}.")
    if map not in ("split", "cos"):
        raise ValueError(f"{what}: map must be 'split' or 'cos', got {map!r}.")
    if axes not in (1, 2):
        raise ValueError(f"{what}: axes must be 1 (sequences) or 2 (images), got {axes!r}.")
    if causal and axes == 2:
        raise ValueError(f"{what}: causal must be False for images, got True; write axes=1.")
    if rotary and width // heads % (2 * axes):
        raise ValueError(
            f"{what}: the size of a head must be a multiple of {2 * axes} with rotary=True, got "
            f"{width // heads}; change width or heads."
        )


def depthwise(width: int, size: int, axes: int, causal: bool, **more: Any) -> nnx.Conv:
    """A convolution of each channel, of earlier places only if causal."""
    padding = "CAUSAL" if causal else "SAME"
    return nnx.Conv(
        width, width, (size,) * axes, padding=padding, feature_group_count=width, **more
    )


def hide(x: Array, mask: Array | None) -> Array:
    """Zeros at padding, as beyond the border."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def convolve_step(
    conv: nnx.Conv | None, x: Array, past: Array | None, size: int
) -> tuple[Array | None, Array]:
    """A causal convolution of further places, and the last places for the next call."""
    if past is None:
        past = jnp.zeros((len(x), size - 1, x.shape[-1]), x.dtype)
    text = jnp.concatenate([past, x], 1)
    y = None if conv is None else conv(text)[:, size - 1 :]
    return y, text[:, text.shape[1] - (size - 1) :]
