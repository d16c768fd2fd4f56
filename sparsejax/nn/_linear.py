"""Layers whose kernels are stored compressed and trained in place."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from ..formats import BlockArray, NMArray, SparseArray
from ..kernels import matmul
from ..patterns import NM, Block, Pattern

Initializer = Callable[..., Array]

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()


class SparseKernel(nnx.Module):
    """A compressed kernel: its values are an `nnx.Param`, its indices an `nnx.Variable`.

    Optimizers and `nnx.grad` see only the values. `kernel[...]` is the compressed array, so the
    module can stand where a stock layer keeps its kernel.

    Args:
      array: The compressed matrix, stacked or not.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(4), 1, 4)
      >>> sj.nn.SparseKernel(w)[...]
      NMArray(1:4, shape=(4, 4), dtype=float32)
    """

    def __init__(self, array: SparseArray):
        self.values = nnx.Param(array.values)
        self.index = nnx.Variable(replace(array, values=None))  # pyright: ignore

    def __getitem__(self, key: Any) -> SparseArray:
        if key is not ...:
            raise IndexError(f"a compressed kernel is read whole, kernel[...], not kernel[{key}].")
        return replace(self.index.get_value(), values=self.values[...])


class SparseLinear(nnx.Module):
    r"""A linear layer that holds only a fixed sparse pattern of weights: `y = x W + b`.

    The pattern is drawn at random and kept; the values are initialised as those of a dense layer
    with as many inputs as each output keeps. Sparse from the start, in memory too; to move the
    pattern, train a dense layer with `sj.optim` and compress it with `sj.nn.compress`.

    Args:
      in_features: K.
      out_features: N.
      pattern: `sj.NM(n, m)` or `sj.Block(shape, sparsity)`; blocks are spread evenly over the
        block columns, up to one.
      use_bias: Whether to add a bias.
      dtype: Dtype of the computation; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      precision: As in `jax.lax.dot_general`.
      kernel_init: Initializer, called with the shape (inputs kept, N).
      bias_init: Initializer of the bias.
      implementation: As in `sj.kernels.matmul`.
      rngs: Uses `params` for pattern, values and bias.

    Raises:
      TypeError: If the pattern has no compressed form.
      ValueError: If the pattern does not fit (K, N).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> layer = sj.nn.SparseLinear(8, 4, sj.NM(2, 4), rngs=nnx.Rngs(0))
      >>> layer.kernel[...].values.shape, layer(jnp.ones((3, 8))).shape
      ((2, 2, 4), (3, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: Pattern,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        implementation: str | tuple[str, ...] | None = None,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        array = _random_pattern(rngs.params(), shape, pattern)
        values = _values(rngs.params(), array, kernel_init, param_dtype)
        self.kernel = SparseKernel(replace(array, values=values))  # pyright: ignore
        bias = bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None
        self.bias = nnx.data(None) if bias is None else nnx.Param(bias)
        self.in_features, self.out_features = shape
        self.dtype = dtype
        self.precision = precision
        self.implementation = implementation

    def __call__(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """`(..., in_features)` to `(..., out_features)`."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        x, kernel, bias = promote((x, kernel, bias), dtype=self.dtype)
        return matmul(
            x, kernel, bias=bias, precision=self.precision, implementation=self.implementation
        )


def promote(args: tuple[Any, ...], *, dtype: Any = None) -> tuple[Any, ...]:
    """Casts arrays and compressed arrays to one dtype, as `nnx.nn.dtypes.promote_dtype` does."""
    args = tuple(x if x is None or isinstance(x, SparseArray) else jnp.asarray(x) for x in args)
    if dtype is None:
        dtype = jnp.result_type(*(x.dtype for x in args if x is not None))
        dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32
    return tuple(x if x is None or x.dtype == dtype else x.astype(dtype) for x in args)


def _random_pattern(key: Array, shape: tuple[int, int], pattern: Pattern) -> SparseArray:
    if not isinstance(pattern, NM | Block):
        raise TypeError(
            f"SparseLinear(pattern={pattern!r}) must be sj.NM(n, m) or sj.Block(shape, sparsity); "
            "other patterns have no compressed form: prune an nnx.Linear with sj.optim.prune."
        )
    if isinstance(pattern, NM) and pattern.n == 0:
        raise ValueError(f"SparseLinear(pattern={pattern!r}) would hold no weights.")
    if isinstance(pattern, Block):
        # Evenly spread, the number of blocks per column is known while tracing.
        pattern = replace(pattern, balanced=True)
    ones = jnp.ones(shape)
    mask = pattern.select(jax.random.uniform(key, shape), pattern.zeros(shape))
    if isinstance(pattern, NM):
        return NMArray.fromdense(ones, pattern.n, pattern.m, mask=mask)
    kept, (rows, columns) = pattern.units(shape) - pattern.zeros(shape), pattern.shape
    slots = -(-kept // max(shape[1] // columns, 1))
    return BlockArray.fromdense(ones, (rows, columns), mask=mask, slots=slots)


def _values(key: Array, array: SparseArray, init: Initializer, dtype: Any) -> Float[Array, "..."]:
    shape, columns = array.values.shape, array.shape[-1]
    if isinstance(array, NMArray):
        return init(key, (shape[0] * shape[1], columns), dtype).reshape(shape)
    assert isinstance(array, BlockArray)
    nb, slots, bk, bn = shape
    if not math.prod(shape):
        return jnp.zeros(shape, dtype)
    values = init(key, (slots * bk, columns), dtype).reshape(slots, bk, nb, bn)
    used = array.used[..., None, None]
    return jnp.where(used, values.transpose(2, 0, 1, 3), jnp.zeros((), dtype))
