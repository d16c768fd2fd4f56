"""Descriptions of linear layers, for Gram matrices and compression in every framework."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from ..formats import Matrix
from ..kernels import matmul
from ._frameworks import load_frameworks


@dataclass(frozen=True)
class LinearLayer:
    """How a layer multiplies its input with a kernel.

    Args:
      path: Name of the kernel in the layer.
      ndim: Number of axes of the kernel, without the leading ones added by `nnx.vmap`.
      contraction: Axes of the kernel that are contracted.
      rows: Maps the layer's input to the matrix `(tokens, K)` that multiplies the kernel.
      install: Installs a compressed kernel in the layer; None if not supported.
    """

    path: str
    ndim: int
    contraction: tuple[int, ...]
    rows: Callable[[Any], Float[Array, "tokens k"]]
    install: Callable[[Any], None] | None = None


@functools.singledispatch
def linear_layer(layer: Any) -> LinearLayer | None:
    """How a layer uses its kernel; None if it is not a linear layer.

    Register custom layers with `sj.nn.linear_layer.register`; subclasses of registered layers are
    included.

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> sj.nn.linear_layer(nnx.Linear(4, 2, rngs=nnx.Rngs(0))).contraction
      (0,)
    """
    load_frameworks()
    known = linear_layer.dispatch(type(layer))
    return None if known is linear_layer.registry[object] else known(layer)


def product_class(cls: type) -> type:
    """The registered base of a layer's class: the one whose call multiplies with the kernel."""
    return next((base for base in cls.__mro__ if base in linear_layer.registry), cls)


def promote(args: tuple[Any, ...], *, dtype: Any = None) -> tuple[Any, ...]:
    """Casts arrays and compressed arrays to one dtype, as `nnx.nn.dtypes.promote_dtype` does."""
    args = tuple(x if x is None or isinstance(x, Matrix) else jnp.asarray(x) for x in args)
    if dtype is None:
        dtype = jnp.result_type(*(x.dtype for x in args if x is not None))
        dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32
    return tuple(x if x is None or x.dtype == dtype else x.astype(dtype) for x in args)


def rows_of(x: Shaped[Array, "..."], axes: Sequence[int]) -> Shaped[Array, "tokens k"]:
    """The input as a matrix with the contracted axes last."""
    axes = tuple(a % x.ndim for a in axes)
    others = tuple(a for a in range(x.ndim) if a not in axes)
    width = math.prod(x.shape[a] for a in axes)
    return x.transpose(others + axes).reshape(-1, width)


def patches(x: Array, window: tuple[int, ...], strides, padding, dilation) -> Array:
    """The windows of images stored channel last as rows, channels fastest."""
    spatial = len(window)
    strides, dilation = (
        (d,) * spatial if isinstance(d, int) else tuple(d or (1,) * spatial)
        for d in (strides, dilation)
    )
    x = x.reshape(-1, *x.shape[-spatial - 1 :])
    letters = "DHW"[3 - spatial :]
    found = lax.conv_general_dilated_patches(
        x, window, strides, padding, rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )  # fmt: skip
    # JAX orders channels before the positions of the window.
    found = found.reshape(*found.shape[:-1], x.shape[-1], math.prod(window))
    return jnp.swapaxes(found, -1, -2).reshape(-1, x.shape[-1] * math.prod(window))


@dataclass(frozen=True)
class DotGeneral:
    """Replaces `lax.dot_general` for a compressed kernel on the right."""

    features: tuple[int, ...]

    def __call__(
        self,
        x: Shaped[Array, "..."],
        kernel: Matrix,
        dimensions: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> Shaped[Array, "..."]:
        _check_sharding(out_sharding)
        axes = tuple(dimensions[0][0])
        others = tuple(a for a in range(x.ndim) if a not in axes)
        flat = x.transpose(others + axes).reshape(*(x.shape[a] for a in others), -1)
        y = matmul(flat, kernel, precision=precision, out_dtype=preferred_element_type)
        return y.reshape(*y.shape[:-1], *self.features)


@dataclass(frozen=True)
class EinsumOp:
    """Replaces `jnp.einsum` for a compressed kernel on the right."""

    equation: str
    shape: tuple[int, ...]

    def __call__(
        self,
        equation: str,
        x: Shaped[Array, "..."],
        kernel: Matrix,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> Shaped[Array, "..."]:
        _check_sharding(out_sharding)
        if equation != self.equation:
            raise NotImplementedError(
                f"this kernel was compressed for {self.equation!r} and cannot compute {equation!r}."
            )
        left, right, out = letters(equation)
        axes = tuple(left.index(c) for c in right if c not in out)
        features = tuple(size for c, size in zip(right, self.shape) if c in out)
        dot = DotGeneral(features)
        y = dot(x, kernel, ((axes, ()), ((), ())), precision, preferred_element_type)
        made = [c for c in left if c in out] + [c for c in right if c in out]
        return y.transpose([made.index(c) for c in out])


def is_product(equation: str | None) -> bool:
    """Whether an einsum is a matrix product: no batch axes, nothing summed on one side only."""
    if equation is None or "." in equation:
        return False
    left, right, out = letters(equation)
    if any(len(set(term)) < len(term) for term in (left, right, out)):
        return False
    summed = set(left) & set(right)
    return bool(summed) and set(out) == set(left) ^ set(right)


def letters(equation: str) -> tuple[str, str, str]:
    """The subscripts of both operands and of the result."""
    terms, out = equation.replace(" ", "").split("->")
    left, right = terms.split(",")
    return left, right, out


def _check_sharding(out_sharding: Any) -> None:
    if out_sharding is not None:
        raise NotImplementedError(
            f"out_sharding={out_sharding} is not supported by a compressed kernel; use "
            "jax.lax.with_sharding_constraint on the result."
        )
