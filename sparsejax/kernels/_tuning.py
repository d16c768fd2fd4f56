"""Which implementation has been measured fastest, kept in a file from one process to the next."""

import json
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax

ROUNDS, SECONDS = 5, 0.02  # of interleaved timing; each round of a candidate takes as long


def path() -> pathlib.Path:
    """The file: the environment's `SPARSEJAX_CACHE`, or one in the user's cache directory."""
    return _path(os.environ.get("SPARSEJAX_CACHE"), os.environ.get("XDG_CACHE_HOME"))


def fastest(case: Callable[..., str], *args: Any) -> str | None:
    """The name measured fastest for `case(*args)` on this device with this JAX, if measured."""
    table = _loaded(path())
    if not table:  # as for most users: costs a microsecond
        return None
    found = table.get(device(), {}).get(case(*args), {})
    return min(found, key=found.__getitem__) if found else None


def keep(case: str, seconds: Mapping[str, float]) -> None:
    """Writes what was measured to the file, whole or not at all."""
    file = path()
    known = _loaded(file)
    _loaded.cache_clear()  # what other processes have written since
    table = _loaded(file)
    table.setdefault(device(), {})[case] = dict(seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            written = pathlib.Path(folder, file.name)
            written.write_text(json.dumps(table, indent=1, sort_keys=True))
            os.replace(written, file)
    except OSError as error:
        for where, cases in known.items():  # what could not be written before
            table[where] = {**cases, **table.get(where, {})}
        warnings.warn(
            f"tune: {file} cannot be written, so what was measured is known to this process only: "
            f"{error}; SPARSEJAX_CACHE names another file.",
            stacklevel=3,
        )


def device() -> str:
    """What measurements hold for: the kind of device and the version of JAX."""
    return f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"


def measure(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Best seconds per call of each, fastest first, in interleaved rounds."""
    best, repeats = dict.fromkeys(calls, float("inf")), {}
    for name, call in calls.items():
        repeats[name] = max(1, int(SECONDS / max(_timed(call, 1), 1e-9)))
    for _ in range(ROUNDS):
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
def _path(named: str | None, root: str | None) -> pathlib.Path:
    try:
        if named:
            return pathlib.Path(named).expanduser()
        root = root or str(pathlib.Path.home() / ".cache")
    except RuntimeError:  # a user without a home: nothing is found here, and nothing written
        root = os.devnull
    return pathlib.Path(root) / "sparsejax" / "tuning.json"


@cache
def _loaded(file: pathlib.Path) -> dict[str, Any]:
    """The file's table, read once; empty if there is none or it is not one."""
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
            f"{file} is not a table of measurements and is not used ({error}); delete it or tune "
            "anew.",
            stacklevel=2,
        )
        return {}
