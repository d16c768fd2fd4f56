"""Files that appear whole or not at all."""

import contextlib
import importlib
import os
import pathlib
import time
from collections.abc import Iterator
from functools import cache

import numpy as np

_STALE = 3600.0  # seconds after which what a killed process was writing is removed


def cache_file() -> pathlib.Path:
    """`SPARSEJAX_CACHE`, or a file in the user's cache directory.

    It holds measurements of kernels; what is compiled lies beside it.
    """
    return _cache_file(os.environ.get("SPARSEJAX_CACHE"), os.environ.get("XDG_CACHE_HOME"))


@cache
def _cache_file(named: str | None, root: str | None) -> pathlib.Path:
    try:
        if named:
            return pathlib.Path(named).expanduser()
        root = root or str(pathlib.Path.home() / ".cache")
    except RuntimeError:  # no home directory: nothing is read or written
        root = os.devnull
    return pathlib.Path(root) / "sparsejax" / "tuning.json"


@contextlib.contextmanager
def replacing(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which replaces `file` at the end, unless there is an error."""
    for left in file.parent.glob(f".{file.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
    written = file.with_name(f".{file.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    try:
        yield written
        os.replace(written, file)
    finally:
        with contextlib.suppress(OSError):
            written.unlink()


def read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name; ValueError for whatever is wrong with it. No pickles."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return dict(found.items())
    except Exception as error:  # of NumPy, of the archive, of its compression, of memory
        raise ValueError(f"it is not an npz file ({error})") from error


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Waits for other processes in the same block of code; makes the folder.

    The lock ends with its process, and leaves no file. Without it (on Windows, and on some network
    file systems) the last process to write wins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            fcntl, place = importlib.import_module("fcntl"), os.open(folder, os.O_RDONLY)
            stack.callback(os.close, place)
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
