"""DARTS cells: mixed operations on the edges of a directed acyclic graph."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..._arguments import check_not_nan, checked


class MixedOp(nnx.Module):
    r"""A weighted sum of operations, `sum_o weights_o * op_o(x)`.

    Args:
      ops: Modules or functions whose outputs have the same shape.

    Raises:
      ValueError: If `ops` is empty.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2018 (arXiv 1806.09055).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> mixed = search.MixedOp([jnp.zeros_like, lambda x: x, lambda x: 2 * x])
      >>> mixed(jnp.ones(2), jnp.array([0.5, 0.25, 0.25])).tolist()
      [0.75, 0.75]
    """

    @checked()
    def __init__(self, ops: Sequence[Callable[..., Any]]):
        if not len(ops):
            raise ValueError("MixedOp needs at least one operation.")
        # Functions are static; modules are data.
        for i, op in enumerate(ops):
            setattr(self, f"op_{i}", op)
        self.size = len(ops)

    def __call__(
        self, x: Float[Array, "..."], weights: Float[Array, " ops"]
    ) -> Float[Array, "..."]:
        """The weighted sum; the weights are usually a softmax."""
        if weights.shape != (self.size,):
            raise ValueError(f"MixedOp has {self.size} operations, got weights {weights.shape}.")
        found = [getattr(self, f"op_{i}")(x) for i in range(self.size)]
        return sum(w * y for w, y in zip(weights, found))  # pyright: ignore[reportReturnType]


class DartsCell(nnx.Module):
    r"""A DARTS cell: two inputs and several nodes, each a sum of mixed operations.

    `node_i = sum_j mixed_ij(state_j, softmax(alpha_ij))` over the 2 + i preceding states; the
    output is the concatenation of the nodes along the last axis. Four nodes make 14 edges.

    Args:
      edge: Function of the stride to the operations of an edge; for images `lambda stride:
        sj.contrib.search.darts_ops(16, stride, rngs=rngs).values()`.
      nodes: Number of nodes.
      reduction: Whether edges from the inputs have stride 2.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2018 (arXiv 1806.09055).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> cell = search.DartsCell(lambda stride: [jnp.zeros_like, lambda x: x], nodes=2)
      >>> cell.edges, cell(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.zeros((5, 2))).shape
      (5, (1, 6))
    """

    @checked()
    def __init__(self, edge: Callable[[int], Any], nodes: int = 4, *, reduction: bool = False):
        self.nodes = nodes
        self.edges = sum(2 + i for i in range(nodes))
        sources = [j for i in range(nodes) for j in range(2 + i)]
        for at, source in enumerate(sources):
            stride = 2 if reduction and source < 2 else 1
            setattr(self, f"edge_{at}", MixedOp(list(edge(stride))))

    def __call__(
        self,
        first: Float[Array, "..."],
        second: Float[Array, "..."],
        alpha: Float[Array, "edges ops"],
    ) -> Float[Array, "..."]:
        """The concatenated nodes."""
        if alpha.shape[0] != self.edges:
            raise ValueError(
                f"a cell of {self.nodes} nodes has {self.edges} edges, got alpha {alpha.shape}."
            )
        weights, states, at = jax.nn.softmax(alpha, axis=-1), [first, second], 0
        for _ in range(self.nodes):
            edges = range(at, at + len(states))
            mixed = [getattr(self, f"edge_{e}")(x, weights[e]) for e, x in zip(edges, states)]
            states.append(jnp.sum(jnp.stack(mixed), axis=0))
            at += len(mixed)
        return jnp.concatenate(states[2:], axis=-1)


@checked(nodes="[1, inf)")
def genotype(
    alpha: Float[Array, "edges ops"], op_names: Sequence[str], nodes: int = 4, none: str = "none"
) -> tuple[tuple[tuple[str, int], ...], ...]:
    r"""Derives the discrete cell: the two strongest edges into each node and their operations.

    The strength of an edge is the softmax weight of its strongest operation other than `none`. Ties
    go to the lower edge and the earlier operation.

    Args:
      alpha: Operation weights of the edges, before the softmax.
      op_names: Names of the operations; `none` may be absent.
      nodes: Number of nodes.
      none: Name of the zero operation, which is never chosen.

    Returns:
      For each node its two (operation, state) pairs in the order of the states; states 0 and 1
      are the inputs of the cell.

    Raises:
      ValueError: If the shape of alpha is not (edges, operations), or alpha holds NaN.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2018 (arXiv 1806.09055).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> alpha = jnp.array([[9.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0],
      ...                    [0.0, 0.0, 4.0]])
      >>> search.genotype(alpha, ["none", "skip", "conv"], nodes=2)
      ((('skip', 0), ('conv', 1)), (('skip', 0), ('conv', 2)))
    """
    edges = sum(2 + i for i in range(nodes))
    if alpha.shape != (edges, len(op_names)):
        raise ValueError(
            f"genotype: alpha has shape {alpha.shape}; {nodes} nodes have {edges} edges, of "
            f"{len(op_names)} operations each."
        )
    check_not_nan("genotype", alpha=alpha)
    weights = jax.nn.softmax(alpha, axis=-1)
    kept = [i for i, name in enumerate(op_names) if name != none]
    best = [[float(w[i]) for i in kept] for w in weights]
    cell, at = [], 0
    for node in range(nodes):
        strength = [max(best[at + j]) for j in range(2 + node)]
        strongest = sorted(range(2 + node), key=lambda j: -strength[j])[:2]  # noqa: B023
        pairs = [(op_names[kept[best[at + j].index(strength[j])]], j) for j in sorted(strongest)]
        cell.append(tuple(pairs))
        at += 2 + node
    return tuple(cell)


@checked(channels="[1, inf)", stride="[1, inf)")
def darts_ops(
    channels: int, stride: int = 1, *, conv: Callable[..., Any] = nnx.Conv, rngs: nnx.Rngs
) -> dict[str, nnx.Module]:
    r"""The eight operations of DARTS on images `(batch, height, width, channels)`, by name.

    Zero, max and average pooling, identity, separable and dilated convolutions of 3 x 3 and 5 x 5.
    Batch normalization uses the statistics of the batch, without scale and shift, as in the search.

    Args:
      channels: Number of input and output channels.
      stride: 1 or 2.
      conv: Constructor of the convolutions, called like `nnx.Conv`; for learned masks
        `lambda *a, **k: sj.contrib.search.Scored(nnx.Conv(*a, **k), sj.Unstructured(0.99))`.
      rngs: Random keys of the parameters.

    Returns:
      Modules by name, in the order of the columns of alpha.

    Raises:
      ValueError: If the stride is neither 1 nor 2, or it is 2 and the number of channels is odd.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2018 (arXiv 1806.09055).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import search
      >>> from flax import nnx
      >>> ops = search.darts_ops(4, stride=2, rngs=nnx.Rngs(0))
      >>> {op(jnp.ones((1, 8, 8, 4))).shape for op in ops.values()}, len(ops)
      ({(1, 4, 4, 4)}, 8)
    """
    if stride not in (1, 2) or (stride == 2 and channels % 2):
        raise ValueError(
            f"darts_ops(channels={channels}, stride={stride}): the stride must be 1 or 2, and with "
            "2 the channels even."
        )
    make = lambda kind, *args: kind(channels, *args, conv=conv, rngs=rngs)  # noqa: E731
    return {
        "none": _None(stride),
        "max_pool_3x3": _Pool(nnx.max_pool, stride),
        "avg_pool_3x3": _Pool(_average_pool, stride),
        "skip_connect": make(_Halve) if stride == 2 else _Same(),
        "sep_conv_3x3": make(_Separable, 3, stride),
        "sep_conv_5x5": make(_Separable, 5, stride),
        "dil_conv_3x3": make(_Depthwise, 3, stride, 2),
        "dil_conv_5x5": make(_Depthwise, 5, stride, 2),
    }


def _normalize(x: Array) -> Array:
    axes = tuple(range(x.ndim - 1))
    mean, variance = (f(x, axes, keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def _average_pool(x, window, strides, padding):
    return nnx.avg_pool(x, window, strides, padding, count_include_pad=False)


class _None(nnx.Module):
    def __init__(self, stride):
        self.stride = stride

    def __call__(self, x):
        return jnp.zeros_like(x[:, :: self.stride, :: self.stride])


class _Same(nnx.Module):
    def __call__(self, x):
        return x


class _Pool(nnx.Module):
    def __init__(self, pool, stride):
        self.pool, self.stride = pool, stride

    def __call__(self, x):
        strides = (self.stride, self.stride)
        return _normalize(self.pool(x, (3, 3), strides, ((1, 1), (1, 1))))


class _Halve(nnx.Module):
    """Two convolutions of stride 2, one shifted by a pixel, concatenated."""

    def __init__(self, channels, *, conv, rngs):
        half = channels // 2
        make = lambda: conv(channels, half, (1, 1), strides=2, use_bias=False, rngs=rngs)  # noqa: E731
        self.even, self.odd = make(), make()

    def __call__(self, x):
        x = jax.nn.relu(x)
        shifted = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        return _normalize(jnp.concatenate([self.even(x), self.odd(shifted)], axis=-1))


class _Depthwise(nnx.Module):
    """ReLU, depthwise convolution, pointwise convolution, normalization."""

    def __init__(self, channels, size, stride, dilation, *, conv, rngs):
        self.each = conv(
            channels, channels, (size, size), strides=stride, kernel_dilation=dilation,
            padding=dilation * (size // 2), feature_group_count=channels, use_bias=False,
            rngs=rngs,
        )  # fmt: skip
        self.across = conv(channels, channels, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x):
        return _normalize(self.across(self.each(jax.nn.relu(x))))


class _Separable(nnx.Module):
    def __init__(self, channels, size, stride, *, conv, rngs):
        self.first = _Depthwise(channels, size, stride, 1, conv=conv, rngs=rngs)
        self.second = _Depthwise(channels, size, 1, 1, conv=conv, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))
