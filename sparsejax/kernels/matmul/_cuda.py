"""N:M products on NVIDIA GPUs in CUDA C++, for few rows of x: the time is that of reading W.

Any pattern whose groups have 4 to 32 entries, a multiple of 4, and whose indices fit into 32 bits.
Compiled for one pattern when first requested, by the nvcc that comes with `jax[cuda13]`, and kept
in the user's cache directory.
"""

import os
import pathlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...formats import NMArray
from .. import _compile, _tuning
from ._finish import How, finish
from ._tiles import promoted

SOURCE = pathlib.Path(__file__).with_name("nm.cu")
WIDTH = 64  # columns of W in a block
BLOCKS = 256  # that keep a GPU busy
PARTS = 8  # that K is cut into at most, whose sums are added up at the end
ROWS = 64  # of x: with more, dense products are faster


def product(x: Float[Array, "m k"], w: NMArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    require(w, x.shape[0])
    dtype = promoted(x, w)
    groups, columns = w.values.shape[1:]
    x = jnp.pad(x.astype(dtype), ((0, 0), (0, w.padding)))
    code = jnp.repeat(w.code, w.share, axis=-1)
    out = jax.ShapeDtypeStruct((parts(groups, columns), x.shape[0], columns), jnp.float32)
    call = jax.ffi.ffi_call(_name(w), out, vmap_method="sequential")
    return finish(call(x, w.values.astype(dtype), code).sum(0), bias, how)


def transposed(dy: Any, w: NMArray, how: How) -> Any:
    """The groups lie along the output of this product: a dense product is what remains."""
    raise NotImplementedError("the transposed N:M product is dense")


def sampled(x: Any, dy: Any, w: NMArray, how: How) -> Any:
    """Nothing is saved: every entry of `x^T dy` is in reach of some slot."""
    raise NotImplementedError("the sampled N:M product is dense")


def explain(rows: int, w: NMArray) -> str:
    """What would run."""
    require(w, rows)
    return f"{w.n}:{w.m} in CUDA C++, {parts(*w.values.shape[1:])} parts of K"


def parts(groups: int, columns: int) -> int:
    """Into how many parts K is cut, so that there are enough blocks."""
    return max(1, min(PARTS, BLOCKS * WIDTH // columns, groups // 4))


def require(w: Any, rows: int) -> None:
    """Raises where there is no code for W, or no GPU, or no compiler."""
    if jax.default_backend() != "gpu":
        raise NotImplementedError(f"CUDA runs on a GPU, not on a {jax.default_backend()}")
    check(w, rows)
    capability = getattr(jax.devices()[0], "compute_capability", "")
    if why := compiled(w.n, w.m, capability, os.environ.get("NVCC"), _tuning.path()):
        raise NotImplementedError(why)


def check(w: Any, rows: int) -> None:
    """Raises where the kernel does not take W."""
    promoted(w)
    if not isinstance(w, NMArray):
        raise NotImplementedError(f"multiplies NMArray, not {type(w).__name__}")
    groups, columns = w.values.shape[-2:]
    if w.m % 4 or w.m > 32 or w.code.ndim == w.values.ndim:
        raise NotImplementedError(f"{w}: groups of 4 to 32, a multiple of 4, are needed")
    if not groups or groups % 4 or not columns or columns % WIDTH:
        raise NotImplementedError(f"{w}: multiples of 4 groups and {WIDTH} columns are needed")
    if not 0 < rows <= ROWS:
        raise NotImplementedError(f"x has {rows} rows, not 1 to {ROWS}")


@cache
def compiled(n: int, m: int, capability: str, nvcc: Any, path: pathlib.Path) -> str | None:
    """Compiles for one pattern, once; what is wrong, None if nothing."""
    del nvcc, path  # another one may do
    options = ["-O3", f"-arch=sm_{capability.replace('.', '')}", f"-DSLOTS={n}", f"-DGROUP={m}"]
    calls = {f"sparsejax_{n}_of_{m}": "SparsejaxNM"}
    try:
        _compile.register(SOURCE, options, calls, "CUDA", compiler=_compile.nvcc())
    except NotImplementedError as error:
        return str(error)


def _name(w: NMArray) -> str:
    return f"sparsejax_{w.n}_of_{w.m}"
