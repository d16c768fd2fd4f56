"""Models and trees in safetensors files, compressed or not."""

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from .._arguments import checked
from .._tree import is_array, is_variable, name_of
from ..formats import Matrix, SparseArray
from . import _file
from ._linear import SparseKernel
from ._linear_layer import LinearLayer
from ._nnx import copied, tied_layers

Leaves = dict[str, Any]


@checked()
def save(path: str | os.PathLike[str], model: Any) -> None:
    """Writes a dense, pruned or compressed model as one safetensors file.

    Every array is a tensor named by its path, `layers/0/attention/query/kernel`, in the dtype that
    it has. A compressed kernel is one tensor for each of its parts, `NAME.values` and so on. A
    matrix of floats that is smaller so by a tenth, as pruned kernels are, becomes a bitmask and its
    other entries, `NAME.bits` and `NAME.values`, exact bit for bit (-0.0 and NaN too): with 90 %
    zeros it takes 13 % of its bytes.
    The metadata describe all of these in JSON, with a checksum. Tied parameters are stored once.

    The file appears when it is complete. Arrays that span processes are gathered: every process
    must make this call, and writes the whole file.

    Args:
      path: A file.
      model: An NNX module with all its variables, an Equinox module, or a tree of arrays, such as
        the variables of a Linen module. The code of a model is not stored.

    Raises:
      ImportError: If safetensors is not installed.
      FileNotFoundError: If the folder is missing.
      ValueError: If two leaves would get the same name, the name of one would be a prefix of
        another, a leaf is abstract or traced, or has a dtype that safetensors cannot hold.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> small = sj.compress(model, sj.plan(model, sj.NM(2, 4)))
      >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
      >>> sj.save(path, small)
      >>> sj.load(path)["kernel"]
      NMArray(2:4, shape=(8, 4), dtype=float32)
    """
    leaves = leaves_of(model)
    if not leaves:
        raise ValueError(
            f"save: model must have arrays, got none in {type(model).__name__}; pass a module or a "
            "tree of arrays: sj.save(path, model)."
        )
    _file.write(Path(path), leaves)


@checked()
def load(path: str | os.PathLike[str], model: Any = None) -> Any:
    """A model with the values of a file that `save` wrote.

    Kernels are compressed where those of the file are, whatever those of the model are; tied
    parameters stay tied. Values are placed as the arrays of the model are sharded. The checksum of
    the file is compared, and every matrix is validated (`sj.formats.Matrix.validate`), so that no
    index refers to memory out of its range. Files of others, without a checksum, hold arrays only.

    Args:
      path: A file.
      model: A model of the same architecture, dense or compressed, with values or without:
        `nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))` allocates none. It is not changed. None
        gives the leaves as nested dicts, by their paths.

    Returns:
      A model of the same class, or a tree of the same structure.

    Raises:
      ImportError: If safetensors is not installed.
      ValueError: If the file is damaged, holds a format that is not defined, or does not fit the
        model: names, shapes, or a compressed kernel for a layer that cannot use one.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> make = lambda: nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> model = make()
      >>> path = os.path.join(tempfile.mkdtemp(), "small.safetensors")
      >>> sj.save(path, sj.compress(model, sj.plan(model, sj.NM(2, 4))))
      >>> small = sj.load(path, nnx.eval_shape(make))
      >>> small.kernel[...], small(jnp.ones((3, 8))).shape
      (NMArray(2:4, shape=(8, 4), dtype=float32), (3, 4))
    """
    found = _file.read(Path(path))
    if model is None:
        return _nested(path, found)
    wanted = leaves_of(model)
    try:
        _check_names(wanted, found)
        fitted = {name: _fitted(name, leaf, found[name]) for name, leaf in wanted.items()}
        return with_leaves(model, fitted)
    except ValueError as error:
        raise ValueError(f"load: {path} does not fit the model: {error}") from error


@functools.singledispatch
def leaves_of(model: Any) -> Leaves:
    """The arrays, matrices and numbers of a tree by path; other frameworks can be registered."""
    leaves = jax.tree.leaves_with_path(model, is_leaf=_is_matrix)
    found = [(name_of(path), leaf) for path, leaf in leaves if _is_stored(leaf)]
    if len(names := dict(found)) < len(found):
        seen: set[str] = set()
        twice = next(name for name, _ in found if name in seen or seen.add(name))
        raise ValueError(f"save: two leaves are named {twice}; rename one.")
    return names


@functools.singledispatch
def with_leaves(model: Any, leaves: Leaves) -> Any:
    """The model with other leaves, of the names of `leaves_of`."""

    def one(path: Any, leaf: Any) -> Any:
        return leaves.get(name_of(path), leaf)

    return jax.tree.map_with_path(one, model, is_leaf=_is_matrix)


@leaves_of.register(nnx.Module)
def _(model: Any) -> Leaves:
    return leaves_of(nnx.state(model))


@leaves_of.register(nnx.State)
def _(state: Any) -> Leaves:
    """The leaves, with the values and indices of a `SparseKernel` as one matrix."""
    leaves = leaves_of(dict(nnx.as_pure(state)))
    for name, index in list(leaves.items()):
        if isinstance(index, SparseArray) and index.values is None:
            owner = name.removesuffix("index").removesuffix("/")
            values = leaves.pop("/".join(filter(None, (owner, "values"))))
            del leaves[name]
            leaves[owner] = replace(index, values=values)  # pyright: ignore
    return leaves


