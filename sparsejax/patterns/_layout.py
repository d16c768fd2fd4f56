"""The layout of a kernel: which axes are contracted, which are outputs, which are stacked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Shaped

from .._arguments import check_count, checked

Order = Literal["in_out", "out_in"]
ORDERS = ("in_out", "out_in")


@dataclass(frozen=True)
class Layout:
    """A leaf of shape `shape` as a matrix `(stacked..., contraction, output)`.

    Args:
      shape: Shape of the leaf.
      stacked: Leading axes that index layers or experts.
      contraction: Axes that the layer contracts, the fastest one last; None if the shape alone
        does not determine them.
      output: All other axes; None if they are not determined.
      spatial: Axes of a convolution window, which are part of `contraction`.
    """

    shape: tuple[int, ...]
    stacked: tuple[int, ...]
    contraction: tuple[int, ...] | None
    output: tuple[int, ...] | None
    spatial: tuple[int, ...] = ()

    @property
    def slices(self) -> int:
        """Number of stacked matrices."""
        return math.prod(self._sizes(self.stacked))

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        contraction, output = self.sides
        return (
            *self._sizes(self.stacked),
            math.prod(self._sizes(contraction)),
            math.prod(self._sizes(output)),
        )

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of input and output channels, without the window of a convolution."""
        contraction, output = self.sides
        inputs = [axis for axis in contraction if axis not in self.spatial]
        return math.prod(self._sizes(inputs)), math.prod(self._sizes(output))

    @property
    def run(self) -> int:
        """Consecutive inputs at one position: all, or the input channels of a convolution."""
        return self.channels[0]

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The contraction and output axes; raises if they are unknown or nothing is contracted."""
        if self.contraction is None or self.output is None:
            raise ValueError(ambiguous(self.shape))
        if not self.contraction:
            raise ValueError(
                f"a leaf of shape {self.shape} (a bias or scale) is not a kernel and contracts "
                'nothing: restrict the rule to kernels, {r"kernel$": ...}, or prune the leaf with '
                "sj.Unstructured(0.5)."
            )
        return self.contraction, self.output

    def to_matrix(self, x: Shaped[Array, "..."]) -> Shaped[Array, "... k n"]:
        """The leaf as `(stacked..., K, N)`, K and N flattened in row-major order."""
        return x.transpose(self._order()).reshape(self.matrix_shape)

    def from_matrix(self, matrix: Shaped[Array, "... k n"]) -> Shaped[Array, "..."]:
        """Inverse of `to_matrix`."""
        order = self._order()
        back = tuple(order.index(axis) for axis in range(len(order)))
        return matrix.reshape(self._sizes(order)).transpose(back)

    def _order(self) -> tuple[int, ...]:
        contraction, output = self.sides
        return self.stacked + contraction + output

    def _sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)


@checked()
def layout(
    shape: tuple[int, ...],
    axis: int | Sequence[int] | None = None,
    stacked: int = 0,
    order: Order | None = "in_out",
) -> Layout:
    """The layout of a kernel.

    Without `axis`, kernels in the order "in_out" (Flax) are `(in, out)` or `(h, w, in, out)`, and
    kernels in the order "out_in" (Equinox, PyTorch, safetensors) `(out, in)`, `(out, in, w)`,
    `(out, in, h, w)` or `(out, in, d, h, w)`, after the stacked axes. Any other number of axes has
    an unknown contraction, as does a matrix of unknown order.

    Args:
      shape: Shape of the leaf.
      axis: The contraction axis or axes, counted from the first axis of the leaf.
      stacked: Number of leading axes that index layers or experts.
      order: "in_out", "out_in", or None if it is unknown.

    Returns:
      A `Layout`.

    Raises:
      ValueError: If an axis is wrong or the order is not one of the two.

    Example:
      >>> from sparsejax import patterns
      >>> patterns.layout((3, 3, 8, 16)).matrix_shape
      (72, 16)
      >>> patterns.layout((16, 8, 3, 3), order="out_in").matrix_shape
      (72, 16)
    """
    shape = tuple(shape)
    if order not in (*ORDERS, None):
        raise ValueError(f'layout: order must be "in_out", "out_in" or None, got {order!r}.')
    check_count("stacked", stacked, 0)
    if not 0 <= stacked < max(len(shape), 1):
        raise ValueError(f"stacked={stacked} leaves no axes of a leaf of shape {shape}.")
    outer, axes = tuple(range(stacked)), tuple(range(stacked, len(shape)))
    if axis is not None:
        contraction = _checked(axis, shape, stacked)
        return Layout(shape, outer, contraction, _others(axes, contraction))
    if len(axes) <= 1:
        return Layout(shape, outer, (), axes)
    spatial, contraction = _default(axes, order)
    if contraction is None:
        return Layout(shape, outer, None, None)
    return Layout(shape, outer, contraction, _others(axes, contraction), spatial)


def ambiguous(shape: tuple[int, ...]) -> str:
    """The message for a kernel whose contracted axes are unknown."""
    if len(shape) == 2:
        return (
            f"a matrix of shape {shape} in a plain tree may be (in, out) or (out, in). Pass "
            'sj.plan(..., layout="out_in") for PyTorch and safetensors, layout="in_out" for Flax, '
            "or a pattern with axis=0 or axis=1, the axis that is contracted."
        )
    return (
        f"the contracted axes of a kernel of shape {shape} are ambiguous. Pass a pattern with "
        "axis=0 for an input projection (in, heads, head_dim), axis=(0, 1) for an output "
        "projection (heads, head_dim, out) or a 1-D convolution (width, in, out), stacked=1 if the "
        'first axis indexes layers or experts, or sj.plan(..., layout="out_in") for PyTorch and '
        "safetensors."
    )


def _default(axes: tuple[int, ...], order: Order | None):
    """The window and all contracted axes, the input channels last."""
    if order == "in_out" and len(axes) in (2, 4):
        return axes[:-2], axes[:-1]
    if order == "out_in" and 2 <= len(axes) <= 5:
        return axes[2:], (*axes[2:], axes[1])
    return (), None


def _others(axes: tuple[int, ...], contraction: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if axis not in contraction)


def _checked(axis: int | Sequence[int], shape: tuple[int, ...], stacked: int) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"axis={axis} is not an axis of a kernel of shape {shape}.")
    contraction = tuple(a % len(shape) for a in axes)
    if len(set(contraction)) != len(contraction) or min(contraction) < stacked:
        raise ValueError(
            f"axis={axis} repeats an axis or includes one of the {stacked} stacked axes of a "
            f"kernel of shape {shape}; axes are counted from the first axis of the whole kernel."
        )
    return contraction
