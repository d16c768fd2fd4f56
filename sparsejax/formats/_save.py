"""Compressed weights in safetensors files, and their placement on many devices."""

import dataclasses
import importlib
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._tree import name_of
from ._array import SparseArray
from ._block import BlockArray
from ._nm import NMArray
from ._tensor_core import TensorCoreArray

_KINDS: dict[str, type[SparseArray]] = {
    kind.__name__: kind for kind in (NMArray, BlockArray, TensorCoreArray)
}


def save_safetensors(tree: PyTree, path: str | os.PathLike[str]) -> None:
    """Writes a tree of arrays and compressed matrices as one safetensors file.

    A compressed matrix becomes one tensor for each of its leaves, `NAME.values` and so on; what is
    static about it stands in the metadata of the file.

    Args:
      tree: Nested dicts of arrays and compressed matrices.
      path: A file.

    Raises:
      ImportError: If safetensors is not installed.
      ValueError: If two leaves would get the same name, or one would be within another.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.NMArray.fromdense(jnp.eye(8), 1, 4)
      >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
      >>> sj.formats.save_safetensors({"layer": {"kernel": w}}, path)
      >>> sj.formats.load_safetensors(path)["layer"]["kernel"]
      NMArray(1:4, shape=(8, 8), dtype=float32)
    """
    tensors: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    names: set[str] = set()
    for place, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_sparse):
        name = name_of(place)
        names.add(name)
        parts = {name: leaf}
        if _is_sparse(leaf):
            kind = type(leaf).__name__
            kinds[name] = {
                "kind": kind,
                **{key: getattr(leaf, key) for key in _fields(kind, static=True)},
            }
            parts = {f"{name}.{key}": getattr(leaf, key) for key in _fields(kind)}
            if leaf.values is None:
                raise ValueError(
                    f"save_safetensors: {name} has indices only, as an sj.nn.SparseKernel keeps "
                    "them apart from its values; save kernel[...] of it instead, or the whole "
                    "nnx.State with orbax."
                )
        if tensors.keys() & parts.keys():
            raise ValueError(f"save_safetensors: two leaves are named {name}; rename one.")
        tensors |= {key: jnp.asarray(value) for key, value in parts.items()}
    for name in names:
        folders = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
        if clash := names.intersection(folders):
            raise ValueError(
                f"save_safetensors: {clash.pop()} is a leaf, so {name} cannot be within it; rename "
                "one."
            )
    _safetensors().save_file(tensors, path, metadata={"sparsejax": json.dumps(kinds)})


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree that `save_safetensors` wrote, as nested dicts.

    Args:
      path: A file.

    Raises:
      ImportError: If safetensors is not installed.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
      >>> sj.formats.save_safetensors({"a": {"b": jnp.ones(2)}}, path)
      >>> sj.formats.load_safetensors(path)["a"]["b"].tolist()
      [1.0, 1.0]
    """
    tensors = _safetensors().load_file(path)
    with importlib.import_module("safetensors").safe_open(path, "np") as file:
        kinds = json.loads((file.metadata() or {}).get("sparsejax", "{}"))
    for name, about in kinds.items():
        kind = about.pop("kind")
        parts = {key: tensors.pop(f"{name}.{key}") for key in _fields(kind)}
        tensors[name] = _KINDS[kind](**parts, **about)
    return _nested(tensors)


def convert_block(w: BlockArray, block: int | tuple[int, int]) -> BlockArray:
    """The same matrix in blocks of another size, through the dense matrix.

    Smaller blocks drop what is zero in the larger ones; larger ones take the zeros between in.

    Args:
      w: `(stacked..., K, N)`.
      block: `(bk, bn)` or one number for both.

    Raises:
      ValueError: If the blocks do not divide the matrix.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = sj.formats.BlockArray.fromdense(jnp.eye(8), 4)
      >>> sj.formats.convert_block(w, 2).density
      0.25
    """
    return BlockArray.fromdense(w.todense(), block)


def _fields(kind: str, static: bool = False) -> tuple[str, ...]:
    """The names of its leaves, or of what is static about it."""
    fields = dataclasses.fields(cast(Any, _KINDS[kind]))
    return tuple(f.name for f in fields if f.metadata.get("static", False) == static)


def _is_sparse(x: Any) -> bool:
    return isinstance(x, SparseArray)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.flax")
    except ImportError as error:
        raise ImportError('safetensors files need: pip install "sparsejax[models]".') from error
