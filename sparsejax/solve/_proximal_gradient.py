"""Proximal gradient descent on pytrees for a smooth function plus a penalty."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked, known
from .._arrays import real_dtype
from .._solution import Solution, code, finish
from ..prox import Penalty
from ._algebra import add, dot, floats, linear, norm, operator_norm
from ._implicit import linear_solve

Smooth = Callable[[PyTree], Any]
# Steps between two evaluations of a criterion.
EVERY = 10


class _State(NamedTuple):
    w: PyTree
    z: PyTree
    t: Array
    step: Array
    residual: Array
    excess: Array
    n: Array


@checked(step="(0, inf)", tol="[0, inf)", max_steps="[0, inf)", smooth="smooth(w)")
def proximal_gradient(
    smooth: Smooth,
    penalty: Penalty,
    w0: PyTree,
    *,
    step: ArrayLike | None = None,
    operator: Any = None,
    accelerate: bool = True,
    monotone: bool | None = None,
    criterion: Callable[[PyTree], Any] | None = None,
    tol: ArrayLike = 1e-6,
    max_steps: int = 1000,
    throw: bool = True,
) -> Solution:
    r"""Minimises `smooth(w) + penalty.value(w)` by ISTA, FISTA or monotone FISTA.

    `w <- prox(z - step * grad smooth(z), step)`, with z = w (ISTA) or extrapolated (FISTA with
    O'Donoghue and Candes' restart). The step is halved where the quadratic upper bound fails,
    unless it is given. The solution is differentiable in all values that `smooth` and the penalty
    close over, by implicit differentiation of the fixed point, not through the loop.

    Args:
      smooth: A differentiable real function of w.
      penalty: A penalty of `sparsejax.prox`; for a pytree one that takes trees, such as
        `prox.separable_sum(prox.l1(0.1))`.
      w0: Initial value: an array or a pytree of arrays, real or complex.
      step: A fixed step, at most 1 / L; None selects one by backtracking.
      operator: A matrix or a linear function A such that `A^T A` bounds the Hessian of smooth: the
        first step is then `1 / (1.01 ||A||^2)`, by power iteration.
      accelerate: Whether to extrapolate.
      monotone: Whether to enforce a non-increasing objective, at the cost of a second gradient per
        step. None enables it for non-convex penalties.
      criterion: A function of w that must reach tol, such as a relative duality gap; evaluated
        every ten steps. None: `||w_new - z|| <= tol * ||w_new||`.
      tol: The tolerance.
      max_steps: Maximum number of steps.
      throw: Whether to raise if the tolerance is not reached (outside jit).

    Returns:
      A `Solution` with the statistics `n_iter`, `residual` and `step`.

    Raises:
      RuntimeError: If `throw` and the tolerance is not reached.
      TypeError: If the penalty is not a penalty, or takes one array and w0 is a pytree.
      ValueError: If the step is not > 0.

    Reference:
      Beck and Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009; O'Donoghue and
      Candes, Adaptive Restart for Accelerated Gradient Schemes, 2012, arXiv 1204.3982; Li and Lin,
      Accelerated Proximal Gradient Methods for Nonconvex Programming, 2015.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> v = jnp.array([3.0, 0.5])
      >>> smooth = lambda w: jnp.sum((w - v) ** 2) / 2
      >>> solve.proximal_gradient(smooth, prox.l1(1.0), jnp.zeros(2)).value.tolist()
      [2.0, 0.0]
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a penalty such as prox.l1(0.1), got {penalty!r}.")
    w0 = floats(w0)
    check_step(step)
    if operator is not None:
        operator = linear("proximal_gradient", operator, w0)
    if monotone is None:
        rho = getattr(penalty, "weak_convexity", 0.0)
        monotone = not known(rho) or bool(np.any(np.asarray(rho) > 0))

    def solve(_, start):
        first = _first_step(smooth, w0, operator) if step is None else step
        state = _begin(start[0], jnp.asarray(first, real_dtype(w0)))
        update = _monotone if monotone else _fista
        body = lambda s: _looked_at(  # noqa: E731
            criterion, update(smooth, penalty, s, step is None, accelerate)
        )
        last = lax.while_loop(lambda s: ~_done(s, tol) & (s.n < max_steps), body, state)
        finite = jnp.isfinite(norm(last.w)) & jnp.isfinite(last.residual)
        # Floats, since custom_root gives integers a derivative of the wrong dtype.
        real = last.step.dtype
        counts = last.n.astype(real), code(finite, _done(last, tol)).astype(real)
        return (last.w, last.step), (counts, last.residual, last.step)

    def equation(unknown):
        # The step is an unknown with its own equation, so that the derivative is taken with the
        # step at which w is a fixed point; this matters for non-convex penalties.
        w, fixed = unknown
        length = lax.stop_gradient(fixed)
        moved = penalty.prox(add(w, _gradient(smooth, w)[1], -length), length)
        return add(w, moved, -1.0), fixed

    start = (w0, jnp.ones((), real_dtype(w0)))
    (w, _), aux = lax.custom_root(equation, start, solve, linear_solve, has_aux=True)
    (n, result), residual, length = lax.stop_gradient(aux)
    stats = {"n_iter": n.astype(jnp.int32), "residual": residual, "step": length}
    return finish("proximal_gradient", Solution(w, result.astype(jnp.int32), stats), throw)


