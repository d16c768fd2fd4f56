"""Compressed weights on many devices."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._arguments import checked
from .._tree import fields_of
from ._array import SparseArray


@checked()
def shard_columns(w: Any, mesh: Mesh, axis: str) -> SparseArray:
    """Shards the columns (outputs) of a compressed matrix over a mesh axis.

    Every leaf has the columns (or block columns, or tiles of columns) as an axis; the lists by
    block row of a `BlockArray`, which the gradient reads, are replicated.

    Args:
      w: `(K, N)`.
      mesh: A device mesh with automatic axes: the compiler shards the products.
      axis: The name of one of its axes, whose size divides the columns or block columns.

    Raises:
      ValueError: If the axis is unknown, does not divide, or the mesh has explicit axes.
      TypeError: If w is not compressed.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4)
      >>> auto = jax.sharding.AxisType.Auto
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(auto,))
      >>> placed = sj.formats.shard_columns(w, mesh, "model")
      >>> tuple(placed.values.sharding.spec)
      (None, None, 'model')
    """
    if not isinstance(w, SparseArray):
        raise TypeError(
            f"shard_columns(w) must be a compressed matrix, got {type(w).__name__}; for an array "
            "use jax.device_put with a NamedSharding."
        )
    if axis not in mesh.shape:
        raise ValueError(f"shard_columns: axis must be one of {tuple(mesh.shape)}, got {axis!r}.")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "shard_columns: the mesh must have automatic axes, over which the compiler shards "
            "products, got "
            f"{mesh.axis_types}; make it with jax.make_mesh({tuple(mesh.shape.values())}, "
            f"{mesh.axis_names}, axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.shape)})."
        )
    specs = w.column_axes
    if not specs:
        raise TypeError(f"shard_columns: {type(w).__name__} does not define column_axes.")
    columns = min(getattr(w, name).shape[at] for name, at in specs.items())
    if columns % mesh.shape[axis]:
        raise ValueError(
            f"shard_columns: {mesh.shape[axis]} devices do not divide the {columns} columns (or "
            f"blocks of them) of {w}."
        )

    def place(name: str):
        leaf = getattr(w, name)
        spec: list[str | None] = [None] * leaf.ndim
        if name in specs:
            spec[specs[name]] = axis
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    static = {key: getattr(w, key) for key in fields_of(w, static=True)}
    return type(w)(**{name: place(name) for name in fields_of(w)}, **static)
