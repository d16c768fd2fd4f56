"""Convolutions with group-sparse kernels on images stored channel first."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from .._arguments import checked
from .._arrays import wide_dtype
from ..formats import BlockArray, SparseArray
from ._table import platform_of, requested
from .matmul import matmul


@checked()
def pointwise(
    x: Shaped[Array | np.ndarray, "..."],
    w: SparseArray | Shaped[Array | np.ndarray, "c o"],
    *,
    bias: Shaped[Array | np.ndarray, " o"] | None = None,
    clamp: tuple[float | int, float | int] | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Shaped[Array, "..."]:
    r"""A 1x1 convolution of images stored channel first, with a dense or compressed kernel.

    `y[o, p] = clip(bias[o] + sum_c W[c, o] x[c, p], *clamp)`. With channels first, every stored
    block of weights multiplies contiguous rows of pixels. Blocks of b outputs that share an input
    channel are `sj.Block((1, b), sparsity)`. On a CPU XLA has no fast form for b = 1, 2 and 4,
    which the kernels of the paper use; b >= 16 is faster than dense, see
    benchmarks/speed/sparse_convnets.py.

    Args:
      x: `(..., C, H, W)`, floats.
      w: `BlockArray`, `NMArray` or array `(C, O)`.
      bias: `(O,)`.
      clamp: Minimum and maximum output, `(0, 6)` for ReLU6; None does not clamp.
      implementation: As for `sj.matmul`.

    Returns:
      `(..., O, H, W)`.

    Raises:
      ValueError: If the shapes do not match, or an implementation is unknown.
      TypeError: If x does not hold floats.

    Reference:
      Elsen et al., Fast Sparse ConvNets, 2019 (arXiv 1911.09723).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(4), (1, 2))
      >>> sj.kernels.pointwise(jnp.ones((4, 3, 5)), w, clamp=(0, 6)).shape
      (4, 3, 5)
    """
    x = jnp.asarray(x)
    _check("pointwise", x, w.shape[0], 3)
    requested("matmul", SparseArray, implementation, platform_of(x))
    if isinstance(w, SparseArray):
        # XLA folds the two transpositions into those of the product.
        y = matmul(jnp.moveaxis(x, -3, -1), w, implementation=implementation)
        y = jnp.moveaxis(y, -1, -3)
    else:
        total = wide_dtype(x, w)
        y = jnp.einsum("co,...chw->...ohw", w, x, preferred_element_type=total).astype(x.dtype)
    y = y if bias is None else y + jnp.asarray(bias, y.dtype)[:, None, None]
    return y if clamp is None else jnp.clip(y, *clamp)


@checked()
def group_conv(
    x: Shaped[Array | np.ndarray, "..."],
    w: BlockArray,
    window: tuple[int, int],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> Float[Array, "..."]:
    r"""A channel-first k x k convolution with kernels pruned in groups of n outputs.

    W has the blocks `(kh kw, n)` of `sj.Block((kh * kw, n), sparsity, axis=(2, 0, 1))`: the n
    kernels of neighbouring outputs that read one input channel. Each block of outputs gathers its
    channels and is one group of a dense convolution.

    Args:
      x: `(batch, C, H, W)`.
      w: `(C kh kw, O)` in blocks `(kh kw, n)`, as returned by `sj.compress`.
      window: `(kh, kw)`.
      strides: Steps between outputs.
      padding: As in `jax.lax.conv_general_dilated`.

    Returns:
      `(batch, O, H', W')` in the dtype of x.

    Raises:
      ValueError: If the shapes do not match.
      TypeError: If x does not hold floats.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> pattern = sj.Block((9, 2), 0.5, axis=(2, 0, 1))
      >>> params = {"kernel": jnp.arange(3.0 * 3 * 4 * 4).reshape(3, 3, 4, 4)}
      >>> small = sj.compress(params, sj.plan(params, pattern))
      >>> sj.kernels.group_conv(jnp.ones((1, 4, 5, 5)), small["kernel"], (3, 3)).shape
      (1, 4, 5, 5)
    """
    x, taps = jnp.asarray(x), window[0] * window[1]
    if not isinstance(w, BlockArray) or w.block[0] != taps or w.ndim != 2:
        raise ValueError(
            f"group_conv(w={w}) must have blocks of {taps} rows for the window {window}: compress "
            f"the kernel with sj.Block(({taps}, n), sparsity, axis=(2, 0, 1))."
        )
    _check("group_conv", x, w.shape[0] // taps, 4)
    _check_padding(padding)
    columns, slots, _, n = w.values.shape
    dtype, total = x.dtype, jnp.promote_types(x.dtype, w.dtype)
    x, w = x.astype(total), w.astype(total)
    stored = jnp.where(w.used[..., None, None], w.values, 0)  # also for the gradient
    kernel = stored.transpose(2, 1, 0, 3).reshape(*window, slots, columns * n)
    if not slots:
        x, kernel = x[:, :1], jnp.zeros((*window, 1, columns * n), w.dtype)
    else:
        x = x[:, w.for_product().index.reshape(-1)]
    dims: Any = ("NCHW", "HWIO", "NCHW")
    y = lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=dims,
        feature_group_count=columns if slots else 1,
    )  # fmt: skip
    return y.astype(dtype)


def _check_padding(padding: Any) -> None:
    if padding in ("SAME", "SAME_LOWER", "VALID"):
        return
    if isinstance(padding, str) or np.shape(padding) != (2, 2):
        raise ValueError(
            f'group_conv: padding={padding!r} must be "SAME", "SAME_LOWER", "VALID" or two pairs '
            "of numbers, ((1, 1), (1, 1))."
        )


def _check(what: str, x: Array, channels: int, least: int) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{what}(x) must hold floats, got {x.dtype} of shape {x.shape}; write "
            "x.astype(jnp.float32)."
        )
    if x.ndim < least or (what == "group_conv" and x.ndim > least) or x.shape[-3] != channels:
        raise ValueError(
            f"{what}: x of shape {x.shape} must be (..., {channels}, height, width), channels "
            "first; for images stored channel last write jnp.moveaxis(x, -1, -3), once per network."
        )
