"""Compressed weights in safetensors files, and their placement on many devices."""

import hashlib
import importlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._arguments import checked
from .._files import replacing
from .._sharding import on_host
from .._tree import fields_of, name_of, optional_fields
from ._array import Matrix
from ._block import BlockArray
from ._coordinates import Entries
from ._low_rank import LowRank, Sum
from ._nm import NMArray
from ._skipping import Skipping
from ._tensor_core import TensorCoreArray
from ._transposed import Transposed

_FORMATS = (BlockArray, Entries, LowRank, NMArray, Skipping, Sum, TensorCoreArray, Transposed)
# The keys of the metadata: the formats by name, and the SHA-256 of the file in which its own
# digits are zeros.
_KINDS, _DIGEST, _UNSIGNED = "sparsejax", "sparsejax_sha256", "0" * 64


@checked()
def save_safetensors(tree: PyTree, path: str | os.PathLike[str]) -> None:
    """Writes a tree of arrays and compressed matrices as one safetensors file.

    A compressed matrix becomes one tensor for each of its leaves, `NAME.values` and so on; its
    static fields are stored in the metadata of the file, with a checksum. The file
    appears when it is complete. Arrays that span processes are gathered: every process must make
    this call, and writes the whole file.

    Args:
      tree: Nested dicts of arrays and compressed matrices.
      path: A file.

    Raises:
      ImportError: If safetensors is not installed.
      ValueError: If two leaves would get the same name, or the name of one would be a prefix of
        another.

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
    for place, leaf in jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Matrix)):
        name = name_of(place)
        names.add(name)
        parts, kind = _parts(name, leaf)
        if kind is not None:
            kinds[name] = kind
        if tensors.keys() & parts.keys():
            raise ValueError(f"save_safetensors: two leaves are named {name}; rename one.")
        tensors |= {key: jnp.asarray(on_host(value)) for key, value in parts.items()}
    for name in names:
        folders = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
        if clash := names.intersection(folders):
            raise ValueError(
                f"save_safetensors: {clash.pop()} is a leaf, so {name} cannot be within it; rename "
                "one."
            )
    library, metadata = _safetensors(), {_KINDS: json.dumps(kinds), _DIGEST: _UNSIGNED}
    with replacing(Path(path)) as written:
        library.save_file(tensors, written, metadata=metadata)
        with written.open("r+b") as file:
            digest, place = _signature(file, _UNSIGNED)
            file.seek(place)
            file.write(digest.encode())


@checked()
def load_safetensors(
    path: str | os.PathLike[str], formats: Sequence[type[Matrix]] = ()
) -> dict[str, Any]:
    """The tree that `save_safetensors` wrote, as nested dicts.

    The checksum of the file is compared, and every matrix is validated (`Matrix.validate`), so that
    no index refers to memory out of its range. Safetensors files of others have no checksum: their
    tensors are loaded as arrays.

    Args:
      path: A file.
      formats: Classes of custom formats that the file may contain.

    Raises:
      ImportError: If safetensors is not installed.
      ValueError: If the file is damaged, or holds a format that is not among the known ones.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
      >>> sj.formats.save_safetensors({"a": {"b": jnp.ones(2)}}, path)
      >>> sj.formats.load_safetensors(path)["a"]["b"].tolist()
      [1.0, 1.0]
    """
    path, library = Path(path), _safetensors()
    errors = importlib.import_module("safetensors").SafetensorError
    try:
        kinds = _checked_kinds(path)
        tensors = library.load_file(path)
        known = {cls.__name__: cls for cls in (*_FORMATS, *formats)}
        for name, kind in kinds.items():
            tensors[name] = _restored(name, kind, tensors, known)
            tensors[name].validate()
        return _nested(tensors)
    except (errors, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"load_safetensors: {path} cannot be loaded: {error}.") from error


def _checked_kinds(path: Path) -> dict[str, Any]:
    """The formats in a file by name, after its checksum; none of a file without metadata."""
    with importlib.import_module("safetensors").safe_open(path, "np") as file:
        metadata = file.metadata() or {}
    digest = metadata.get(_DIGEST)
    if (digest is None) != (_KINDS not in metadata):
        raise ValueError(f"its metadata must have both {_KINDS} and {_DIGEST}")
    if digest is None:
        return {}
    with path.open("rb") as file:
        if len(digest) != len(_UNSIGNED) or _signature(file, digest)[0] != digest:
            raise ValueError("its checksum is another one: bytes have changed since it was saved")
    return json.loads(metadata[_KINDS])


def _signature(file: Any, digest: str) -> tuple[str, int]:
    """The SHA-256 of a file with zeros in place of its digest, and the place of the digest."""
    size = file.read(8)
    header = file.read(int.from_bytes(size, "little"))
    place = header.index(f'"{digest}"'.encode()) + 1
    found = hashlib.sha256(size + header[:place] + _UNSIGNED.encode())
    found.update(header[place + len(digest) :])
    while chunk := file.read(2**20):
        found.update(chunk)
    return found.hexdigest(), len(size) + place


@checked()
def convert_block(w: BlockArray, block: int | tuple[int, int]) -> BlockArray:
    """The same matrix in blocks of another size, through the dense matrix.

    Smaller blocks drop zeros of the larger ones; larger blocks store the zeros in between.

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


def _parts(name: str, leaf: Any) -> tuple[dict[str, Any], Any]:
    """The tensors of a leaf by name, and its class, static fields and inner matrices."""
    if not isinstance(leaf, Matrix):
        return {name: leaf}, None
    static = {key: getattr(leaf, key) for key in fields_of(leaf, static=True)}
    tensors: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for key in fields_of(leaf):
        value = getattr(leaf, key)
        if value is None and key in optional_fields(leaf):
            continue
        if value is None:
            raise ValueError(
                f"save_safetensors: {name} has no {key}, as an sj.nn.SparseKernel keeps the values "
                "apart from indices; save kernel[...] of it instead, or the whole nnx.State with "
                "orbax."
            )
        parts, kind = _parts(f"{name}.{key}", value)
        tensors |= parts
        if kind is not None:
            inner[key] = kind
    return tensors, {"kind": type(leaf).__name__, "static": static, "matrices": inner}


def _restored(name: str, about: Any, tensors: dict[str, Any], known: Mapping[str, Any]) -> Any:
    """The matrix of a name; removes its tensors from the dict."""
    if name in tensors:
        raise ValueError(f"{name} is both a tensor and a matrix")
    if (kind := about["kind"]) not in known:
        raise ValueError(
            f"{name} is a {kind}, which is not among {', '.join(known)}; pass its class: "
            f"load_safetensors(path, formats=[{kind}])"
        )
    parts = {}
    for key in fields_of(known[kind]):
        part = f"{name}.{key}"
        inner = about["matrices"].get(key)
        if not inner and part not in tensors:
            if key in optional_fields(known[kind]):
                continue
            raise ValueError(f"it has no tensor {part}")
        parts[key] = _restored(part, inner, tensors, known) if inner else tensors.pop(part)
    return known[kind](**parts, **{key: _hashable(x) for key, x in about["static"].items()})


def _hashable(x: Any) -> Any:
    """Converts lists from JSON back to tuples."""
    return tuple(map(_hashable, x)) if isinstance(x, list) else x


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict) or last in place:
            raise ValueError(f"{name} is within another leaf, or one of its folders is a leaf")
        place[last] = value
    return tree


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.flax")
    except ImportError as error:
        raise ImportError('safetensors files need: pip install "sparsejax[models]".') from error
