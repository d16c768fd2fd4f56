"""The table of implementations by operation and format, and their selection.

One table: (operation, format, name) -> Implementation. A format inherits the implementations of its
base classes, so that every format has "dense".
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from .._arguments import checked

EVERYWHERE = ("cpu", "gpu", "tpu")
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@dataclass(frozen=True)
class Implementation:
    """One implementation of an operation; raises NotImplementedError for unsupported cases.

    Args:
      product: `(x, w, bias, how)` to `activation(x W + bias)`, `(M, N)`; operations on active units
        have their own arguments.
      transposed: `(dy, w, how)` to `dy W^T`, the gradient with respect to x; None uses XLA.
      sampled: `(x, dy, w, how)` to `x^T dy` at the stored positions, the gradient with respect to
        the values; None uses XLA.
      explain: `(rows, w)` to a description of the selected form.
    """

    product: Callable[..., Any]
    transposed: Callable[..., Any] | None = None
    sampled: Callable[..., Any] | None = None
    explain: Callable[[int, Any], str] | None = None


class _Entry(NamedTuple):
    """An implementation that is loaded at first use, since Pallas is slow to import."""

    load: Callable[[], Implementation]
    platforms: tuple[str, ...]
    automatic: bool


_table: dict[str, dict[type, dict[str, _Entry]]] = {}


@checked()
def implement(
    operation: str,
    format: type,
    name: str,
    *,
    platforms: Sequence[str] = EVERYWHERE,
    automatic: bool = True,
) -> Callable[[Callable[[], Implementation]], Callable[[], Implementation]]:
    """Registers an implementation of an operation for a format.

    Decorates a function without arguments that returns an `Implementation`; it is called at first
    use. Implementations are tried in the order of registration.

    Args:
      operation: "matmul", "active_reduce", "active_expand", "gated_products", "gated_mlp",
        "attention" or "paged_attention".
      format: The class of W, of the set of active units, or of the lists of key blocks.
      name: Name for `implementation=`.
      platforms: Supported platforms.
      automatic: Whether it is tried with `implementation=None`.

    Example:
      >>> import sparsejax as sj
      >>> class Mine(sj.formats.NMArray):
      ...     pass
      >>> @sj.kernels.implement("matmul", Mine, "mine")
      ... def _():
      ...     return sj.kernels.Implementation(lambda x, w, bias, how: x @ w.todense())
      >>> sj.kernels.names("matmul", Mine)
      ('mine', 'pallas_tpu', 'pallas_gpu', 'native', 'sparse_cores', 'cusparselt', 'xla', 'dense')
    """

    unknown = [x for x in platforms if x not in EVERYWHERE]
    if unknown:
        raise ValueError(f"implement: platforms must be among {EVERYWHERE}, got {unknown}.")

    def register(load: Callable[[], Implementation]) -> Callable[[], Implementation]:
        entry = _Entry(functools.cache(load), tuple(platforms), automatic)
        _table.setdefault(operation, {}).setdefault(format, {})[name] = entry
        return load

    return register


@checked()
def names(operation: str, format: type | None = None) -> tuple[str, ...]:
    """The names of the implementations of an operation, for one format or for all.

    Args:
      operation: As for `implement`.
      format: A class; None for all formats.

    Example:
      >>> import sparsejax as sj
      >>> sj.kernels.names("active_reduce")
      ('pallas_tpu', 'pallas_gpu', 'native', 'xla', 'dense')
    """
    if operation not in _table:
        raise ValueError(f"names: operation must be one of {', '.join(_table)}, got {operation!r}.")
    if format is not None:
        return tuple(_entries(operation, format))
    return tuple(dict.fromkeys(n for entries in _table[operation].values() for n in entries))


def _entries(operation: str, format: type) -> dict[str, _Entry]:
    """The implementations of a format by name, its own first."""
    found: dict[str, _Entry] = {}
    for cls in format.__mro__:
        for name, entry in _table[operation].get(cls, {}).items():
            found.setdefault(name, entry)
    return found


def requested(
    operation: str,
    format: type,
    implementation: str | Sequence[str] | None,
    platform: str,
    function: str | None = None,
) -> tuple[str, ...]:
    """The names to try in turn; None selects all automatic ones of the platform.

    Errors name `function`, by default the operation.
    """
    if implementation is None:
        entries = _entries(operation, format).items()
        return tuple(n for n, e in entries if e.automatic and platform in e.platforms)
    chosen = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    known = names(operation)
    if not chosen or any(name not in known for name in chosen):
        raise ValueError(
            f"{function or operation}: implementation must be among "
            f"{', '.join(map(repr, known))}, a sequence of them to try, or None to choose, got "
            f"{implementation!r}."
        )
    return chosen


def runs_on(operation: str, format: type, name: str, platform: str) -> bool:
    """Whether an implementation can be compiled for a platform."""
    return platform in _entries(operation, format)[name].platforms


def get(operation: str, format: type, name: str, platform: str) -> Implementation:
    """An implementation; raises NotImplementedError if the format or platform has none."""
    entry = _entries(operation, format).get(name)
    if entry is None:
        raise NotImplementedError(f"no implementation for {format.__name__}")
    if platform not in entry.platforms:
        raise NotImplementedError(
            f"runs on {' or '.join(entry.platforms)}, not on {platform}; implementation=None "
            "chooses one that does"
        )
    return entry.load()


def attempt(
    operation: str,
    format: type,
    chosen: Iterable[str],
    call: Callable[[Implementation], Any],
    platform: str,
) -> Any:
    """`call(implementation)` of the first one that does not raise NotImplementedError."""
    errors = []
    for name in chosen:
        try:
            return call(get(operation, format, name, platform))
        except NotImplementedError as error:
            errors.append(f"{name}: {error}")
    raise NotImplementedError(
        f"{operation}: no implementation supports this case:\n  " + "\n  ".join(errors)
    )


def platform_of(*arrays: Any) -> str:
    """The target platform of a call: that of its arrays, or JAX's default."""
    if chosen := _platform.get():
        return chosen
    for x in jax.tree.leaves(arrays):
        if isinstance(x, jax.Array) and not isinstance(x, Tracer):
            return next(iter(x.devices())).platform
    return jax.default_backend()


@checked()
def lowering_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Traces for another platform: to lower or export for it, or to interpret its kernels.

    Args:
      platform: "cpu", "gpu" or "tpu".

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.ones((128, 128)), 128)
      >>> with sj.kernels.lowering_for("tpu"):
      ...     sj.kernels.explain(jnp.ones((8, 128)), w, "pallas_tpu")
      'pallas_tpu: blocks of 128x128, tiles of 8 rows'
    """
    if platform not in EVERYWHERE:
        raise ValueError(f"lowering_for: platform must be among {EVERYWHERE}, got {platform!r}.")
    return _lowering_for(platform)


@contextlib.contextmanager
def _lowering_for(platform: str) -> Iterator[None]:
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
