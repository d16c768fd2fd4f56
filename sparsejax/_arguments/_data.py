"""Checks of the data and the strengths of regression problems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arrays import wide_dtype
from .._sharding import on_host
from .._tree import is_array
from ._numbers import is_infinite_in, is_nan_in, known


def matrix_and_target(
    X: Any, y: Any, ndim: int, call: str, names: tuple[str, str] = ("X", "y")
) -> tuple[Array, Array]:
    """X (n, p) and y (n,) or (n, q) as floats of one dtype; rejects NaN unless traced."""
    if not is_array(X):
        raise TypeError(
            f"{names[0]} must be an array, got a {type(X).__name__}; as in {call}. "
            f"Of a SciPy sparse matrix pass {names[0]}.toarray(), or use solve.lasso_host."
        )
    check_matrix_and_target(X, y, ndim, call, names)
    dtype = wide_dtype(X, y)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{names[0]} and {names[1]} must be real, got {dtype}; use solve.proximal_gradient."
        )
    for name, x in zip(names, (X, y)):
        if not _is_finite(x):
            raise ValueError(f"{name} holds NaN or infinity; drop or impute those rows first.")
    return jnp.asarray(X, dtype), jnp.asarray(y, dtype)


def check_matrix_and_target(
    X: Any, y: Any, ndim: int, call: str, names: tuple[str, str] = ("X", "y")
) -> None:
    """Raises unless X has a shape (n, p) and y is an array (n,) or (n, q)."""
    if not is_array(y):
        raise TypeError(f"{names[1]} must be an array, got a {type(y).__name__}; as in {call}.")
    if len(X.shape) != 2 or 0 in X.shape:
        wanted = f"{names[0]} must be a matrix (n, p), not empty"
        raise ValueError(f"{wanted}, got {X.shape}; as in {call}.")
    if 0 in y.shape or len(y.shape) != ndim or y.shape[0] != X.shape[0]:
        shape = f"({X.shape[0]},)" if ndim == 1 else f"({X.shape[0]}, q)"
        wanted = f"{names[1]} must have the shape {shape} of {names[0]}'s rows"
        raise ValueError(f"{wanted}, got {y.shape}; as in {call}.")


def _is_finite(x: Any) -> bool:
    """Whether all entries are finite; True if traced. JAX arrays are not copied to the host."""
    if not known(x) or not isinstance(x, Array):
        return not known(x) or bool(np.isfinite(x).all())
    with jax.ensure_compile_time_eval():  # known arrays, also inside jit
        return bool(jnp.isfinite(x).all())


def near_one(**arrays: Any) -> None:
    """Validates data of problems that are not scale invariant and cannot be rescaled internally."""
    if not all(map(known, arrays.values())):
        return
    with jax.ensure_compile_time_eval():  # known arrays, also inside jit
        sizes = {name: float(abs(x).max()) for name, x in arrays.items()}
    for a, x in sizes.items():
        for b, y in sizes.items():
            limits = jnp.finfo(arrays[a].dtype)
            most = float(limits.max) / arrays[a].size
            if x * y and not float(limits.tiny / limits.eps) <= x * y <= most:
                raise ValueError(
                    f"{a} * {b}, of sizes {x:.3g} and {y:.3g}, is out of the range of "
                    f"{limits.dtype}; rescale the data, and all arguments in their units."
                )


def check_strength(name: str, x: Any, shape: tuple[int, ...], dtype: Any = jnp.float64) -> None:
    """A number >= 0 (or an array of them) of the dtype; validated if concrete."""
    if not is_array(x) and (isinstance(x, bool) or not isinstance(x, int | float)):
        wanted, example = ("an array", f"np.array({name})") if shape else ("a number", "0.1")
        raise TypeError(f"{name} must be {wanted}, got {x!r}; {example} for example.")
    if np.shape(x) != shape:
        many = (
            "" if shape else f"; for several jax.vmap over {name}, or solve.lasso_path for a path"
        )
        raise ValueError(f"{name} must have shape {shape}, got {np.shape(x)}{many}.")
    if known(x) and not np.all(on_host(x) >= 0):
        raise ValueError(f"{name} must be >= 0, got {x}.")
    if known(x):
        limits, numbers = jnp.finfo(dtype), on_host(x).astype(np.float64)
        lost = (numbers < float(limits.tiny)) & (numbers > 0)
        if np.any(lost | (numbers > float(limits.max)) & np.isfinite(numbers)):
            raise ValueError(f"{name}={x} is out of the range of {limits.dtype}; rescale X and y.")


def check_weights(weights: Any, p: int) -> None:
    """Raises unless concrete weights are positive."""
    check_strength("weights", weights, (p,))
    if known(weights) and np.any(on_host(weights) == 0):
        raise ValueError(
            "weights must be > 0, infinite ones force a zero: the duality gap of a feature "
            "without penalty is not finite. Project it out of X and y first, or use "
            "solve.proximal_gradient(smooth, prox.l1(strength * weights), w0)."
        )


def finite_array(caller: str, name: str, x: ArrayLike, ndim: int) -> Array:
    """A non-empty array of floats, without NaN or infinity unless traced."""
    x = jnp.asarray(x)
    if x.ndim != ndim or 0 in x.shape:
        raise ValueError(
            f"{caller}: {name} must be an array of {ndim} axes, not empty, got shape {x.shape}."
        )
    if not _is_finite(x):
        raise ValueError(f"{caller}: {name} of shape {x.shape} holds NaN or infinity.")
    return x.astype(wide_dtype(x))


def checked_start(caller: str, w0: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """The initial value of a solver in a real dtype, 0 for None."""
    if w0 is None:
        return jnp.zeros(shape, dtype)
    if np.shape(w0) != shape:
        raise ValueError(f"{caller}: w0 must have shape {shape}, got {np.shape(w0)}.")
    if jnp.iscomplexobj(w0):
        raise TypeError(f"{caller}: w0 must be real, got {jnp.result_type(w0)}; pass w0.real.")
    with np.errstate(over="ignore"):  # what the dtype cannot hold is infinite
        return jnp.asarray(w0, dtype)


def check_not_nan(caller: str, /, **arrays: Any) -> None:
    """Raises if a concrete array holds NaN, of which every comparison is False."""
    for name, x in arrays.items():
        if is_nan_in(x):
            what = f"{name} {np.shape(x)} holds" if np.ndim(x) else f"{name} must be a number, got"
            raise ValueError(
                f"{caller}: {what} NaN; jax.config.update('jax_debug_nans', True) finds its origin."
            )


def check_finite(caller: str, /, **arrays: Any) -> None:
    """Raises if a concrete array holds NaN or infinity."""
    check_not_nan(caller, **arrays)
    for name, x in arrays.items():
        if is_infinite_in(x):
            what = f"{name} {np.shape(x)} holds infinity" if np.ndim(x) else f"{name}={x}"
            raise ValueError(f"{caller}: {what} and must be finite.")


def path_strengths(largest: ArrayLike, count: int, eps: float) -> Float[Array, " k"]:
    """A geometric sequence from the largest strength down to eps times it."""
    if count < 1 or not 0 < eps <= 1:
        raise ValueError(f"n_lams must be >= 1 and eps in (0, 1], got {count} and {eps}.")
    return jnp.asarray(largest) * eps ** (jnp.arange(count) / max(count - 1, 1))
