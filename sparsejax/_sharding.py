"""Arrays on meshes with explicit axes, the default of `jax.make_mesh`, and of many processes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def with_auto_axes(f: Callable[..., PyTree], *args: PyTree, like: PyTree) -> PyTree:
    """`f(*args)`, with intermediate arrays sharded by the compiler and results sharded as `like`.

    On a mesh with explicit axes a function must otherwise state the sharding of each reshape and
    sum. It gets all its arrays as arguments, and returns a tree of the structure of `like`.
    """
    if not any(map(_is_explicit, jax.tree.leaves(like))):
        return f(*args)
    wanted = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    return jax.sharding.auto_axes(f, out_sharding=wanted)(*args)


def whole_with_auto_axes(f: Callable[..., Array], *args: PyTree, like: PyTree) -> Any:
    """`f(*args)` as `with_auto_axes`, with a result that all devices hold."""
    explicit = list(filter(_is_explicit, jax.tree.leaves(like)))
    if not explicit:
        return f(*args)
    wanted = NamedSharding(jax.typeof(explicit[0]).sharding.mesh, PartitionSpec())
    return jax.sharding.auto_axes(f, out_sharding=wanted)(*args)


def drawn_like(x: Any, f: Callable[[Array], Array], key: Array) -> Array:
    """`f(key)` of the shape of `x`, sharded as that is."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return f(key)

    def draw(key, x):
        values = f(key)
        return jnp.where(x == x, values, values)  # depends on x, and so runs on its devices

    return with_auto_axes(draw, key, x, like=x)


def on_host(x: Any) -> np.ndarray:
    """The array in NumPy; gathered if it spans processes, all of which must then call this."""
    held = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    if held and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _is_explicit(x: Any) -> bool:
    if isinstance(x, jax.ShapeDtypeStruct | np.ndarray):
        return False
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
