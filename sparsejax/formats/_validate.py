"""Checks of matrices of unknown origin: the parts of a format against each other."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._sharding import on_host


def need(matrix: Any, holds: Any, what: str) -> None:
    """Raises ValueError unless the condition holds: `what` is true of a valid matrix."""
    if not bool(holds):
        raise ValueError(f"{type(matrix).__name__} is damaged: {what}.")


def need_floats(matrix: Any, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of an array of floats, `(stacked..., ndim axes)`."""
    x = getattr(matrix, name)
    fits = isinstance(x, Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)
    need(matrix, fits, f"{name} must be an array of floats, got {_about(x)}")
    need(matrix, x.ndim >= ndim, f"{name} must have {ndim} axes or more, got {_about(x)}")
    return x.shape


def need_integers(matrix: Any, name: str, shape: tuple[int, ...], *dtypes: Any) -> np.ndarray:
    """An array of integers of that shape and one of the dtypes, on the host."""
    x = getattr(matrix, name)
    fits = isinstance(x, Array | np.ndarray) and x.dtype in dtypes and x.shape == shape
    named = " or ".join(np.dtype(d).name for d in dtypes)
    need(matrix, fits, f"{name} must be {named} of shape {shape}, got {_about(x)}")
    return on_host(x)


def need_range(matrix: Any, name: str, x: np.ndarray, end: int) -> None:
    """Integers in `[0, end)`."""
    if x.size:
        low, high = int(x.min()), int(x.max())
        need(matrix, 0 <= low <= high < end, f"{name} holds {low} to {high}, out of [0, {end})")


def need_static(matrix: Any, name: str, least: int, most: int) -> int:
    """A static integer between two others."""
    x = getattr(matrix, name)
    fits = type(x) is int and least <= x <= most
    need(matrix, fits, f"{name} must be an integer from {least} to {most}, got {x!r:.40}")
    return x


def need_ascending(matrix: Any, name: str, x: np.ndarray, used: Any, axis: int = -1) -> None:
    """Integers that rise along an axis, among those that are used."""
    first, second = (np.moveaxis(np.broadcast_to(a, x.shape), axis, -1) for a in (x, used))
    steps = np.diff(first.astype(np.int64))
    fine = bool(((steps > 0) | ~second[..., 1:]).all())
    need(matrix, fine, f"{name} must ascend without repetition")


_LISTS = (np.int32, np.uint16, np.uint8)  # narrow ones in a matrix for inference


def need_lists(
    matrix: Any, names: tuple[str, ...], shape: tuple[int, ...], ends: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    """Lists of indices, and the count of those in use, which is the last name; padding is 0."""
    *lists, count = names
    wide = lambda name: need_integers(matrix, name, shape, *_LISTS).astype(np.int64)  # noqa: E731
    parts = [wide(name) for name in lists]  # differences of unsigned integers would wrap
    counts = need_integers(matrix, count, shape[:-1], *_LISTS).astype(np.int64)
    need_range(matrix, count, counts, shape[-1] + 1)
    used = np.arange(shape[-1]) < counts[..., None]
    for name, part, end in zip(lists, parts, ends):
        need_range(matrix, name, part[used], end)
        need(matrix, not part[~used].any(), f"{name} must be 0 from {count} on")
    need_ascending(matrix, lists[0], parts[0], used)
    return *parts, used


def _about(x: Any) -> str:
    if isinstance(x, Array | np.ndarray):
        return f"{x.dtype} of shape {x.shape}"
    return f"a {type(x).__name__}"
