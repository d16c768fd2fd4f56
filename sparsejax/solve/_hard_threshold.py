"""Iterative hard thresholding: gradient steps, each projected onto a set."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked
from .._arrays import real_dtype
from .._solution import Solution, code, finish
from ..prox import Penalty
from ._algebra import dot, floats, norm
from ._proximal_gradient import Smooth, _gradient, _relative, check_step, forward


@checked(step="(0, inf)", tol="[0, inf)", max_steps="[0, inf)", smooth="smooth(w)")
def iht(
    smooth: Smooth,
    projection: Penalty | Callable[[PyTree], PyTree],
    w0: PyTree,
    *,
    step: ArrayLike | None = None,
    tol: ArrayLike = 1e-6,
    max_steps: int = 500,
    throw: bool = True,
) -> Solution:
    r"""Minimises `smooth(w)` over a possibly non-convex set, such as k-sparse vectors.

    `w <- project(w - step * grad smooth(w))`. The normalised step is the exact line search on the
    current support, `||g_S||^2 / <g_S, H g_S>`, halved while it violates the quadratic upper bound,
    so that the objective never increases.

    Args:
      smooth: A differentiable real function of w.
      projection: The indicator of a set (`prox.hard_k(5)`), or a function that projects onto it.
      w0: Initial value, an array or a pytree.
      step: A fixed step, at most 1 / L; None for the normalised one.
      tol: Stops when `||w_new - w|| <= tol * ||w_new||`.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the tolerance is not reached (outside jit).

    Returns:
      A `Solution` with the statistics `n_iter`, `residual` and `step`: a fixed point, not
      necessarily the global minimum.

    Raises:
      RuntimeError: If `throw` and the tolerance is not reached.
      ValueError: If the step is not > 0.

    Reference:
      Blumensath and Davies, Normalized Iterative Hard Thresholding, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> smooth = lambda w: jnp.sum((w - jnp.array([3.0, -1.0, 2.0])) ** 2) / 2
      >>> solve.iht(smooth, prox.hard_k(2), jnp.zeros(3)).value.tolist()
      [3.0, 0.0, 2.0]
    """
    w0 = floats(w0)
    check_step(step)
    if isinstance(projection, Penalty):
        project = lambda v, _=None: projection.prox(v)  # noqa: E731
    elif callable(projection):
        project = lambda v, _=None: projection(v)  # noqa: E731
    else:
        raise TypeError(
            "projection must be a function or a penalty such as prox.hard_k(5), got "
            f"{projection!r}."
        )

    def body(state):
        w, _, _, n = state
        length = _normalised(smooth, project, w) if step is None else fixed
        moved, length = forward(smooth, project, w, length, step is None)
        return moved, length, _relative(moved, w), n + 1

    fixed = jnp.asarray(1.0 if step is None else step, real_dtype(w0))
    large = jnp.full_like(fixed, jnp.inf)
    start = (project(w0), fixed, large, jnp.zeros((), jnp.int32))
    keep_on = lambda s: (s[2] > tol) & (s[3] < max_steps)  # noqa: E731
    w, length, residual, n = lax.while_loop(keep_on, body, start)
    result = code(jnp.isfinite(norm(w)), residual <= tol)
    stats: dict[str, Any] = {"n_iter": n, "residual": residual, "step": length}
    return finish("iht", Solution(w, result, stats), throw)


def _normalised(smooth: Smooth, project: Callable[..., PyTree], w: PyTree) -> Array:
    gradient = lambda v: _gradient(smooth, v)[1]  # noqa: E731
    grad = gradient(w)
    where = jax.tree.map(jnp.where, *_support(w, project(jax.tree.map(jnp.negative, grad))))
    inside = jax.tree.map(lambda g, s: jnp.where(s, g, 0), grad, where)
    curvature = dot(inside, jax.jvp(gradient, (w,), (inside,))[1])
    size = dot(inside, inside)
    sound = (curvature > 0) & (size > 0)
    # On a support that is already optimal, use the step of the full gradient.
    whole = dot(grad, jax.jvp(gradient, (w,), (grad,))[1])
    other = jnp.where(whole > 0, dot(grad, grad) / jnp.where(whole > 0, whole, 1), 1.0)
    rounding = size <= jnp.finfo(size.dtype).eps * dot(grad, grad)
    return jnp.where(sound & ~rounding, size / jnp.where(sound, curvature, 1), other)


def _support(w: PyTree, first: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """The support of w, or of the first step from 0."""
    empty = jnp.stack([jnp.all(leaf == 0) for leaf in jax.tree.leaves(w)]).all()
    choose = jax.tree.map(lambda leaf: jnp.full(leaf.shape, empty), w)
    return choose, jax.tree.map(lambda x: x != 0, first), jax.tree.map(lambda x: x != 0, w)
