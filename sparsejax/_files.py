"""Files that appear whole or not at all."""

import contextlib
import importlib
import os
import pathlib
import time
from collections.abc import Iterator

_STALE = 3600.0  # seconds after which what a killed process was writing is removed


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
