"""Layers with compressed, trainable kernels."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from ..formats import BlockArray, NMArray, SparseArray
from ..kernels import matmul
from ..patterns import NM, Block, Pattern
from ._linear_layer import promote

Initializer = Callable[..., Array]

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()


class SparseKernel(nnx.Module):
    """A compressed kernel: its values are an `nnx.Param`, its indices an `nnx.Variable`.

    Optimizers and `nnx.grad` only see the values. `kernel[...]` is the compressed array, so the
    module can replace the kernel of a stock layer.

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
            raise IndexError(
                f"a compressed kernel must be read as a whole, kernel[...], got kernel[{key}]."
            )
        return replace(self.index.get_value(), values=self.values[...])


class SparseLinear(nnx.Module):
    r"""A linear layer with a fixed sparse pattern of weights: `y = x W + b`.

    The pattern is random and fixed; the values are initialised as those of a dense layer with the
    number of kept inputs. Memory is sparse from the start; to learn the pattern, train a dense
    layer with `sj.optim` and compress it with `sj.compress`.

    Args:
      in_features: K.
      out_features: N.
      pattern: `sj.NM(n, m)` or `sj.Block(shape, sparsity)`; blocks are distributed evenly over the
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
        array = random_support(pattern, rngs.params(), shape)
        values = initial_values(array, rngs.params(), kernel_init, param_dtype)
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


@functools.singledispatch
def random_support(pattern: Any, key: Array, shape: tuple[int, int]) -> SparseArray:
    """A compressed matrix of ones with a random support of a pattern; register other patterns."""
    del key, shape
    raise TypeError(
        f"SparseLinear(pattern={pattern!r}) must be sj.NM(n, m) or sj.Block(shape, sparsity); "
        "other patterns have no compressed form: prune an nnx.Linear with sj.optim.prune."
    )


@random_support.register
def _(pattern: NM, key: Array, shape: tuple[int, int]) -> SparseArray:
    if pattern.n == 0:
        raise ValueError(
            f"SparseLinear(pattern={pattern!r}) must keep at least one weight, got none."
        )
    return NMArray.fromdense(
        jnp.ones(shape), pattern.n, pattern.m, mask=_random_mask(pattern, key, shape)
    )


@random_support.register
def _(pattern: Block, key: Array, shape: tuple[int, int]) -> SparseArray:
    # With an even distribution the number of blocks per column is static.
    pattern, layout = replace(pattern, balanced=True), pattern.layout(shape)
    kept, (rows, columns) = pattern.units(layout) - pattern.zeros(layout), pattern.shape
    slots = -(-kept // max(shape[1] // columns, 1))
    mask = _random_mask(pattern, key, shape)
    return BlockArray.fromdense(jnp.ones(shape), (rows, columns), mask=mask, slots=slots)


def _random_mask(pattern: Pattern, key: Array, shape: tuple[int, int]) -> Bool[Array, "k n"]:
    layout = pattern.layout(shape)
    return pattern.select(jax.random.uniform(key, shape), layout, pattern.zeros(layout))


@functools.singledispatch
def initial_values(
    array: SparseArray, key: Array, init: Initializer, dtype: Any
) -> Float[Array, "..."]:
    """Initial values of a compressed matrix, scaled for the kept inputs of each output."""
    raise TypeError(f"SparseLinear does not initialise a {type(array).__name__}.")


@initial_values.register
def _(array: NMArray, key: Array, init: Initializer, dtype: Any) -> Float[Array, "..."]:
    shape, columns = array.values.shape, array.shape[-1]
    return init(key, (shape[0] * shape[1], columns), dtype).reshape(shape)


@initial_values.register
def _(array: BlockArray, key: Array, init: Initializer, dtype: Any) -> Float[Array, "..."]:
    nb, slots, bk, bn = array.values.shape
    if not math.prod(array.values.shape):
        return jnp.zeros(array.values.shape, dtype)
    values = init(key, (slots * bk, array.shape[-1]), dtype).reshape(slots, bk, nb, bn)
    used = array.used[..., None, None]
    return jnp.where(used, values.transpose(2, 0, 1, 3), jnp.zeros((), dtype))
