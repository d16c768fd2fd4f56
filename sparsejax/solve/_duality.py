"""The Lasso as data: checks, the largest useful strength, the duality gap."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..prox._check import known
from ._algebra import magnitude

CALL = "solve.lasso(X, y, 0.1)"


class Problem(NamedTuple):
    """`|y - X w|^2 / (2 n) + sum_j a_j |w_j| + l2 |w|^2 / 2`."""

    X: Float[Array, "n p"]
    y: Float[Array, " n"]
    thresholds: Float[Array, " p"]
    l2: Float[Array, ""]


class Units(NamedTuple):
    """The sizes of X and y that `balanced` divided by; both are powers of two."""

    X: Float[Array, ""]
    y: Float[Array, ""]

    def outside(self, w: Array) -> Array:
        """Coefficients in the units of the user."""
        return w * self.y / self.X

    def inside(self, w: Array) -> Array:
        """Coefficients in those of the balanced problem."""
        return w * self.X / self.y

    def objective(self, value: Array) -> Array:
        """A value of the objective, or a gap, in the units of the user."""
        return value * self.y * self.y


def problem(X: Any, y: Any, lam: Any, weights: Any, l2: Any) -> Problem:
    """The data in one dtype, checked; NaN where a number is negative that could not be seen."""
    X, y = matrix_and_target(X, y, 1, CALL)
    p, dtype = X.shape[1], X.dtype
    check_number("lam", lam, (), dtype)
    check_number("l2", l2, (), dtype)
    if known(l2) and np.isinf(np.asarray(l2)):
        raise ValueError("l2 must be finite; lam=inf gives 0.")
    lam, l2 = jnp.asarray(lam, dtype), jnp.asarray(l2, dtype)
    if weights is None:
        thresholds = jnp.broadcast_to(lam, (p,))
    else:
        check_weights(weights, p)
        weights = jnp.asarray(weights, dtype)
        never = jnp.isinf(weights)  # also for lam = 0
        thresholds = jnp.where(never, jnp.inf, lam * jnp.where(never, 0, weights))
    valid = jnp.all(thresholds >= 0) & (l2 >= 0)
    return Problem(X, jnp.where(valid, y, jnp.nan), thresholds, l2)


@jax.jit
def balanced(pb: Problem) -> tuple[Problem, Units]:
    """The same problem with X and y near 1, where no square leaves the range of floats."""
    units = Units(magnitude(pb.X), magnitude(pb.y))
    thresholds, l2 = pb.thresholds / units.X / units.y, pb.l2 / units.X / units.X
    return Problem(pb.X / units.X, pb.y / units.y, thresholds, l2), units


def matrix_and_target(X: Any, y: Any, ndim: int, call: str) -> tuple[Array, Array]:
    """X (n, p) and y (n,) or (n, q) as floats of one dtype; NaN is refused where it can be seen."""
    for name, x in (("X", X), ("y", y)):
        if not hasattr(x, "shape"):
            raise TypeError(f"{name} must be an array, got a {type(x).__name__}; as in {call}.")
        if hasattr(x, "toarray"):
            raise TypeError(f"{name} is a {type(x).__name__} of SciPy; pass {name}.toarray().")
    if len(X.shape) != 2 or 0 in X.shape:
        raise ValueError(f"X must be a matrix (n, p), not empty, got {X.shape}; as in {call}.")
    if 0 in y.shape or len(y.shape) != ndim or y.shape[0] != X.shape[0]:
        shape = f"({X.shape[0]},)" if ndim == 1 else f"({X.shape[0]}, q)"
        raise ValueError(f"y must have the shape {shape} of X's rows, got {y.shape}; as in {call}.")
    dtype = jnp.promote_types(jnp.result_type(X, y), jnp.float32)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"X and y must be real, got {dtype}; use solve.proximal_gradient.")
    for name, x in (("X", X), ("y", y)):
        if known(x) and not np.isfinite(np.asarray(x)).all():
            raise ValueError(f"{name} holds NaN or infinity; drop or impute those rows first.")
    return jnp.asarray(X, dtype), jnp.asarray(y, dtype)


def near_one(**arrays: Any) -> None:
    """For problems that know no units, so that data cannot be brought to size 1 unseen."""
    if not all(map(known, arrays.values())):
        return
    sizes = {name: float(np.max(np.abs(x))) for name, x in arrays.items()}
    for a, x in sizes.items():
        for b, y in sizes.items():
            limits = jnp.finfo(arrays[a].dtype)
            most = float(limits.max) / arrays[a].size
            if x * y and not float(limits.tiny / limits.eps) <= x * y <= most:
                raise ValueError(
                    f"{a} * {b}, of sizes {x:.3g} and {y:.3g}, is out of the range of "
                    f"{limits.dtype}; rescale the data, and what is measured in their units."
                )


def check_number(name: str, x: Any, shape: tuple[int, ...], dtype: Any = jnp.float64) -> None:
    """A number >= 0 (or an array of them) of the dtype, where it is known."""
    if x is None or isinstance(x, str):
        raise TypeError(f"{name} must be a number, got {x!r}; 0.1 for example.")
    if np.shape(x) != shape:
        many = (
            "" if shape else f"; for several jax.vmap over {name}, or solve.lasso_path for a path"
        )
        raise ValueError(f"{name} must have shape {shape}, got {np.shape(x)}{many}.")
    if known(x) and (np.any(np.isnan(np.asarray(x))) or np.any(np.asarray(x) < 0)):
        raise ValueError(f"{name} must be >= 0, got {x}.")
    if known(x):
        limits, numbers = jnp.finfo(dtype), np.asarray(x, np.float64)
        lost = (numbers < float(limits.tiny)) & (numbers > 0)
        if np.any(lost | (numbers > float(limits.max)) & np.isfinite(numbers)):
            raise ValueError(f"{name}={x} is out of the range of {limits.dtype}; rescale X and y.")


def check_weights(weights: Any, p: int) -> None:
    """Positive, where they are known."""
    check_number("weights", weights, (p,))
    if known(weights) and np.any(np.asarray(weights) == 0):
        raise ValueError(
            "weights must be > 0, infinite ones force a zero: the duality gap of a feature "
            "without penalty is not finite. Project it out of X and y first, or use "
            "solve.proximal_gradient(smooth, prox.weighted_l1(lam, weights), w0)."
        )


def tolerance(tol: float | None, dtype: Any) -> float:
    """The relative duality gap at which a solver stops: 1e-6, in float32 1e-5."""
    single = jnp.finfo(dtype).bits <= 32
    if tol is None:
        return 1e-5 if single else 1e-6
    if not 0 < tol < math.inf:
        raise ValueError(f"tol must be > 0, got {tol}; as in solve.lasso(X, y, 0.1, tol=1e-8).")
    if single and tol < 5e-6:
        raise ValueError(
            f"tol={tol} is below what float32 can show (5e-6 of the objective at 0); pass X and y "
            "in float64 under jax.enable_x64(True)."
        )
    return tol


def correlations(pb: Problem, w: Array, r: Array) -> Float[Array, " p"]:
    """`X^T r / n - l2 w`, minus the gradient of the smooth part."""
    return r @ pb.X / pb.y.size - pb.l2 * w


def share(c: Array, thresholds: Array, positive: bool) -> Float[Array, ""]:
    """How much of the residual is a feasible dual point: `min(1, min_j a_j / |c_j|)`."""
    size = jnp.maximum(c, 0) if positive else jnp.abs(c)
    ratios = jnp.where(size > 0, thresholds / jnp.where(size > 0, size, 1), jnp.inf)
    return jnp.minimum(1.0, jnp.min(ratios, initial=jnp.inf))


def cost(w: Array, thresholds: Array) -> Float[Array, ""]:
    """`sum_j a_j |w_j|`, where an infinite a_j goes with a zero."""
    return jnp.sum(jnp.where(w == 0, 0, jnp.abs(w) * jnp.where(w == 0, 0, thresholds)))


def gap_of(pb: Problem, w: Array, r: Array, c: Array, positive: bool) -> tuple[Array, Array]:
    """The duality gap of w, and the scale of the dual point."""
    n, s = pb.y.size, share(c, pb.thresholds, positive)
    rr = jnp.vdot(r, r) / n + pb.l2 * jnp.vdot(w, w)
    gap = (1 + s**2) * rr / 2 + cost(w, pb.thresholds) - s * jnp.vdot(r, pb.y) / n
    return jnp.maximum(gap, 0), s


def duality_gap(
    X: ArrayLike,
    y: ArrayLike,
    w: ArrayLike,
    lam: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
) -> Float[Array, ""]:
    r"""How far the Lasso objective of w is from the minimum, at most.

    `P(w) - D(theta)` with `theta = s r / n`, `s = min(1, lam / |X^T r / n|_inf)`,
    `D(theta) = |y|^2 / (2 n) - n/2 |theta - y / n|^2`; with l2 on the augmented data.

    Args:
      X: Design (n, p).
      y: Target (n,).
      w: Coefficients (p,).
      lam: Strength of the l1 norm.
      weights: A weight per feature (p,).
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.

    Returns:
      A scalar >= 0, for lam = 0 without meaning; infinity if w is not allowed, as a negative one
      is with `positive`.

    Reference:
      Kim et al., An Interior-Point Method for Large-Scale l1-Regularized Least Squares, 2007.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = jnp.eye(2), jnp.array([2.0, 0.0])
      >>> solve.duality_gap(X, y, jnp.array([1.0, 0.0]), 0.5).item()
      0.0
    """
    pb = problem(X, y, lam, weights, l2)
    w = jnp.asarray(w, pb.y.dtype)
    if w.shape != pb.thresholds.shape:
        raise ValueError(f"w must have shape {pb.thresholds.shape}, got {w.shape}.")
    pb, units = balanced(pb)
    inside = units.inside(w)
    r = pb.y - pb.X @ inside
    gap = gap_of(pb, inside, r, correlations(pb, inside, r), positive)[0]
    return jnp.where(positive & jnp.any(w < 0), jnp.inf, units.objective(gap))


def lambda_max(
    X: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None, positive: bool = False
) -> Float[Array, ""]:
    r"""The smallest strength at which the Lasso's solution is 0: `|X^T y|_inf / n`.

    Args:
      X: Design (n, p).
      y: Target (n,), or (n, q) for the multi-task Lasso: then the largest norm of a row.
      weights: A weight > 0 per feature (p,), which divides its correlation.
      positive: Whether only positive correlations count.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> solve.lambda_max(jnp.eye(2), jnp.array([2.0, -4.0])).item()
      2.0
    """
    X, y = matrix_and_target(X, y, 2 if jnp.ndim(y) == 2 else 1, CALL)
    units = magnitude(X), magnitude(y)
    c = (X / units[0]).T @ (y / units[1]) / X.shape[0]
    if c.ndim == 2:
        size = jnp.linalg.norm(c, axis=-1)
    else:
        size = jnp.maximum(c, 0) if positive else jnp.abs(c)
    if weights is not None:
        check_weights(weights, X.shape[1])
        size = size / jnp.asarray(weights, size.dtype)
    return jnp.max(size) * units[0] * units[1]
