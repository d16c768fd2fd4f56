"""Linear models on the host: a loss, and a penalty of blocks of coefficients."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .._arguments import known

Loss = Literal["squared", "logistic", "huber", "poisson"]
Shape = Literal["l1", "groups", "mcp", "scad", "l_half"]


class Model(NamedTuple):
    """A mean of losses of `X w + b` plus a penalty of blocks of w.

    Attributes:
      loss: The loss of a prediction.
      shape: The penalty of a block. For "groups", blocks are those of `start` and `member`.
      start: Places in `member` where blocks start (blocks + 1,).
      member: Features, those of a block next to each other.
      delta: Where the Huber loss becomes linear.
      gamma: Where MCP and SCAD become flat, as a multiple of their strength.
      samples: Weights of samples (n,) of mean 1, for losses that are not squared.
      intercept: Whether to fit b, for losses that are not squared.
    """

    loss: Loss = "squared"
    shape: Shape = "l1"
    start: np.ndarray | None = None
    member: np.ndarray | None = None
    delta: float = 1.35
    gamma: float = 3.0
    samples: np.ndarray | None = None
    intercept: bool = False

    @property
    def is_lasso(self) -> bool:
        """Whether it is least squares with an l1 norm."""
        return self.loss == "squared" and self.shape == "l1"

    @property
    def is_convex(self) -> bool:
        """Whether there is a duality gap."""
        return self.shape in ("l1", "groups")

    @property
    def is_homogeneous(self) -> bool:
        """Whether the penalty of t w is a power of t times that of w."""
        return self.shape not in ("mcp", "scad")

    @property
    def degree(self) -> float:
        """That power, or 1 if not homogeneous: t then scales the strength, too."""
        return 0.5 if self.shape == "l_half" else 1.0

    def features(self, blocks: np.ndarray) -> np.ndarray:
        """The features of some blocks, given as a mask."""
        if self.start is None or self.member is None:
            return np.flatnonzero(blocks)
        return np.sort(self.member[np.repeat(blocks, np.diff(self.start))])

    def labels(self) -> np.ndarray:
        """The block of each feature (p,)."""
        assert self.start is not None and self.member is not None
        found = np.empty(self.member.size, np.int64)
        found[self.member] = np.repeat(np.arange(self.start.size - 1), np.diff(self.start))
        return found


def grouped(groups: Any, p: int) -> tuple[np.ndarray, np.ndarray]:
    """`start` and `member` of labels (p,) of any kind, in order, or of disjoint index lists."""
    if _is_lists(groups):
        member = np.concatenate([np.asarray(g) for g in groups])
        if not (np.issubdtype(member.dtype, np.integer) and _covers(member, p)):
            raise ValueError(
                f"groups must hold each feature from 0 to {p - 1} in exactly one list, as in "
                "groups=[[0, 1], [2]]."
            )
        return np.cumsum([0, *map(len, groups)]), member.astype(np.int64)
    labels = np.asarray(groups)
    if labels.shape != (p,):
        raise ValueError(
            f"groups must be a label per feature ({p},), or lists of features, got shape "
            f"{labels.shape}."
        )
    if np.issubdtype(labels.dtype, np.inexact) and np.isnan(labels).any():
        raise ValueError("groups must not hold NaN; give those features a label of their own.")
    try:
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise TypeError("groups must be labels of one kind, numbers or strings.") from error
    return np.cumsum([0, *counts]), np.argsort(inverse, kind="stable").astype(np.int64)


def as_labels(groups: Any, p: int) -> Any:
    """Integer labels for strings or arrays of features; others unchanged."""
    lists = _is_lists(groups) and any(isinstance(g, np.ndarray) for g in groups)
    if not lists and (not known(groups) or _has_numbers(groups)):
        return groups
    start, member = grouped(groups, p)
    return Model(start=start, member=member).labels()


def largest_bound(model: Model, c: np.ndarray, weights: np.ndarray, positive: bool) -> float:
    """The smallest strength with correlations c (p,), or (q, p), within their bounds."""
    size = np.maximum(c, 0) if positive else np.abs(c)
    if c.ndim == 2:
        size = np.linalg.norm(c, axis=0)
    elif model.start is not None:
        size = block_norms(model, c)
    return float(np.max(np.divide(size, weights, where=weights > 0, out=np.zeros(size.size))))


def block_norms(model: Model, v: np.ndarray) -> np.ndarray:
    """The norms of the blocks of v (p,)."""
    assert model.start is not None and model.member is not None
    return np.sqrt(np.add.reduceat(v[model.member] ** 2, model.start[:-1]))


def _is_lists(groups: Any) -> bool:
    return isinstance(groups, Sequence) and len(groups) > 0 and all(
        np.ndim(g) == 1 and not isinstance(g, str) and len(g) for g in groups
    )  # fmt: skip


def _has_numbers(groups: Any) -> bool:
    try:
        return np.asarray(groups).dtype.kind not in "OSU"
    except ValueError:  # lists of several lengths
        return True


def _covers(member: np.ndarray, p: int) -> bool:
    return member.size == p and np.array_equal(np.sort(member), np.arange(p))


def objective(model: Model, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Losses (n,) of predictions u, each with minimum 0."""
    if model.loss == "squared":
        return (y - u) ** 2 / 2
    if model.loss == "logistic":
        return np.logaddexp(0, -y * u)
    if model.loss == "huber":
        inside = np.minimum(np.abs(y - u), model.delta)
        return inside * (np.abs(y - u) - inside / 2)
    with np.errstate(over="ignore"):
        return np.exp(u) - y * u + np.where(y > 0, y * np.log(np.where(y > 0, y, 1)), 0) - y


def pull(model: Model, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Minus the derivatives of the losses (n,)."""
    if model.loss == "squared":
        return y - u
    if model.loss == "logistic":
        return y * np.exp(-np.logaddexp(0, y * u))
    if model.loss == "huber":
        return np.clip(y - u, -model.delta, model.delta)
    return y - np.exp(u)


def check_target(loss: str, y: np.ndarray) -> None:
    """Raises unless y is in the domain of the loss."""
    if loss == "logistic" and not np.isin(y, (-1, 1)).all():
        raise ValueError(
            "y must hold the classes -1 and 1; convert classes 0 and 1 by 2.0 * y - 1."
        )
    if loss == "poisson" and y.min(initial=math.inf) < 0:
        raise ValueError(f'y must hold counts >= 0 for loss="poisson", got {y.min()}.')


def check_intercept(loss: str, y: np.ndarray) -> None:
    """Raises where an intercept alone has no best value, for targets in the domain of the loss."""
    if loss == "logistic" and np.ptp(y) == 0:
        raise ValueError(f"y must hold both classes, -1 and 1, with an intercept, got {y[0]} only.")
    if loss == "poisson" and not y.any():
        raise ValueError("y must hold one count > 0 at least with an intercept.")
