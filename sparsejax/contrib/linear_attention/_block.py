"""A transformer block of norm-aware attention and depthwise convolutions."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_count
from ._layer import AttentionState, NormAwareAttention, convolve_step, depthwise, hide


class BlockState(NamedTuple):
    """The state of a causal `NormAwareBlock` after some tokens.

    Attributes:
      first: Inputs of the last two tokens of the first convolution.
      attention: State of the attention.
      second: Inputs of the last two tokens of the second convolution.
      hidden: Those of the convolution between the two products of the feed-forward network.
    """

    first: Float[Array, "b 2 d"]
    attention: AttentionState
    second: Float[Array, "b 2 d"]
    hidden: Float[Array, "b 2 h"]


class NormAwareBlock(nnx.Module):
    r"""The encoder block of NaLaFormer: attention and a network, each behind a convolution.

    `x += conv(x); x += attention(norm(x)); x += conv(x); x += network(norm(x))`, where the
    convolutions are depthwise of width 3 and the network is `Linear(h + conv(h))` with
    `h = gelu(Linear(x))`.

    Args:
      width: Features of x.
      heads: Number of heads.
      ratio: Features of the network over the width.
      axes: As for `NormAwareAttention`.
      causal: As for `NormAwareAttention`; the convolutions are causal too.
      map: As for `norm_aware`.
      rotary: As for `NormAwareAttention`.
      lepe: As for `NormAwareAttention`.
      chunk: As for `linear_attention`.
      param_dtype: Dtype of the parameters.
      rngs: Keys of the initial parameters.

    Raises:
      ValueError: As `NormAwareAttention`.

    Reference:
      Meng et al., NaLaFormer: Norm-Aware Linear Attention for Transformer Models, 2025 (arXiv
      2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import linear_attention
      >>> block = linear_attention.NormAwareBlock(8, 2, axes=2, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((3, 4, 5, 8))).shape
      (3, 4, 5, 8)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        ratio: int = 3,
        axes: int = 1,
        causal: bool = False,
        map: Literal["split", "cos"] = "split",
        rotary: bool = False,
        lepe: bool = True,
        chunk: int = 128,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_count("NormAwareBlock: ratio", ratio)
        more: Any = {"param_dtype": param_dtype, "rngs": rngs}
        self.attention = NormAwareAttention(
            width, heads, axes=axes, map=map, lepe=lepe, rotary=rotary, causal=causal, chunk=chunk,
            **more,
        )  # fmt: skip
        self.first, self.second = (depthwise(width, 3, axes, causal, **more) for _ in range(2))
        self.norms = nnx.List([nnx.LayerNorm(width, **more) for _ in range(2)])
        self.up = nnx.Linear(width, ratio * width, **more)
        self.hidden = depthwise(ratio * width, 3, axes, causal, **more)
        self.down = nnx.Linear(ratio * width, width, **more)

    def __call__(
        self, x: Shaped[Array, "..."], mask: Bool[Array, "..."] | None = None
    ) -> Shaped[Array, "..."]:
        """As for `NormAwareAttention`."""
        x = x + self.first(hide(x, mask))
        x = x + self.attention(self.norms[0](x), mask)
        x = x + self.second(hide(x, mask))
        h = jax.nn.gelu(self.up(self.norms[1](x)))
        return x + self.down(h + self.hidden(hide(h, mask)))

    def step(
        self, x: Shaped[Array, "b n d"], state: BlockState | None = None
    ) -> tuple[Shaped[Array, "b n d"], BlockState]:
        """As for `NormAwareAttention`."""
        first, attention, second, hidden = (None,) * 4 if state is None else state
        y, first = convolve_step(self.first, x, first, 3)
        x = x + y
        y, attention = self.attention.step(self.norms[0](x), attention)
        x = x + y
        y, second = convolve_step(self.second, x, second, 3)
        x = x + y
        h = jax.nn.gelu(self.up(self.norms[1](x)))
        y, hidden = convolve_step(self.hidden, h, hidden, 3)
        return x + self.down(h + y), BlockState(first, attention, second, hidden)
