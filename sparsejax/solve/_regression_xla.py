"""Regression on the host beyond the Lasso in XLA: for machines without a C++ compiler."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import prox
from .._solution import Solution, code
from ._host import Solved, Task, projected
from ._proximal_gradient import proximal_gradient

STEPS = 1000  # of gradient descent for a working set of the C++


class _Data(NamedTuple):
    """Losses of `X w + F z` with samples of weights s; bounds of blocks, and their labels."""

    X: Array
    F: Array
    y: Array
    s: Array
    bounds: Array
    labels: Array
    l2: Array
    delta: Array
    gamma: Array


class _Kind(NamedTuple):
    """Static choices."""

    loss: str
    shape: str
    blocks: int
    positive: bool


def solve(task: Task) -> Solved:
    """Solves the task with X dense, in float64."""
    with jax.enable_x64(True):
        return _path(task)


def _path(task: Task) -> Solved:
    data, kind, open_, mean = _prepare(task)
    descend = _descend_coordinates if kind.shape == "l_half" else _descend
    p, tall = data.X.shape[1], task.y.ndim == 2
    w = jnp.zeros((p + data.F.shape[1], *((len(task.y),) if tall else ())))
    found = []
    for strength in task.strengths:
        steps = STEPS * task.max_steps
        answer, gap = descend(data, kind, jnp.asarray(strength), w, task.tol, steps)
        w = answer.value
        found.append((answer, float(gap)))
    columns = np.stack([np.array(answer.value).T for answer, _ in found])
    values, z = columns[..., :p].copy(), columns[..., p:]
    values[..., open_] = z[..., int(task.model.intercept) :]
    offset = z[..., 0] - values @ mean if task.model.intercept else np.zeros(len(z))
    steps = np.array([int(answer.stats["n_iter"]) for answer, _ in found])
    stats = {
        "gap": np.array([gap for _, gap in found]), "n_iter": steps, "n_rounds": steps,
        "support_size": np.array([np.count_nonzero(value) for value in values]),
    }  # fmt: skip
    results = np.array([int(answer.result) for answer, _ in found])
    return Solved(values, results, stats, task.design.dense().T @ task.basis.T, offset)


def _prepare(task: Task) -> tuple[_Data, _Kind, np.ndarray, np.ndarray]:
    """The data and choices, which columns have no penalty, and the means that are subtracted."""
    X, y, model = np.asarray(task.design.dense(), np.float64), task.y, task.model
    several = y.ndim == 2  # then the coefficients of a feature are a block
    labels = np.arange(X.shape[1]) if model.start is None else model.labels()
    if model.loss == "squared":
        X, y = X - task.basis.T @ (task.basis @ X), projected(y, task.basis)
    weights = np.asarray(task.weights, np.float64)
    forced, open_ = np.isinf(weights)[labels], (weights == 0)[labels]
    open_ = open_ & (model.loss != "squared") & (task.l2 == 0)
    F = np.concatenate([np.ones((len(X), 1))] * model.intercept + [X[:, open_]], axis=1)
    X = np.where(forced | open_, 0, X)
    mean = X.mean(0) if model.intercept else np.zeros(X.shape[1])
    samples = np.ones(len(X)) if model.samples is None else model.samples
    bounds, numbers = np.where(np.isinf(weights), 1, weights), (task.l2, model.delta, model.gamma)
    data = _Data(*map(jnp.asarray, (X - mean, F, y.T, samples, bounds, labels, *numbers)))
    shape = "groups" if several else model.shape
    return data, _Kind(model.loss, shape, weights.size, task.positive), open_, mean


@partial(jax.jit, static_argnames=("kind", "max_steps"))
def _descend(
    data: _Data, kind: _Kind, strength: Array, w0: Array, tol: Any, max_steps: int
) -> tuple[Solution, Array]:
    """Proximal gradient steps until the gap, or the distance from stationarity, is small."""
    A = jnp.concatenate([data.X, data.F], axis=1)
    n, p = data.X.shape
    bend = {"squared": 1.0, "huber": 1.0, "logistic": 0.5}.get(kind.loss)

    def smooth(w):
        ridge = data.l2 / 2 * jnp.sum(w[:p] ** 2)
        return jnp.sum(data.s * _losses(kind.loss, data, A @ w).T) / n + ridge

    penalty = _penalty(data, kind, strength)
    certificate = _gap if kind.shape in ("l1", "groups") else _distance
    measure = partial(certificate, data, kind, strength, smooth, penalty)
    start = _at_zero(data, smooth, w0)
    scale = measure(start) if certificate is _distance else smooth(start)
    scale = jnp.where(scale > 0, scale, 1)
    root = jnp.sqrt(data.s.reshape(-1, *[1] * (w0.ndim - 1)) / n)

    def operator(w):
        rows = (bend or 1.0) * root * (A @ w)
        return jnp.concatenate([rows, jnp.sqrt(data.l2) * w[:p]])

    found = proximal_gradient(
        smooth, penalty, w0, operator=operator if bend else None, tol=tol, max_steps=max_steps,
        criterion=lambda w: measure(w) / scale, throw=False,
    )  # fmt: skip
    return found, measure(found.value)


@partial(jax.jit, static_argnames=("kind", "max_steps"))
def _descend_coordinates(
    data: _Data, kind: _Kind, strength: Array, w0: Array, tol: Any, max_steps: int
) -> tuple[Solution, Array]:
    """Each coordinate to its own minimum, in turn, for a penalty whose slope is infinite at 0.

    A gradient step shrinks by the largest curvature, and leaves more coordinates at 0.
    """
    n, p = data.X.shape
    curvature = jnp.sum(data.X**2, axis=0) / n + data.l2
    q = jnp.where(curvature > 0, curvature, 1)

    def best(w, c, j):
        """The minimum of the problem of w_j, with c minus the derivative of the rest."""
        to = prox.l_half(strength * data.bounds[j]).prox(w[j] + c / q[j], 1 / q[j])
        return jnp.where(curvature[j] > 0, to, 0)

    def step(j, at):
        w, r = at
        to = best(w, data.X[:, j] @ r / n - data.l2 * w[j], j)
        return w.at[j].set(to), r - data.X[:, j] * (to - w[j])

    def distance(w, r):
        return jnp.max(q * jnp.abs(w - best(w, data.X.T @ r / n - data.l2 * w, jnp.arange(p))))

    def sweep(state):
        w, _, steps, _ = state
        w, r = jax.lax.fori_loop(0, p, step, (w, data.y - data.X @ w))
        return w, r, steps + 1, distance(w, r)

    limit = tol * jnp.max(jnp.abs(data.X.T @ data.y)) / n
    go_on = lambda state: (state[3] > limit) & (state[2] < max_steps)  # noqa: E731
    r = data.y - data.X @ w0
    start = (w0, r, 0, distance(w0, r))
    w, _, steps, gap = jax.lax.while_loop(go_on, sweep, start)
    return Solution(w, code(~jnp.isnan(gap), gap <= limit), {"n_iter": steps}), gap


def _losses(loss: str, data: _Data, u: Array) -> Array:
    """Losses of predictions, each with minimum 0."""
    y = data.y
    if loss == "squared":
        return (y - u) ** 2 / 2
    if loss == "logistic":
        return jax.nn.softplus(-y * u)
    if loss == "huber":
        inside = jnp.minimum(jnp.abs(y - u), data.delta)
        return inside * (jnp.abs(y - u) - inside / 2)
    return jnp.exp(u) - y * u + jax.scipy.special.xlogy(y, y) - y


def _conjugates(loss: str, data: _Data, v: Array) -> Array:
    """Convex conjugates of the losses at -v, infinite outside of their domains."""
    y = data.y

    def xlogx(x):
        inside = jax.scipy.special.xlogy(jnp.maximum(x, 0), jnp.maximum(x, 0))
        return jnp.where(x < -1e-14, jnp.inf, inside)

    if loss == "logistic":
        return xlogx(y * v) + xlogx(1 - y * v)
    if loss == "poisson":
        return xlogx(y - v) - (y - v) - xlogx(y) + y
    outside = loss == "huber" and jnp.abs(v) > data.delta * (1 + 1e-12)
    return jnp.where(outside, jnp.inf, v * (v / 2 - y))


def _penalty(data: _Data, kind: _Kind, strength: Array) -> Any:
    p, free = data.X.shape[1], data.F.shape[1]
    bounds = jnp.concatenate([strength * data.bounds, jnp.zeros(free)])
    if kind.shape == "groups":
        labels = jnp.concatenate([data.labels, kind.blocks + jnp.arange(free)])
        if data.y.ndim == 2:
            labels = jnp.broadcast_to(labels[:, None], (p + free, data.y.shape[1]))
        number = kind.blocks + free
        return prox.group_lasso(1.0, groups=labels, num_groups=number, weights=bounds)
    if kind.shape == "mcp":
        return prox.mcp(bounds, data.gamma)
    if kind.shape == "scad":
        return prox.scad(bounds, data.gamma)
    return prox.nonneg(prox.l1(bounds)) if kind.positive else prox.l1(bounds)


def _at_zero(data: _Data, smooth: Callable[..., Array], w: Array) -> Array:
    """The best coefficients of F alone."""
    p, zero = data.X.shape[1], jnp.zeros_like(w)
    if data.F.shape[1] == 0:
        return zero
    alone = lambda z: smooth(zero.at[p:].set(z))  # noqa: E731
    found = proximal_gradient(
        alone, prox.l1(0.0), zero[p:], max_steps=10_000, tol=1e-10, throw=False
    )
    return zero.at[p:].set(found.value)


def _distance(data: _Data, kind: _Kind, strength, smooth, penalty, w: Array) -> Array:
    """The largest distance of 0 from the subdifferential."""
    return jnp.max(penalty.subdiff_distance(w, jax.grad(smooth)(w)))


def _gap(data: _Data, kind: _Kind, strength, smooth, penalty, w: Array) -> Array:
    """Primal minus dual objective, at the residual orthogonal to F and scaled to feasibility."""
    n, p = data.X.shape
    u = jnp.concatenate([data.X, data.F], axis=1) @ w
    theta = -jax.grad(lambda u: jnp.sum(_losses(kind.loss, data, u)))(u)
    if data.F.shape[1]:
        weighted = data.F * data.s[:, None]
        share = jnp.linalg.lstsq(data.F.T @ weighted, weighted.T @ theta)[0]
        theta = theta - data.F @ share
    r = (data.s * theta.T).T
    v, bounds = w[:p], strength * data.bounds
    c = data.X.T @ r / n - data.l2 * v
    squares = lambda x: jax.ops.segment_sum(  # noqa: E731
        jnp.sum(x.reshape(p, -1) ** 2, axis=1), data.labels, kind.blocks
    )
    size = jnp.sqrt(squares(jnp.maximum(c, 0) if kind.positive else c))
    s = jnp.min(jnp.where((size > bounds) & (bounds > 0), bounds / size, 1), initial=1)
    own = jnp.where((bounds > 0)[data.labels].reshape(p, *[1] * (v.ndim - 1)), v,
                    (c + data.l2 * v) / jnp.where(data.l2 > 0, data.l2, 1))  # fmt: skip
    losses = _losses(kind.loss, data, u) + _conjugates(kind.loss, data, s * theta)
    cost = jnp.sum(bounds * jnp.sqrt(squares(v)))
    ridge = data.l2 / 2 * (jnp.sum(v**2) + s**2 * jnp.sum(own**2))
    total = jnp.sum(jnp.where(data.s > 0, data.s * losses.T, 0)) / n
    return jnp.maximum(total + cost + ridge, 0)
