"""A self-test of products on 2:4 hardware before they are used."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...formats import NMArray
from .._finish import How

Product = Callable[[Any, NMArray, Any, How], Any]


def require_probed(
    what: str,
    hardware: str,
    has: Callable[[Any], bool],
    probe: Callable[[str], str | None],
    dtype: Any,
) -> None:
    """Raises unless the device is of the required kind and passes its probe."""
    device = jax.devices()[0]
    if not has(device):
        raise NotImplementedError(f"{what}: {device.device_kind} is not {hardware}")
    if why := probe(jnp.dtype(dtype).name):
        raise NotImplementedError(why)


def failure(
    what: str, product: Product, sizes: Iterable[tuple[int, int, int]], dtype: str
) -> str | None:
    """The error of small 2:4 products with a bias and an activation; None if they are correct.

    Runs in a separate thread, in which nothing is traced.

    Args:
      what: Prefix of the message.
      product: `(x, w, bias, how)` to `(m, n)`.
      sizes: Rows of x, rows and columns of W.
      dtype: Dtype of x and W.
    """
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(_failure, product, sizes, dtype).result()
    return found and f"{what}: the probe {found}"


def _failure(product: Product, sizes: Iterable[tuple[int, int, int]], dtype: str) -> str | None:
    try:
        for rows, k, columns in sizes:
            error = _error(product, rows, k, columns, dtype)
            if not error < 1e-2:
                return f"of {rows}x{k}x{columns} in {dtype} is wrong by {error:.1e}"
    except Exception as error:  # compilers and drivers may raise any exception
        return f"fails: {type(error).__name__}: {str(error)[:200]}"
    return None


def _error(product: Product, rows: int, k: int, columns: int, dtype: str) -> float:
    """The relative difference from the result of XLA."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, k), (k, columns)))
    bias = jnp.asarray(rng.normal(size=columns), jnp.float32)
    w = NMArray.fromdense(w, 2, 4)
    how = How(activation=jax.nn.relu, dtype=jnp.dtype(dtype))
    want = x.astype(jnp.float32) @ w.todense().astype(jnp.float32)
    want = jnp.maximum(want + bias, 0)
    got = jax.jit(lambda x, w, bias: product(x, w, bias, how))(x, w, bias).astype(jnp.float32)
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