@with_leaves.register(nnx.State)
def _(state: Any, leaves: Leaves) -> Any:
    leaves = _apart(leaves, leaves_of.dispatch(object)(dict(nnx.as_pure(state))))

    def one(path: Any, variable: Any) -> Any:
        inside = lambda rest, leaf: leaves.get(name_of((*path, *rest)), leaf)  # noqa: E731
        if not is_variable(variable):
            return inside((), variable)
        value = jax.tree.map_with_path(inside, variable.get_value(), is_leaf=_is_matrix)
        return variable.replace(value)

    return jax.tree.map_with_path(one, state, is_leaf=lambda x: is_variable(x) or _is_matrix(x))


@with_leaves.register(nnx.Module)
def _(model: Any, leaves: Leaves) -> Any:
    model, before = copied(model), leaves_of(model)
    new = {name: leaf for name, leaf in leaves.items() if _is_matrix(leaf)}
    new = {name: leaf for name, leaf in new.items() if not _is_matrix(before[name])}
    for names, layers in tied_layers(model):
        for name in new.keys() & set(names):
            matrix = new.pop(name)
            for layer in layers:
                _check_layer(name, layer, before[name].shape, matrix)
            kernel = SparseKernel(matrix)
            for layer in layers:
                layer.install(kernel)  # pyright: ignore[reportOptionalCall]
    for name, matrix in new.items():
        raise ValueError(f"{name} is {matrix} in the file, and not the kernel of a linear layer.")
    nnx.update(model, with_leaves(nnx.state(model), leaves))
    return model


def _check_layer(name: str, layer: LinearLayer, shape: tuple[int, ...], matrix: Matrix) -> None:
    lead = len(shape) - layer.ndim
    summed = math.prod(shape[lead + axis] for axis in layer.contraction)
    wanted = (*shape[:lead], summed, math.prod(shape[lead:]) // max(summed, 1))
    if layer.install is None or not isinstance(matrix, SparseArray) or matrix.shape != wanted:
        raise ValueError(
            f"{name} is {matrix} in the file, which a layer with a kernel of shape {shape} cannot "
            "use; build the model as it was when it was compressed."
        )


def _apart(leaves: Leaves, names: Mapping[str, Any]) -> Leaves:
    """The leaves with the matrices of `SparseKernel`s in two parts, where the names have two."""
    leaves = dict(leaves)
    for name, index in names.items():
        owner = name.removesuffix("index").removesuffix("/")
        if isinstance(index, SparseArray) and owner in leaves:
            matrix = leaves.pop(owner)
            if not isinstance(matrix, SparseArray):
                raise ValueError(
                    f"{owner} is dense in the file and compressed in the model; pass the dense "
                    "model."
                )
            leaves["/".join(filter(None, (owner, "values")))] = matrix.values
            leaves[name] = replace(matrix, values=None)  # pyright: ignore
    return leaves


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Matrix)


def _is_stored(x: Any) -> bool:
    return is_array(x) or isinstance(x, Matrix | bool | int | float)


def _check_names(wanted: Leaves, found: Leaves) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        parts = [f"it has no {_listed(missing)}"] * bool(missing)
        parts += [f"the model has no {_listed(extra)}"] * bool(extra)
        raise ValueError(f"{'; '.join(parts)}. Build the model that was saved.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name or "the parameter" for name in names[:5]) + more


def _fitted(name: str, wanted: Any, found: Any) -> Any:
    """The leaf of a file, after a comparison with that of the model."""
    about, shape = (_about(x) for x in (wanted, found))
    if about[0] != shape[0]:
        raise ValueError(f"{name} is {shape[0]} in the file and {about[0]} in the model.")
    # A compressed kernel has the shape of the matrix, whose axes may be fewer.
    merged = _is_matrix(found) and not _is_matrix(wanted) and len(about[1]) > 2
    if math.prod(about[1]) != math.prod(shape[1]) if merged else about[1] != shape[1]:
        raise ValueError(f"{name} has shape {shape[1]} in the file and {about[1]} in the model.")
    if isinstance(found, jax.Array) and isinstance(wanted, jax.Array | jax.ShapeDtypeStruct):
        if isinstance(wanted.sharding, NamedSharding):
            return jax.device_put(found, wanted.sharding)
    return found


def _about(x: Any) -> tuple[str, tuple[int, ...]]:
    """The kind of a leaf, and its shape."""
    if isinstance(x, bool | int | float):
        return f"a {type(x).__name__}", ()
    kinds = {jnp.floating: "floats", jnp.integer: "integers", jax.dtypes.prng_key: "random keys"}
    kind = next((text for kind, text in kinds.items() if jnp.issubdtype(x.dtype, kind)), None)
    return kind or str(x.dtype), tuple(x.shape)


def _nested(path: Any, flat: Leaves) -> Any:
    if list(flat) == [""]:
        return flat[""]
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or last in place:
            raise ValueError(
                f"load: {path} cannot be loaded: {name} is within another leaf, or one of its "
                "folders is a leaf."
            )
        place[last] = value
    return tree
