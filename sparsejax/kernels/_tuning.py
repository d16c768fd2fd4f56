"""A persistent table of the fastest measured implementations."""

import json
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax

from .._arguments import checked
from .._files import cache_file, locked, replacing

ROUNDS, SECONDS = 5, 0.02  # interleaved timing rounds; duration per candidate and round


def fastest(case: Callable[..., str], *args: Any) -> str | None:
    """The fastest measured name for `case(*args)` on this device and JAX version, if measured."""
    table = _loaded(cache_file())
    if not table:  # the usual case: costs a microsecond
        return None
    found = table.get(device(), {}).get(case(*args), {})
    return min(found, key=found.__getitem__) if found else None


def keep(case: str, seconds: Mapping[str, float]) -> None:
    """Writes measurements to the file atomically, one process after the other."""
    file = cache_file()
    known = _loaded(file)
    try:
        with locked(file.parent), replacing(file) as written:
            table = _merged(file, case, seconds)
            written.write_text(json.dumps(table, indent=1, sort_keys=True))
    except OSError as error:
        table = _merged(file, case, seconds)
        for where, cases in known.items():  # entries that could not be written before
            table[where] = {**cases, **table.get(where, {})}
        warnings.warn(
            f"tune: {file} cannot be written, so the measurements apply to this process only: "
            f"{error}; set SPARSEJAX_CACHE to another file.",
            stacklevel=3,
        )


def _merged(file: pathlib.Path, case: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The table with what other processes have written meanwhile, and this case."""
    _loaded.cache_clear()
    table = _loaded(file)
    table.setdefault(device(), {})[case] = dict(seconds)
    return table


def device() -> str:
    """The key of measurements: the device kind and the JAX version."""
    return f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"


@checked(rounds="[1, inf)", seconds="[0, inf)")
def measure(
    calls: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, float]:
    """Best seconds per call of each candidate, fastest first.

    The minimum over interleaved rounds: other load only ever adds time, and a slow period affects
    all candidates alike. Each candidate runs once before, to compile.

    Args:
      calls: Functions without arguments by name; they return arrays.
      rounds: Number of rounds.
      seconds: Time spent on a candidate in each round; 0 calls each once per round.

    Returns:
      Seconds per call by name.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> x = jnp.ones((64, 64))
      >>> sorted(sj.kernels.measure({"product": lambda: x @ x, "sum": lambda: x + x}, 2, 1e-3))
      ['product', 'sum']
    """
    best, repeats = dict.fromkeys(calls, float("inf")), {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, int(seconds / max(_timed(call, 1), 1e-9)))
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], _timed(call, repeats[name]))
    return dict(sorted(best.items(), key=lambda item: item[1]))


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


@cache
def _loaded(file: pathlib.Path) -> dict[str, Any]:
    """The table in the file, read once; empty if the file is missing or invalid."""
    try:
        if not file.is_file():
            return {}
        table = json.loads(file.read_text())
        for cases in table.values():
            for seconds in cases.values():
                seconds.update({name: float(value) for name, value in seconds.items()})
        return table
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{file} is not a table of measurements and is ignored ({error}); delete it or run "
            "`tune` again.",
            stacklevel=2,
        )
        return {}
