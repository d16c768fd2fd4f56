"""Which implementation of an operation runs: named, or chosen by the platform."""

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import jax

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
