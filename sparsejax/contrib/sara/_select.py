"""Selection of the entries of small magnitude."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ..._arguments import check_fraction, checked, is_nan_in
from ..._arrays import wide_dtype
from ..._topk import topk_masks
from ..._tree import expression, map_named, named_leaves


@checked(theta="[0, inf]")
def below_threshold(
    params: PyTree,
    theta: ArrayLike | None = None,
    *,
    fraction: float | None = None,
    where: str = "",
) -> PyTree:
    r"""Selects the entries of small magnitude, `|p| < theta`, over all leaves together.

    With `fraction`, theta is the (k+1)-th smallest magnitude of all, `k = floor(fraction n)`, so
    that k entries are below it, or fewer in case of ties.

    Args:
      params: A tree of arrays, biases and norms included.
      theta: The threshold; equal magnitudes are not below it.
      fraction: The fraction of entries to select, in [0, 1]; replaces theta.
      where: Regular expression for the paths of the leaves, all by default.

    Returns:
      A tree of masks; None for leaves that do not match or are not floats.

    Raises:
      ValueError: If not exactly one of theta and fraction is given, `where` matches nothing, or
        (outside jit) a leaf contains NaN.
      TypeError: If `fraction` is not a number.

    Reference:
      Hu et al., SaRA, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> params = {"a": jnp.array([0.1, 3.0]), "b": jnp.array([-0.2, 2.0])}
      >>> masks = sara.below_threshold(params, fraction=0.5)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([True, False], [True, False])
    """
    if (theta is None) == (fraction is None):
        raise ValueError(
            "below_threshold needs one of theta and fraction, not both: below_threshold(p, 2e-3) "
            "or below_threshold(p, fraction=0.1)."
        )
    sizes = {
        name: jnp.abs(p).astype(wide_dtype(p))
        for name, p in named_leaves(params).items()
        if expression("where", where).search(name) and jnp.issubdtype(p.dtype, jnp.floating)
    }
    if not sizes:
        raise ValueError(f"below_threshold: where={where!r} matches none of the parameters.")
    for name, size in sizes.items():
        if is_nan_in(size):
            raise ValueError(
                f"below_threshold: {name or 'params'} {size.shape} holds NaN, which cannot be "
                "compared; replace it, or exclude the leaf with where=."
            )
    if fraction is not None:
        check_fraction("fraction", fraction)
        theta = _smallest_kept(list(sizes.values()), fraction)

    def below(name, p):
        del p
        return sizes[name] < theta if name in sizes else None

    return map_named(below, params)


def _smallest_kept(sizes: list[Array], fraction: float) -> Array:
    """The (k+1)-th smallest magnitude; infinity if all are selected."""
    total = sum(x.size for x in sizes)
    kept = topk_masks(sizes, total - math.floor(fraction * total + 1e-9))
    least = [jnp.min(jnp.where(m, x, jnp.inf), initial=jnp.inf) for x, m in zip(sizes, kept)]
    return jnp.min(jnp.stack(least))