def check_step(step: Any) -> None:
    """Raises unless the step is positive: with a step of 0 the loop would stop immediately."""
    if step is not None and known(step) and not (np.asarray(step) > 0).all():
        raise ValueError(
            f"step must be > 0, at most 1 / L, got {step}; pass step=None to select it by "
            "backtracking."
        )


def _gradient(smooth: Smooth, w: PyTree) -> tuple[Array, PyTree]:
    value, grad = jax.value_and_grad(smooth)(w)
    # JAX returns the conjugate of the direction of steepest ascent.
    return value, jax.tree.map(jnp.conj, grad)


def _first_step(smooth: Smooth, w0: PyTree, operator: Any) -> Array:
    """The initial step, from the norm of the operator or the curvature along the first gradient."""
    if operator is not None:
        largest = operator_norm(operator, w0) ** 2
    else:
        grad = _gradient(smooth, w0)[1]
        length = jnp.sqrt(jnp.finfo(real_dtype(w0)).eps) * (1 + norm(w0))
        size = norm(grad)
        scale = length / jnp.where(size > 0, size, 1)
        change = add(_gradient(smooth, add(w0, grad, scale))[1], grad, -1.0)
        largest = norm(change) / length
    sound = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(sound, 1 / (1.01 * jnp.where(sound, largest, 1)), 1.0)


def _begin(w: PyTree, step: Array) -> _State:
    large = jnp.full((), jnp.inf, step.dtype)
    return _State(w, w, jnp.ones_like(step), step, large, large, jnp.zeros((), jnp.int32))


def _done(state: _State, tol: ArrayLike) -> Array:
    broken = jnp.isnan(state.residual)
    return (state.excess <= tol) | broken


def _looked_at(criterion: Any, state: _State) -> _State:
    if criterion is None:
        return state
    late = (state.n % EVERY == 0) | (state.excess <= 0)
    excess = lax.cond(
        late,
        lambda w: jnp.asarray(criterion(w), state.residual.dtype),
        lambda w: jnp.full((), jnp.inf, state.residual.dtype),
        state.w,
    )
    return state._replace(excess=excess)


def forward(smooth: Smooth, prox: Any, z: PyTree, step: Array, backtrack: bool) -> Any:
    """`prox(z - step * gradient, step)`, the step halved until the upper bound holds."""
    value, grad = _gradient(smooth, z)

    def attempt(step):
        return prox(add(z, grad, -step), step)

    u = attempt(step)
    if not backtrack:
        return u, step
    slack = 8 * jnp.finfo(step.dtype).eps * jnp.abs(value)

    def too_long(state):
        u, step, tries = state
        d = add(u, z, -1.0)
        bound = value + dot(grad, d) + dot(d, d) / (2 * step) + slack
        return (smooth(u) > bound) & (tries < 60)

    def halve(state):
        _, step, tries = state
        return attempt(step / 2), step / 2, tries + 1

    return lax.while_loop(too_long, halve, (u, step, 0))[:2]


def _relative(u: PyTree, z: PyTree) -> Array:
    size = jnp.maximum(norm(u), norm(z))
    return norm(add(u, z, -1.0)) / jnp.where(size > 0, size, 1)


def _fista(smooth: Smooth, penalty: Any, s: _State, backtrack: bool, accelerate: bool) -> _State:
    u, step = forward(smooth, penalty.prox, s.z, s.step, backtrack)
    residual = _relative(u, s.z)
    move = add(u, s.w, -1.0)
    restart = dot(add(s.z, u, -1.0), move) > 0
    t = jnp.where(restart, 1.0, (1 + jnp.sqrt(1 + 4 * s.t**2)) / 2).astype(s.t.dtype)
    momentum = jnp.where(restart, 0, (s.t - 1) / t) if accelerate else 0.0
    return _State(u, add(u, move, momentum), t, step, residual, residual, s.n + 1)


def _monotone(smooth: Smooth, penalty: Any, s: _State, backtrack: bool, accelerate: bool) -> _State:
    """The better of a step from the extrapolated point and one from w."""
    v, step = forward(smooth, penalty.prox, s.w, s.step, backtrack)
    residual = _relative(v, s.w)
    t = (1 + jnp.sqrt(1 + 4 * s.t**2)) / 2
    if not accelerate:
        return _State(v, v, t, step, residual, residual, s.n + 1)
    u, step = forward(smooth, penalty.prox, s.z, step, backtrack)
    better = smooth(u) + penalty.value(u) < smooth(v) + penalty.value(v)
    w = jax.tree.map(lambda a, b: jnp.where(better, a, b), u, v)
    z = add(add(w, add(u, w, -1.0), s.t / t), add(w, s.w, -1.0), (s.t - 1) / t)
    return _State(w, z, t, step, residual, residual, s.n + 1)
