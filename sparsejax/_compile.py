"""Compilation of C++ on the user's machine at first use."""

import ctypes
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache

import jax

from ._files import cache_file, replacing


@cache
def compiled(
    source: pathlib.Path,
    headers: tuple[pathlib.Path, ...],
    calls: tuple[tuple[str, str], ...],
    compiler: str | None,
    path: pathlib.Path,
) -> str | None:
    """Compiles calls, name and symbol, for this processor, once; returns the error, or None."""
    del compiler, path  # cache keys: another compiler may succeed
    try:
        register(source, *for_this_processor(headers), dict(calls), "cpu")
    except NotImplementedError as error:
        return str(error)


def loaded(
    source: pathlib.Path, headers: tuple[pathlib.Path, ...], options: tuple[str, ...] = ()
) -> ctypes.CDLL:
    """A file compiled for this processor, loaded once; another compiler or cache may succeed.

    `options` are more of the compiler, such as definitions of macros.

    Raises NotImplementedError as `built`, or if it cannot be loaded.
    """
    return _loaded(source, headers, options, os.environ.get("CXX"), cache_file())


@cache
def _loaded(
    source: pathlib.Path,
    headers: tuple[pathlib.Path, ...],
    options: tuple[str, ...],
    compiler: str | None,
    path: pathlib.Path,
) -> ctypes.CDLL:
    del compiler, path
    own, about = for_this_processor(headers)
    return _open(built(source, [*own, *options], about))


def _open(file: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NotImplementedError(f"{file} cannot be loaded: {error}") from error


def for_this_processor(headers: Sequence[pathlib.Path] = ()) -> tuple[list[str], str]:
    """The options of the compiler, and what the result depends on beside them and the source."""
    # Without the instructions of the processor tiles spill from the registers.
    options = ["-O3", "-march=native", *(f"-I{header.parent}" for header in headers)]
    return options, "".join([processor(), *(header.read_text() for header in headers)])


def register(
    source: pathlib.Path, options: Sequence[str], about: str, calls: Mapping[str, str], where: str
) -> None:
    """Registers the calls in a C++ file, name -> symbol, with XLA on a platform.

    Raises NotImplementedError if the compiler is missing or fails, or its result cannot be loaded.
    """
    library = _open(built(source, options, about))
    for name, symbol in calls.items():
        call = jax.ffi.pycapsule(getattr(library, symbol))
        try:
            jax.ffi.register_ffi_target(name, call, platform=where)
        except jax.errors.JaxRuntimeError as error:
            if "Duplicate" not in str(error):  # already registered with the same function
                raise


def built(source: pathlib.Path, options: Sequence[str], about: str = "") -> pathlib.Path:
    """The compiled file, from the cache directory if it has been compiled before.

    The name of a file holds a key of its source, compiler options and further dependencies
    (`about`), and a digest of the file itself: a damaged one is deleted and compiled again.
    """
    command = [*shlex.split(os.environ.get("CXX") or "g++"), "-std=c++17", "-shared", "-fPIC", "-w"]
    command += [str(source), f"-I{jax.ffi.include_dir()}", *options]
    known = (
        repr((command, importlib.metadata.version("jaxlib"), about)).encode() + source.read_bytes()
    )
    folder, stem = cache_file().parent.absolute(), f"{source.stem}-{_digest(known)}"
    try:
        for file in folder.glob(f"{stem}-*.so"):
            if file.stem == f"{stem}-{_digest(file.read_bytes())}":
                return file
            file.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Not in the cache directory, where a killed process would leave it.
        with tempfile.TemporaryDirectory(prefix="sparsejax-") as elsewhere:
            made = pathlib.Path(elsewhere, "made.so")
            _run([*command, "-o", str(made)])
            compiled = made.read_bytes()
        file = folder / f"{stem}-{_digest(compiled)}.so"
        with replacing(file) as written:
            written.write_bytes(compiled)
    except OSError as error:
        raise NotImplementedError(
            f"{folder} cannot be used ({error}); set SPARSEJAX_CACHE to a file in another folder"
        ) from error
    return file


def processor() -> str:
    """The features of the processor, for `about`: what `-march=native` compiles runs only on it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NotImplementedError(f"{command[0]} fails: {error.stderr[:500]}") from error
    except OSError as error:
        raise NotImplementedError(
            f"cannot be compiled: {error}; set the environment variable CXX to a C++ compiler"
        ) from error
