"""2:4 products by NVIDIA's library cuSPARSELt, for many rows of x: an optional extra.

The binding is compiled at first use by the installed C++ compiler and kept in the user's cache
directory: two calls through `jax.ffi`, one that compresses W (XLA hoists it out of a loop if W is
constant) and one that multiplies, by the fastest algorithm that the library finds. It rounds sums
to the dtype of x. It is enabled only after `probe` has compared small products with those of XLA.
Not yet measured on hardware.
"""

import os
import pathlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ... import _compile
from ...formats import NMArray, SparseArray, TensorCoreArray
from .._finish import How, finish
from .._table import Implementation
from .._tiles import padded_rows, promoted
from ._two_four import failure, require_probed

SOURCE = pathlib.Path(__file__).with_name("cusparselt.cc")
NAMES = {"sparsejax_compress": "SparsejaxCompress", "sparsejax_multiply": "SparsejaxMultiply"}
SIDE = 16  # divisor of the rows of x and of both sides of W
PROBES = ((64, 128, 64), (48, 512, 256))
TOOLKIT = "/usr/local/cuda"


def product(x: Float[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`, after a probe of the device."""
    check(w, x.shape[0])
    require(promoted(x, w))
    return multiply(x, w, bias, how)


def explain(rows: int, w: SparseArray) -> str:
    """A description of the product, after a probe of the device."""
    check(w, rows)
    require(promoted(w))
    return "cuSPARSELt"


def check(w: Any, rows: int = 1) -> None:
    """Raises if the library does not support W."""
    promoted(w)
    if not rows:
        raise NotImplementedError("x has no rows")
    two_of_four = isinstance(w, NMArray) and (w.n, w.m) == (2, 4)
    if not (two_of_four or isinstance(w, TensorCoreArray)):
        raise NotImplementedError("cuSPARSELt multiplies 2:4 matrices")
    if not w.size or any(side % SIDE for side in w.shape[-2:]):
        raise NotImplementedError(f"{w}: cuSPARSELt requires multiples of {SIDE}")


def multiply(x: Float[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """Compresses W and multiplies."""
    dtype = promoted(x, w)
    y = multiplied(x.astype(dtype), compressed(w.astype(dtype)), w.shape[-1])
    return finish(y.astype(jnp.float32), bias, how)


def compressed(w: SparseArray) -> UInt8[Array, " bytes"]:
    """W in the format of the library."""
    dense = w.todense().T
    # 9/16 of the dense bytes, plus alignment.
    room = dense.size * dense.dtype.itemsize * 5 // 8 + 2**16
    return _call("sparsejax_compress", (room,), jnp.uint8)(dense)


def multiplied(x: Float[Array, "m k"], packed: Any, columns: int) -> Float[Array, "m n"]:
    """The product with a compressed matrix, in the dtype of x."""
    padded = padded_rows(x, SIDE)
    y = _call("sparsejax_multiply", (padded.shape[0], columns), x.dtype)(packed, padded)
    return y[: x.shape[0]]


def _call(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    out = jax.ShapeDtypeStruct(shape, dtype)
    return jax.ffi.ffi_call(name, out, vmap_method="sequential")


def require(dtype: Any) -> None:
    """Raises unless small products on this device passed a self-test."""
    require_probed("cuSPARSELt", "a GPU", on_gpu, probe, dtype)


def on_gpu(device: Any) -> bool:
    """Whether the library supports the device."""
    return device.platform == "gpu"


@cache
def probe(dtype: str) -> str | None:
    """The reason for a failed self-test, once per process; None if it passed."""
    try:
        register()
    except NotImplementedError as error:
        return f"cuSPARSELt: {error}"
    return failure("cuSPARSELt", multiply, PROBES, dtype)


@cache
def register() -> None:
    """Registers the calls with XLA; raises NotImplementedError if a file is missing."""
    library, runtime = find("libcusparseLt.so*"), find("libcudart.so*")
    _compile.register(SOURCE, options(headers(), (library, runtime)), "", NAMES, "CUDA")


def headers() -> tuple[pathlib.Path, ...]:
    """The folders of the headers of the library and of CUDA; a wheel may lack some of them."""
    common = find("crt/host_defines.h").parent.parent
    return find("cusparseLt.h").parent, common, find("cuda_runtime_api.h").parent


def options(folders: Iterable[pathlib.Path], libraries: Iterable[pathlib.Path]) -> list[str]:
    """The compiler options."""
    paths = [f"-Wl,-rpath,{file.parent}" for file in libraries]
    return ["-O2", *(f"-I{folder}" for folder in folders), *map(str, libraries), *paths]


def find(pattern: str) -> pathlib.Path:
    """A file of CUDA: of the wheels beside JAX, below `CUDA_HOME`, or of the usual toolkit."""
    try:
        import nvidia  # pyright: ignore[reportMissingImports]

        roots = [*nvidia.__path__]
    except ImportError:
        roots = []
    for root in (*roots, *filter(None, [os.environ.get("CUDA_HOME")]), TOOLKIT):
        for found in sorted(pathlib.Path(root).rglob(pattern)):
            return found
    raise NotImplementedError(
        f'{pattern} is in no wheel and not below CUDA_HOME; pip install "sparsejax[cusparselt]"'
    )


IMPLEMENTATION = Implementation(product, explain=explain)
