"""Measures the implementations of a product and keeps which is fastest."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ...formats import SparseArray
from ...formats._array import is_concrete
from .. import _tuning
from ._api import TWO_FOUR, case_of, matmul

CANDIDATES = {
    "cpu": ("native", "xla", "dense"),
    "gpu": (*TWO_FOUR, "pallas_gpu", "xla", "dense"),
    "tpu": ("pallas_tpu", "xla", "dense"),
}


def tune(x: Shaped[Array, "..."], w: Any) -> dict[str, float]:
    """Times every implementation of `matmul(x, w)` that can run here, and keeps the times.

    From then on `matmul` with `implementation=None` takes the fastest for products of the same
    shapes, pattern (n, m and share, or sizes of blocks and slots) and dtypes; jitted functions
    that were traced before keep what they have. On a CPU the first call compiles "native", about
    ten seconds, where there is a C++ compiler. The times are kept by kind of device and version
    of JAX in a JSON file: `SPARSEJAX_CACHE` names it, or it is `sparsejax/tuning.json` in
    `XDG_CACHE_HOME`, or in `~/.cache`. An implementation whose result is not that of "dense" is
    left out with a warning.

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
    if not is_concrete(*jax.tree.leaves((x, w))):
        raise TypeError("tune(x, w) measures, so x and w must be arrays: call it outside jit.")
    x = jnp.asarray(x)
    names = CANDIDATES.get(jax.default_backend(), ("xla", "dense"))
    calls = {
        name: partial(jax.jit(partial(matmul, implementation=(name,))), x, w) for name in names
    }
    want = calls["dense"]()
    seconds = _tuning.measure({n: call for n, call in calls.items() if _right(n, call, want)})
    _tuning.keep(case_of(x, w), seconds)
    return seconds


def _right(name: str, call: Any, want: Array) -> bool:
    """Whether an implementation runs and gives what dense gives; compiles it."""
    try:
        got = jax.block_until_ready(call())
    except NotImplementedError:
        return False
    except Exception as error:  # whatever a compiler or driver raises
        warnings.warn(f"tune: {name} fails: {str(error)[:200]}", stacklevel=3)
        return False
    got, want = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (got, want))
    error, size = jnp.linalg.norm((got - want).ravel()), jnp.linalg.norm(want.ravel())
    if error <= 1e-2 * size:
        return True
    warnings.warn(f"tune: {name} is wrong by {float(error / size):.1e}; left out", stacklevel=3)
    return False
