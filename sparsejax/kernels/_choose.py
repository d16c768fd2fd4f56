"""Which implementation of an operation runs: named, or chosen by the platform."""

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, TypeVar, cast

import jax

F = TypeVar("F", bound=Callable[..., Any])

NAMES = ("xla", "dense", "pallas_tpu", "pallas_gpu")
# What is tried on a platform where nothing is said.
DEFAULT = {"tpu": ("pallas_tpu", "xla", "dense"), "gpu": ("pallas_gpu", "xla", "dense")}


def names_of(
    what: str, implementation: str | Sequence[str] | None, also: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The names to try in turn; `also` is what only this operation has."""
    if implementation is None:
        return DEFAULT.get(jax.default_backend(), ("xla", "dense"))
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if any(name not in NAMES + also for name in names) or not names:
        raise ValueError(
            f"{what}(implementation={implementation!r}) must be among {[*NAMES, *also]}, a "
            "sequence of them to try, or None to choose."
        )
    return names


def load(package: str | None, name: str) -> ModuleType:
    """The module `_NAME` of an operation, when first asked for: Pallas takes long to import."""
    return importlib.import_module(f"._{name}", package)


def attempt(
    package: str | None, what: str, names: Iterable[str], operation: str, *args: Any
) -> Any:
    """The first implementation that does not raise NotImplementedError."""
    errors = []
    for name in names:
        try:
            return getattr(load(package, name), operation)(*args)
        except NotImplementedError as error:
            errors.append(f"{name}: {error}")
    raise NotImplementedError(f"{what}: no implementation can do this:\n  " + "\n  ".join(errors))


def without_hardware(function: F) -> F:
    """An operation that passes over kernels for hardware that is not there, or says so.

    Which platform something is lowered for is known to JAX alone, and only after tracing. Within
    a function that is jitted, and in a backward pass, its own error remains.
    """

    @functools.wraps(function)
    def called(*args: Any, implementation: str | Sequence[str] | None = None, **more: Any) -> Any:
        try:
            return function(*args, implementation=implementation, **more)
        except ValueError as error:
            if "Only interpret mode is supported" not in str(error):
                raise
            if implementation is None:
                return function(*args, implementation=("xla", "dense"), **more)
            names = [implementation] if isinstance(implementation, str) else implementation
            if rest := [name for name in names if not name.startswith("pallas")]:
                return function(*args, implementation=rest, **more)
            raise NotImplementedError(
                f"{function.__name__}(implementation={implementation!r}) does not run on a CPU; "
                "None chooses what does, and 'xla' runs everywhere."
            ) from error

    return cast(F, called)
