"""Checks of the numbers in frozen values, of which JAX may put anything at the leaves."""

from numbers import Real
from typing import Any

from .._arguments import is_int


def check_positive(what: str, least: float = 0.0, **numbers: Any) -> None:
    """Raises for a plain number that is not above `least`; arrays and tracers are not checked."""
    for name, x in numbers.items():
        if isinstance(x, bool | str) or (isinstance(x, Real) and not x > least):
            raise ValueError(f"{what}: {name} must be a number above {least:g}, got {x!r}.")


def check_not_negative(what: str, **numbers: Any) -> None:
    """Raises for a plain number that is negative or NaN."""
    for name, x in numbers.items():
        if isinstance(x, bool | str) or (isinstance(x, Real) and not x >= 0):
            raise ValueError(f"{what}: {name} must be a number of at least 0, got {x!r}.")


def most_of(what: str, k: Any, most: int | None) -> int | None:
    """The static capacity for k latents: k itself if it is a plain integer."""
    if isinstance(k, bool | str | float) or (is_int(k) and k < 1):
        raise ValueError(f"{what}: k must be an integer of at least 1, got {k!r}.")
    if most is not None and (not is_int(most) or most < 1 or (is_int(k) and k > most)):
        raise ValueError(f"{what}: most must be an integer of at least k, got {most!r} for {k!r}.")
    return int(k) if most is None and is_int(k) else most
