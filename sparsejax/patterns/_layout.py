"""A kernel seen as a matrix: which axes are contracted, which are outputs, which are stacked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Array, Shaped


@dataclass(frozen=True)
class MatrixView:
    """A kernel of shape `shape` seen as `(stacked..., contraction, output)`.

    `stacked`, `contraction` and `output` are axes of the kernel; `to_matrix` and `from_matrix`
    are inverse to each other.
    """

    shape: tuple[int, ...]
    stacked: tuple[int, ...]
    contraction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        return (*self._sizes(self.stacked), *map(math.prod, self._sides()))

    def to_matrix(self, x: Shaped[Array, "..."]) -> Shaped[Array, "... k n"]:
        """The kernel as `(stacked..., K, N)`, K and N flattened in row-major order."""
        return x.transpose(self._order()).reshape(self.matrix_shape)

    def from_matrix(self, matrix: Shaped[Array, "... k n"]) -> Shaped[Array, "..."]:
        """The kernel of shape `shape` that `to_matrix` sees as `matrix`."""
        order = self._order()
        back = tuple(order.index(axis) for axis in range(len(order)))
        return matrix.reshape(self._sizes(order)).transpose(back)

    def _order(self) -> tuple[int, ...]:
        return self.stacked + self.contraction + self.output

    def _sizes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)

    def _sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._sizes(self.contraction), self._sizes(self.output)


def matrix_view(
    shape: tuple[int, ...], axis: int | Sequence[int] | None = None, stacked: int = 0
) -> MatrixView:
    """The matrix view of a kernel, in the Flax layout unless `axis` says otherwise.

    Args:
      shape: Shape of the kernel.
      axis: The contraction axis or axes. None means axis 0 of `(in, out)` and axes 0, 1, 2 of a
        convolution `(h, w, in, out)`, after the stacked axes.
      stacked: Number of leading axes that count layers or experts.

    Raises:
      ValueError: If `axis=None` does not say which axes are contracted, or an axis is wrong.
    """
    if not 0 <= stacked < len(shape):
        raise ValueError(f"stacked={stacked} leaves no matrix in a kernel of shape {shape}.")
    inner = len(shape) - stacked
    if axis is None:
        axis = _default_axes(shape, inner, stacked)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"axis={axis} is not an axis of a kernel of shape {shape}.")
    contraction = tuple(a % len(shape) for a in axes)
    if len(set(contraction)) != len(contraction) or min(contraction) < stacked:
        raise ValueError(
            f"axis={axis} names an axis twice or one of the {stacked} stacked axes of a kernel of "
            f"shape {shape}; axes are counted from the first axis of the whole kernel."
        )
    output = tuple(a for a in range(stacked, len(shape)) if a not in contraction)
    return MatrixView(tuple(shape), tuple(range(stacked)), contraction, output)


def _default_axes(shape: tuple[int, ...], inner: int, stacked: int) -> tuple[int, ...]:
    if inner == 2:
        return (stacked,)
    if inner == 4:
        return (stacked, stacked + 1, stacked + 2)
    if inner == 1:
        raise ValueError(
            f"a leaf of shape {shape} (a bias or scale) is no kernel and contracts nothing: let "
            'the rule find kernels only, {r"kernel$": ...}, or prune it by sj.Unstructured(0.5).'
        )
    raise ValueError(
        f"axis=None does not say which axes of a kernel of shape {shape} are contracted. "
        "Say axis=0 for an input projection (in, heads, head_dim), axis=(0, 1) for an output "
        "projection (heads, head_dim, out) or a 1-D convolution (width, in, out), or stacked=1 if "
        "the first axis counts layers or experts."
    )
