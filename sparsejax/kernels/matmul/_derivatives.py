"""Derivatives of products with compressed matrices, once for all implementations."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._arrays import wide_dtype
from ...formats import SparseArray
from .._finish import How, finish
from .._table import attempt


def product_of(x: Any, w: Any, bias: Any, names: tuple[str, ...], how: How) -> Any:
    """`activation(x W + bias)` by the first implementation that supports it."""
    if isinstance(w, SparseArray):
        return _product(x, w, bias, names, how)
    return _attempt(names, w, how, lambda i: i.product(x, w, bias, how))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(x, w, bias, names: tuple[str, ...], how: How):
    return _attempt(names, w, how, lambda i: i.product(x, w, bias, how))


def _forward(x, w, bias, names, how):
    w.check_gradient()
    fixed = _without_padding(w)
    if how.activation is None:
        y = _attempt(names, w, how, lambda i: i.product(x, fixed, bias, how))
        return y, (x, w, bias, None)
    # The derivative of the activation needs the pre-activation sum.
    plain = How(how.precision, platform=how.platform)
    before = _attempt(names, w, how, lambda i: i.product(x, fixed, bias, plain))
    return finish(before, None, how), (x, w, bias, before)


def _backward(names, how, saved, dy):
    x, w, bias, before = saved
    if before is not None:
        dy = jax.vjp(how.activation, before)[1](dy.astype(before.dtype))[0]
    # XLA computes gradients for which an implementation has no kernel.
    names = tuple(dict.fromkeys((*names, "xla", "dense")))
    back = How(how.precision, dtype=x.dtype, platform=how.platform)
    dx = _attempt(names, w, how, lambda i: _part(i.transposed)(dy, w, back)).astype(x.dtype)
    values = _attempt(names, w, how, lambda i: _part(i.sampled)(x, dy, w, back)).astype(w.dtype)
    db = None
    if bias is not None:
        db = dy.sum(0, dtype=wide_dtype(dy)).astype(bias.dtype)
    return dx, replace(jax.tree.map(_no_gradient, w), values=values), db


_product.defvjp(_forward, _backward)


def _attempt(names: Iterable[str], w: Any, how: How, call: Any) -> Any:
    return attempt("matmul", type(w), names, call, how.platform)


def _part(function: Any) -> Any:
    """A product of an implementation; raises NotImplementedError if it has none."""
    if function is None:
        raise NotImplementedError("has no gradient kernel")
    return function


def _no_gradient(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, jax.dtypes.float0)


def _without_padding(w: Any) -> Any:
    """W with zero derivatives in the padding, also for higher derivatives."""
    real = w.real
    return w if real is None else replace(w, values=_fixed_padding(w.values, real))


@jax.custom_jvp
def _fixed_padding(values, real):
    del real
    return values


@_fixed_padding.defjvp
def _(primals, tangents):
    values, real = primals
    return values, jnp.where(real, tangents[0], jnp.zeros((), values.dtype))
