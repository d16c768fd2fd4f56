"""Sparse-IFT: larger sparse layers with the FLOPs of a dense one."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..._arguments import check_finite, check_not_nan, checked
from ..._arrays import common_dtype, wide_dtype

# Larger than the rounding error of 1 / (1 - s), smaller than any difference between integers.
_SLACK = 1e-9


@checked(width="[1, inf)")
def wide_width(width: int, sparsity: float) -> int:
    r"""The width of Sparse Wide: `floor(width / sqrt(1 - s))`, for all hidden widths.

    Args:
      width: Width of the dense layer.
      sparsity: s, in [0, 1).

    Returns:
      The width at which kernels of sparsity s have as many nonzero weights as the dense ones.

    Raises:
      ValueError: If the sparsity is outside [0, 1).

    Reference:
      Thangarasa et al., Sparse Iso-FLOP Transformations for Maximizing Training Efficiency, 2023
      (arXiv 2303.11525).

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> [iso_flop.wide_width(64, s) for s in (0.0, 0.5, 0.75, 0.9)]
      [64, 90, 128, 202]
    """
    _check(sparsity)
    return math.floor(width * (math.sqrt(1 / (1 - sparsity)) + _SLACK))


@checked()
def parallel_branches(sparsity: float) -> int:
    r"""The number N of branches of Sparse Parallel, each of sparsity 1 - 1/N.

    `N = round(1 / (1 - s))`, half to even.

    Args:
      sparsity: s, in [0, 1).

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> [iso_flop.parallel_branches(s) for s in (0.0, 0.5, 0.75, 0.9)]
      [1, 2, 4, 10]
    """
    _check(sparsity)
    # To 9 places first: 1 / (1 - s) of a decimal s may miss the half by an ulp.
    return round(round(1 / (1 - sparsity), 9))


@checked(inputs="[1, inf)", outputs="[1, inf)", taps="[1, inf)")
def factorized_rank(
    inputs: int, outputs: int, sparsity: float, taps: int = 1, first_only: bool = False
) -> int:
    r"""The rank of Sparse Factorized, `(1 - s) r (K D_in + D_out) = K D_in D_out`, rounded up.

    Args:
      inputs: D_in.
      outputs: D_out.
      sparsity: s, in [0, 1), of both factors.
      taps: K, entries of the convolution kernel per pair of channels.
      first_only: Whether the second factor stays dense.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> [iso_flop.factorized_rank(64, 64, sparsity, taps=9) for sparsity in (0.5, 0.9)]
      [116, 576]
    """
    _check(sparsity)
    second = outputs if first_only else (1 - sparsity) * outputs
    rank = taps * inputs * outputs / ((1 - sparsity) * taps * inputs + second)
    return math.ceil(rank * (1 - _SLACK))


@checked(inputs="[1, inf)", outputs="[1, inf)", taps="[1, inf)")
def doped_rank(inputs: int, outputs: int, sparsity: float, taps: int = 1) -> int:
    r"""The rank of the dense low-rank part of Sparse Doped, `s K D_in D_out / (K D_in + D_out)`.

    Args:
      inputs: D_in.
      outputs: D_out.
      sparsity: s, in [0, 1), of the sparse part.
      taps: K, entries of the convolution kernel per pair of channels.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> iso_flop.doped_rank(64, 64, 0.5, taps=9), iso_flop.doped_rank(64, 64, 0.0)
      (28, 0)
    """
    _check(sparsity)
    rank = sparsity * taps * inputs * outputs / (taps * inputs + outputs)
    return math.floor(rank * (1 + _SLACK))


@checked()
def log2_masks(size: int, kept: int) -> float:
    r"""log2 of the number of masks with `kept` entries, `log2 binomial(size, kept)`.

    Args:
      size: Number of entries of the mask.
      kept: Number of entries kept.

    Returns:
      The size of the search space in bits.

    Raises:
      ValueError: Unless `0 <= kept <= size`.

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> round(iso_flop.log2_masks(4, 2), 4)  # 6 masks
      2.585
    """
    if not 0 <= kept <= size:
        raise ValueError(f"log2_masks: kept={kept} must satisfy 0 <= kept <= size={size}.")
    gammas = math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)
    return gammas / math.log(2)


@checked(budget="[0, inf)", tol="[0, inf)", flops="flops(sparsity)")
def match_flops(flops: Callable[[float], Any], budget: float | int, *, tol: float = 1e-3) -> float:
    r"""The sparsity at which the FLOPs of a network match a budget, by bisection on [0, 0.9999].

    A network with dense first and last layers is not iso-FLOP at the sparsity that its width was
    computed for.

    Args:
      flops: A decreasing function of the sparsity.
      budget: FLOPs of the dense network.
      tol: Relative tolerance.

    Returns:
      The sparsity.

    Raises:
      ValueError: If no sparsity meets the budget, or a number is NaN.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> from sparsejax.contrib import iso_flop
      >>> round(iso_flop.match_flops(lambda s: 100 + 400 * (1 - s), 300), 2)
      0.5
    """
    low, high = 0.0, 0.9999
    check_finite("match_flops", budget=budget, tol=tol, **{"flops(0.0)": flops(low)})
    if flops(low) <= budget * (1 + tol):
        return low
    if not flops(high) <= budget * (1 + tol):
        raise ValueError(
            f"match_flops: even at sparsity {high} the network costs {flops(high):g} FLOPs, above "
            f"the budget of {budget:g}; make it narrower."
        )
    while high - low > 1e-12:
        middle = (low + high) / 2
        cost = flops(middle)
        check_not_nan("match_flops", **{f"flops({middle})": cost})
        if abs(cost - budget) <= tol * budget:
            return middle
        low, high = (middle, high) if cost > budget else (low, middle)
    return high


class Parallel(nnx.Module):
    r"""Sparse Parallel: N branches of the original shape, `sum_j norm_j(x W_j)`.

    Prune each branch to the sparsity `1 - 1/N`.

    Args:
      layer: The dense `nnx.Linear` or `nnx.Conv`.
      sparsity: s; the number of branches is `parallel_branches(s)`.
      norm: Whether each branch has a batch norm; the layers that follow act on the sum.
      activation: Activation function of each branch; without it the branches are equivalent to one
        matrix.
      rngs: Random keys of the parameters.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import iso_flop
      >>> from flax import nnx
      >>> layer = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
      >>> wide = iso_flop.Parallel(layer, 0.75, rngs=nnx.Rngs(1))
      >>> len(wide.branches), wide(jnp.ones((2, 4))).shape
      (4, (2, 6))
    """

    @checked()
    def __init__(
        self,
        layer: Any,
        sparsity: float,
        *,
        norm: bool = True,
        activation: Callable[[Array], Array] | None = None,
        rngs: nnx.Rngs,
    ):
        _check_layer(layer)
        count = parallel_branches(sparsity)
        self.branches = nnx.List([_like(layer, rngs=rngs) for _ in range(count)])
        norms = [nnx.BatchNorm(layer.out_features, rngs=rngs) for _ in range(count if norm else 0)]
        self.norms = nnx.List(norms)
        self.activation = activation

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        total = 0.0
        for i, branch in enumerate(self.branches):
            y = branch(x)
            y = _normalized(self.norms[i], y) if len(self.norms) else y
            total = total + (y if self.activation is None else self.activation(y))
        return jnp.asarray(total)


class Factorized(nnx.Module):
    r"""Sparse Factorized: two layers with an activation between them, `f(x U) V`.

    Prune both factors to the sparsity s.

    Args:
      layer: The dense `nnx.Linear` or `nnx.Conv`; V of a convolution is 1 x 1.
      sparsity: s; the rank is `factorized_rank`.
      norm: Whether to add a batch norm between the factors.
      activation: Activation function between the factors, after the norm; None is linear.
      rngs: Random keys of the parameters.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import iso_flop
      >>> from flax import nnx
      >>> layer = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
      >>> deep = iso_flop.Factorized(layer, 0.75, activation=jax.nn.relu, rngs=nnx.Rngs(1))
      >>> deep.first.kernel.shape, deep.second.kernel.shape
      ((64, 128), (128, 64))
    """

    @checked()
    def __init__(
        self,
        layer: Any,
        sparsity: float,
        *,
        norm: bool = False,
        activation: Callable[[Array], Array] | None = None,
        rngs: nnx.Rngs,
    ):
        _check_layer(layer)
        rank = factorized_rank(layer.in_features, layer.out_features, sparsity, _taps(layer))
        self.first = _like(layer, outputs=rank, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(rank, rngs=rngs) if norm else None
        self.activation = activation
        self.second = _pointwise(layer, rank, rngs)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self.first(x)
        y = y if self.norm is None else _normalized(self.norm, y)
        return self.second(y if self.activation is None else self.activation(y))


def _normalized(norm: nnx.BatchNorm, y: Array) -> Array:
    """`norm(y)`; a y wider than the statistics, as under jax_enable_x64, cannot be stored there."""
    narrow = y.astype(wide_dtype(norm.mean[...]))
    return norm(narrow).astype(common_dtype(y, narrow))


class Doped(nnx.Module):
    r"""Sparse Doped: the original layer plus a dense low-rank one, `x W + x U V`.

    Prune W, the kernel of `sparse`, to the sparsity s.

    Args:
      layer: The dense `nnx.Linear` or `nnx.Conv`.
      sparsity: s; the rank is `doped_rank`. With rank 0 there is no low-rank part.
      rngs: Random keys of the parameters.

    Reference:
      Thangarasa et al., 2023 (arXiv 2303.11525).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import iso_flop
      >>> from flax import nnx
      >>> doped = iso_flop.Doped(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), 0.5, rngs=nnx.Rngs(1))
      >>> doped.first.kernel.shape, doped(jnp.ones((2, 64))).shape
      ((64, 16), (2, 64))
    """

    @checked()
    def __init__(self, layer: Any, sparsity: float, *, rngs: nnx.Rngs):
        _check_layer(layer)
        rank = doped_rank(layer.in_features, layer.out_features, sparsity, _taps(layer))
        self.sparse = _like(layer, rngs=rngs)
        self.first = _like(layer, outputs=rank, use_bias=False, rngs=rngs) if rank else None
        self.second = _pointwise(layer, rank, rngs, use_bias=False) if rank else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self.sparse(x)
        if self.first is None or self.second is None:
            return y
        return y + self.second(self.first(x))


def _like(layer: Any, outputs: Any = None, use_bias: bool | None = None, *, rngs) -> Any:
    """A new layer with the configuration of another."""
    outputs = layer.out_features if outputs is None else outputs
    bias = layer.use_bias if use_bias is None else use_bias
    shared = {"use_bias": bias, "dtype": layer.dtype, "param_dtype": layer.param_dtype}
    if isinstance(layer, nnx.Linear):
        return nnx.Linear(layer.in_features, outputs, **shared, rngs=rngs)
    names = ("strides", "padding", "input_dilation", "kernel_dilation")
    shared |= {name: getattr(layer, name) for name in names}
    return nnx.Conv(layer.in_features, outputs, layer.kernel_size, **shared, rngs=rngs)


def _check_layer(layer: Any) -> None:
    plain = isinstance(layer, nnx.Conv) and layer.feature_group_count == 1
    if not (plain or isinstance(layer, nnx.Linear)):
        raise TypeError(
            "layer: a sparse iso-FLOP layer replaces nnx.Linear or nnx.Conv without groups, got a "
            f"{type(layer).__name__}."
        )


def _pointwise(layer: Any, rank: int, rngs: nnx.Rngs, use_bias: bool | None = None) -> Any:
    bias = layer.use_bias if use_bias is None else use_bias
    shared = {"use_bias": bias, "dtype": layer.dtype, "param_dtype": layer.param_dtype}
    if isinstance(layer, nnx.Linear):
        return nnx.Linear(rank, layer.out_features, **shared, rngs=rngs)
    ones = (1,) * len(layer.kernel_size)
    return nnx.Conv(rank, layer.out_features, ones, **shared, rngs=rngs)


def _taps(layer: Any) -> int:
    return 1 if isinstance(layer, nnx.Linear) else math.prod(layer.kernel_size)


def _check(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} must be in [0, 1), as in 0.75.")
