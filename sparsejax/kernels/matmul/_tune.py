"""Measures the implementations of a product and stores the fastest."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ..._arguments import known
from ..._arrays import wide_dtype
from ...formats import SparseArray
from .. import _tuning
from .._table import names, platform_of, runs_on
from ._api import matmul
from ._order import case_of


def tune(x: Shaped[Array, "..."], w: Any) -> dict[str, float]:
    """Times every implementation of `matmul(x, w)` that runs here, and stores the times.

    Afterwards `matmul` with `implementation=None` uses the fastest for products of the same shapes,
    pattern (n, m and share, or sizes of blocks and slots) and dtypes; already-traced functions keep
    their implementation. On a CPU the first call compiles "native" if a C++ compiler is installed,
    which takes about ten seconds. The times are stored by device kind and JAX version in a JSON
    file: `SPARSEJAX_CACHE`, or `sparsejax/tuning.json` in `XDG_CACHE_HOME` or `~/.cache`. An
    implementation whose result differs from that of "dense" is excluded with a warning.

    Args:
      x: As for `matmul`, `(..., K)`; the time of some implementations depends on its zeros.
      w: `NMArray`, `BlockArray` or `TensorCoreArray`, `(stacked..., K, N)`.

    Returns:
      Seconds of each implementation, fastest first.

    Raises:
      TypeError: If w is not compressed, or x or w is traced.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(8), 2, 4)
      >>> {"dense", "xla"} <= set(sj.kernels.tune(jnp.ones((2, 8)), w))
      True
    """
    if not isinstance(w, SparseArray):
        raise TypeError(
            f"tune(w) must be an NMArray or BlockArray, got {type(w).__name__}; a dense matrix has "
            "one implementation."
        )
    if not known(*jax.tree.leaves((x, w))):
        raise TypeError(
            "tune(x, w): x and w must be concrete arrays to be timed, got tracers; call tune "
            "outside jit."
        )
    x = jnp.asarray(x)
    calls = {
        name: partial(jax.jit(partial(matmul, implementation=(name,))), x, w)
        for name in names("matmul", type(w))
        if runs_on("matmul", type(w), name, platform_of(x, w))
    }
    want = calls["dense"]()
    seconds = _tuning.measure({n: call for n, call in calls.items() if _right(n, call, want)})
    _tuning.keep(case_of(x, w), seconds)
    return seconds


def _right(name: str, call: Any, want: Array) -> bool:
    """Whether an implementation compiles, runs and agrees with dense."""
    try:
        got = jax.block_until_ready(call())
    except NotImplementedError:
        return False
    except Exception as error:  # compilers and drivers may raise any exception
        warnings.warn(f"tune: {name} fails: {str(error)[:200]}", stacklevel=3)
        return False
    got, want = (a.astype(wide_dtype(a)) for a in (got, want))
    error, size = jnp.linalg.norm((got - want).ravel()), jnp.linalg.norm(want.ravel())
    if error <= 1e-2 * size:
        return True
    warnings.warn(f"tune: {name} is wrong by {float(error / size):.1e}; left out", stacklevel=3)
    return False
