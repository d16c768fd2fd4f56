"""Rows of unit norm: gradients without their parallel part, and a projection after each step."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._arguments import check_updates, checked
from .._arrays import wide_dtype
from .._steady import steady
from .._tree import expression, map_named, named_leaves


@checked()
def unit_norm(
    optimizer: optax.GradientTransformation, where: str = r"W_dec$", *, axis: int = -1
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that the rows of some parameters keep the norm 1.

    The optimizer receives `g - <g, w> w / |w|^2` for each row w, and the update becomes
    `w' / |w'| - w` for the row `w' = w + u` that it would reach. A row that would be 0 is not
    projected. Rows are unit after the first step, whatever they were before.

    Args:
      optimizer: An optax transformation with its learning rate.
      where: Regular expression over the paths of parameters (`re.search`).
      axis: The axis along which a row lies.

    Returns:
      A transformation with the state of `optimizer`.

    Raises:
      ValueError: If no parameter matches, or `update` gets no parameters.

    Reference:
      Bricken et al., Towards Monosemanticity, Transformer Circuits, 2023.

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"W_dec": jnp.array([[1.0, 0.0]])}
      >>> tx = sj.optim.unit_norm(optax.sgd(0.75))
      >>> updates, _ = tx.update({"W_dec": jnp.array([[5.0, 1.0]])}, tx.init(params), params)
      >>> [round(x, 3) for x in optax.apply_updates(params, updates)["W_dec"][0].tolist()]
      [0.8, -0.6]
    """
    matches, inner = expression("unit_norm: where", where).search, steady(optimizer)

    def init(params):
        names = list(named_leaves(params))
        if names and not any(map(matches, names)):
            raise ValueError(
                f"unit_norm: where={where!r} matches none of the parameters {', '.join(names)}."
            )
        return inner.init(params)

    def changed(f, updates: PyTree, params: PyTree) -> PyTree:
        rows = named_leaves(params)
        chosen = {name: w for name, w in rows.items() if matches(name)}
        return map_named(lambda _, u, w: u if w is None else f(u, w), updates, chosen)

    def tangent(g: Array, w: Array) -> Array:
        wide = wide_dtype(g, w)
        long, row = g.astype(wide), w.astype(wide)
        square = jnp.sum(row * row, axis, keepdims=True)
        share = jnp.sum(long * row, axis, keepdims=True) / jnp.where(square > 0, square, 1)
        return (long - share * row).astype(g.dtype)

    def projected(u: Array, w: Array) -> Array:
        wide = wide_dtype(u, w)
        row = w.astype(wide)
        moved = row + u.astype(wide)
        square = jnp.sum(moved * moved, axis, keepdims=True)
        norm = jnp.sqrt(jnp.where(square > 0, square, 1))
        return (moved / norm - row).astype(u.dtype)

    def update(updates, state, params=None, **extra):
        check_updates(updates, params)
        moves, state = inner.update(changed(tangent, updates, params), state, params, **extra)
        return changed(projected, moves, params), state

    return optax.GradientTransformationExtraArgs(init, update)
