"""The Lasso of a few features from their Gram matrix: coordinate descent and Newton steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._arrays import zeros_for
from ._duality import cost, ridge_gap, share

EPOCHS = 3
LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03)
CROSSINGS = 8  # sign changes at which a Newton step may end
STEPS = 3  # Newton steps per round, at most; each but the last sets coordinates to 0
SMALL = 512  # features whose factorisation costs less than a pass over X


class Quadratic(NamedTuple):
    """`w^T G w / 2 - b^T w + sum_j a_j |w_j|`; `|y|^2 / n` completes the Lasso objective.

    The Gram matrix includes the ridge term, whose strength `l2` only measures the gap.
    """

    gram: Float[Array, "m m"]
    b: Float[Array, " m"]
    thresholds: Float[Array, " m"]
    yy: Float[Array, ""]
    l2: Any = 0.0


class _State(NamedTuple):
    w: Float[Array, " m"]
    h: Float[Array, " m"]
    gap: Float[Array, ""]
    n: Int[Array, ""]


def quadratic(rows: Array, y: Array, thresholds: Array, l2: Array, active: Array) -> Quadratic:
    """The Gram matrix of some features; an inactive row is 0 and its coefficient never changes."""
    n = y.size
    rows = jnp.where(active[:, None], rows, 0)
    gram = rows @ rows.T / n + jnp.diag(jnp.where(active, l2, 0))
    return Quadratic(gram, rows @ y / n, jnp.where(active, thresholds, 1), jnp.vdot(y, y) / n, l2)


def solve_gram(
    q: Quadratic,
    w: Array,
    target: Array,
    positive: bool,
    max_rounds: int,
    skip: bool = False,
    room: int | None = None,
) -> tuple[Float[Array, " m"], Float[Array, ""], Int[Array, ""]]:
    """Rounds of coordinate descent and Newton steps until the gap reaches the target.

    With `room`, Newton steps apply to supports up to that size; for a larger support the loop ends,
    so that the host can allocate more.
    """
    room = w.size if room is None else min(room, w.size)

    def fits(w: Array) -> Array:
        return jnp.sum(w != 0) <= room

    def measured(w: Array, h: Array) -> tuple[Array, Array, Array]:
        return w, h, _gap(q, w, h, positive)

    def newton(state):
        (w, h, _), _, n = state
        w, h, cut = _newton(q, w, h, room)
        return measured(w, h), cut, n + 1

    def goes_on(state):
        # Repeat until a full step is taken; at least once if that may save the host a pass over X.
        (w, _, gap), cut, n = state
        wanted = (gap > target) | (n == 0) if w.size <= SMALL else gap > target
        return wanted & cut & (n < STEPS) & fits(w)

    def round_(s: _State) -> _State:
        w, _ = _epochs(q, s.w, s.h, positive, skip)
        # h accumulates rounding errors over an epoch; recompute it exactly here.
        whole = ~zeros_for((), bool, w, q.gram)
        start = measured(w, q.gram @ w - q.b), whole, jnp.zeros((), jnp.int32)
        return _State(*lax.while_loop(goes_on, newton, start)[0], s.n + 1)

    def unfinished(s: _State) -> Array:
        return (s.gap > target) & (s.n < max_rounds) & (fits(s.w) | (s.n == 0))

    start = _State(*measured(w, q.gram @ w - q.b), jnp.zeros((), jnp.int32))
    last = lax.while_loop(unfinished, round_, start)
    return last.w, last.gap, last.n


def _gap(q: Quadratic, w: Array, h: Array, positive: bool) -> Float[Array, ""]:
    """The duality gap from the Gram matrix alone, accurate to `eps |y|^2 / n`."""
    wb = jnp.vdot(w, q.b)
    rr = q.yy - wb + jnp.vdot(w, h)
    s = share(-h, q.thresholds, positive)
    gap = (1 + s**2) * rr / 2 + cost(w, q.thresholds) - s * (q.yy - wb)
    return jnp.minimum(gap, ridge_gap(w, -h, q.thresholds, jnp.asarray(q.l2, h.dtype), positive))


def _epochs(q: Quadratic, w: Array, h: Array, positive: bool, skip: bool) -> tuple[Array, Array]:
    m = w.size
    diagonal = jnp.diagonal(q.gram)
    inverse = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1), 0)

    def step(i, state):
        w, h = state
        j = lax.rem(i, m)
        old, scale = w[j], inverse[j]
        u = old - h[j] * scale
        bound = q.thresholds[j] * scale
        size = jnp.maximum((u if positive else jnp.abs(u)) - bound, 0)
        new = jnp.where(scale > 0, jnp.where(size > 0, jnp.sign(u) * size, 0), old)
        change = new - old
        update = lambda h: h + change * lax.dynamic_index_in_dim(q.gram, j, keepdims=False)  # noqa: E731
        h = lax.cond(change != 0, update, lambda h: h, h) if skip else update(h)
        return w.at[j].set(new), h

    return lax.fori_loop(0, EPOCHS * m, step, (w, h))


def _newton(q: Quadratic, w: Array, h: Array, room: int) -> tuple[Array, Array, Array]:
    """A Newton step for the current signs, `G w - b` there, and whether it was truncated."""
    if room == w.size:
        best, images, cut = _line(q, w, h)
        return best, images - q.b, cut
    # On the support only: the Cholesky factor has its size, not that of the working set.
    support = lax.top_k(jnp.abs(w), room)[1]
    rows = q.gram[support]
    part = Quadratic(rows[:, support], q.b[support], q.thresholds[support], q.yy)
    best, _, cut = _line(part, w[support], h[support])
    moved = jnp.zeros_like(w).at[support].set(best, unique_indices=True)
    return moved, best @ rows - q.b, cut


def _line(q: Quadratic, w: Array, h: Array) -> tuple[Array, Array, Array]:
    """The best of a few lengths of the Newton step, its image, and whether it was truncated."""
    on, sign = w != 0, jnp.sign(w)
    slope = jnp.where(on, h + jnp.where(on, q.thresholds, 0) * sign, 0)
    direction = -masked_solve(q.gram, on, slope)
    direction = jnp.where(on & jnp.isfinite(direction), direction, 0)
    # For linearly dependent columns the step is far too long; stop where the first coordinates
    # reach 0.
    reached = jnp.where(w * direction < 0, -w / jnp.where(direction != 0, direction, 1), 1)
    first = -lax.top_k(-jnp.minimum(reached, 1), min(CROSSINGS, w.size))[0]
    lengths = jnp.concatenate([jnp.asarray((0.0, *LENGTHS), w.dtype), first])[:, None]
    moved = w[None] + lengths * direction[None]
    # A coordinate that changes sign stops at 0.
    moved = jnp.where(moved * sign[None] > 0, moved, 0)
    images = moved @ q.gram
    costs = jax.vmap(lambda v: cost(v, q.thresholds))(moved)
    objective = jnp.sum(moved * (images / 2 - q.b[None]), axis=1) + costs
    objective = jnp.where(jnp.isnan(objective), jnp.inf, objective)
    best = jnp.argmin(objective)
    return moved[best], images[best], (best > 0) & jnp.any((moved[best] == 0) & on)


def masked_solve(gram: Array, on: Bool[Array, " m"], right: Array) -> Array:
    """`gram[on, on] x = right[on]`, 0 elsewhere, by Cholesky; NaN if it is singular."""
    m = right.shape[0]
    both = on[:, None] & on[None, :]
    eps = 1e-12 if jnp.finfo(gram.dtype).bits > 32 else 1e-6
    jitter = eps * jnp.max(jnp.diagonal(gram), initial=0.0)
    matrix = jnp.where(both, gram, 0) + jnp.diag(jnp.where(on, jitter, jnp.ones(m, gram.dtype)))
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jnp.where(on, jax.scipy.linalg.cho_solve(factor, jnp.where(on, right, 0)), 0)
