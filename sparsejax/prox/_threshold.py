"""Thresholding operators without a penalty or a step."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact

from .._arguments import checked, checked_number, known
from .._sharding import on_host
from ._concave import MCP
from ._elementwise import L1
from ._penalty import Elementwise, Leaf, Penalty, register


@checked()
def soft_threshold(x: ArrayLike, a: ArrayLike) -> Inexact[Array, "..."]:
    """Soft thresholding `sign(x) max(|x| - a, 0)`; complex x by modulus and phase.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.soft_threshold(jnp.array([3.0, -0.5]), 1.0).tolist()
      [2.0, 0.0]
    """
    a = checked_number("a", a, "soft_threshold(x, 0.5)")
    return _apply(L1(a), x, a=a)


@checked()
def hard_threshold(x: ArrayLike, a: ArrayLike) -> Inexact[Array, "..."]:
    """Hard thresholding: x where `|x| > a`, else 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.hard_threshold(jnp.array([3.0, 1.0, -0.5]), 1.0).tolist()
      [3.0, 0.0, 0.0]
    """
    a = checked_number("a", a, "hard_threshold(x, 0.5)")
    return _apply(HardThreshold(a), x, a=a)


@checked()
def firm_threshold(x: ArrayLike, low: ArrayLike, high: ArrayLike) -> Inexact[Array, "..."]:
    """Firm thresholding: 0 up to low, x beyond high, linear between (`mcp` with a step of 1).

    Args:
      x: An array.
      low: Entries up to this are zeroed.
      high: Entries beyond this are kept, `high >= low`; equal to low it is hard thresholding.

    Reference:
      Gao and Bruce, WaveShrink with Firm Shrinkage, 1997.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.firm_threshold(jnp.array([0.5, 1.5, 3.0]), 1.0, 2.0).tolist()
      [0.0, 1.0, 3.0]
    """
    call = "firm_threshold(x, 0.5, 1.0)"
    low, high = (jnp.asarray(checked_number(*x, call)) for x in (("low", low), ("high", high)))
    if known(low, high) and (on_host(low) > on_host(high)).any():
        raise ValueError(f"high must be >= low, got {high} and {low}; for example {call}.")
    return _apply(MCP(low, high / jnp.where(low == 0, 1, low)), x, low=low, high=high)


@register
class HardThreshold(Elementwise):
    """Hard thresholding at `a` for every step: an operator without a penalty."""

    a: Leaf

    def _shrink(self, b: Array, t: Array) -> Array:
        del t
        return jnp.where(b <= self.a, 0, b)


def _apply(penalty: Penalty, x: ArrayLike, **thresholds: Any) -> Inexact[Array, "..."]:
    for name, a in thresholds.items():
        try:
            jnp.broadcast_shapes(jnp.shape(a), jnp.shape(x))
        except ValueError:
            raise ValueError(
                f"{name} of shape {jnp.shape(a)} must broadcast with x of shape {jnp.shape(x)}."
            ) from None
    return penalty.prox(jnp.asarray(x))
