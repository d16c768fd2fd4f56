"""Compilation of C++ on the user's machine at first use."""

import ctypes
import hashlib
import importlib.metadata
import os
import pathlib
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

import jax

from . import _tuning


def register(
    source: pathlib.Path,
    options: Sequence[str],
    calls: Mapping[str, str],
    where: str,
    about: str = "",
) -> None:
    """Registers the calls in a C++ file, name -> symbol, with XLA on a platform.

    Raises NotImplementedError if the compiler is missing or fails, or its result cannot be loaded.
    """
    file = built(source, options, about)
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise NotImplementedError(f"{file} cannot be loaded: {error}") from error
    for name, symbol in calls.items():
        call = jax.ffi.pycapsule(getattr(library, symbol))
        try:
            jax.ffi.register_ffi_target(name, call, platform=where)
        except jax.errors.JaxRuntimeError as error:
            if "Duplicate" not in str(error):  # already registered with the same function
                raise


def built(source: pathlib.Path, options: Sequence[str], about: str = "") -> pathlib.Path:
    """The compiled file, from the cache directory if it has been compiled before.

    The cache key consists of its source, its compiler options, and further dependencies (`about`).
    """
    command = [*shlex.split(os.environ.get("CXX") or "g++"), "-std=c++17", "-shared", "-fPIC", "-w"]
    command += [str(source), f"-I{jax.ffi.include_dir()}", *options]
    known = (
        repr((command, importlib.metadata.version("jaxlib"), about)).encode() + source.read_bytes()
    )
    name = f"{source.stem}-{hashlib.sha256(known).hexdigest()[:16]}.so"
    file = _tuning.path().parent.absolute() / name
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = f"{folder}/made.so"
            _run([*command, "-o", made])
            os.replace(made, file)  # atomic
    except OSError as error:
        raise NotImplementedError(
            f"{file} cannot be written ({error}); set SPARSEJAX_CACHE to a file in another folder"
        ) from error
    return file


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise NotImplementedError(f"{command[0]} fails: {error.stderr[:500]}") from error
    except OSError as error:
        raise NotImplementedError(
            f"cannot be compiled: {error}; set the environment variable CXX to a C++ compiler"
        ) from error
