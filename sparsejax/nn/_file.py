"""Leaves of any kind in one safetensors file: tensors, a description in JSON, a checksum."""

import hashlib
import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._files import replacing
from .._sharding import on_host
from .._tree import as_json, fields_of, hashable, optional_fields
from ..formats import Matrix

# The keys of the metadata: what the leaves are that are not plain tensors, and the SHA-256 of the
# file in which its own digits are zeros.
KINDS, DIGEST, UNSIGNED = "sparsejax", "sparsejax_sha256", "0" * 64
Tensors = dict[str, Any]
_OWN = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "U64": "uint64",
}  # fmt: skip
_WORTH = 0.9  # most bytes of a bitmask and its values, as a share of those of the array


def write(path: Path, leaves: Mapping[str, Any]) -> None:
    """Writes arrays, matrices, random keys and Python numbers by name; an array twice held once."""
    tensors: Tensors = {}
    kinds: dict[str, Any] = {}
    held: dict[int, str] = {}
    _check_names(leaves)
    for name, leaf in leaves.items():
        if (first := held.setdefault(id(leaf), name)) != name and not _is_number(leaf):
            parts, kind = {}, {"tied": first}
        else:
            parts, kind = _parts(name, leaf)
        if kind is not None:
            kinds[name] = kind
        if tensors.keys() & parts.keys():
            raise ValueError(f"save: two leaves are named {name}; rename one.")
        tensors |= parts
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {path.parent}.")
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder; add the name of a file.")
    save_file, metadata = _library("safetensors.numpy").save_file, {KINDS: json.dumps(kinds)}
    with replacing(path) as written:
        try:
            save_file(tensors, written, metadata=metadata | {DIGEST: UNSIGNED})
        except importlib.import_module("safetensors").SafetensorError as error:
            raise ValueError(f"save: {path} cannot be written: {error}.") from error
        sign(written)


def sign(path: Path) -> None:
    """Puts the checksum in its place."""
    with path.open("r+b") as file:
        digest, place = _signature(file, UNSIGNED)
        file.seek(place)
        file.write(digest.encode())


def read(path: Path) -> dict[str, Any]:
    """The leaves by name; raises ValueError for whatever is wrong with the file."""
    errors = _library("safetensors").SafetensorError
    wrong = (errors, ValueError, TypeError, LookupError, AttributeError, RecursionError)
    if path.is_dir():
        raise IsADirectoryError(f"load: {path} is a folder; name the file in it.")
    try:
        kinds = _checked_kinds(path)
        tensors = _tensors(path)
        tied = {name: kind.pop("tied") for name, kind in kinds.items() if "tied" in kind}
        for name, kind in kinds.items():
            if name not in tied:
                tensors[name] = _restored(name, kind, tensors)
        return tensors | {name: tensors[of] for name, of in tied.items()}
    except wrong as error:
        raise ValueError(f"load: {path} cannot be loaded: {error}.") from error


def _check_names(leaves: Mapping[str, Any]) -> None:
    for name in leaves:
        if name == "__metadata__":
            raise ValueError("save: safetensors files keep the name __metadata__; rename the leaf.")
        folders = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
        if clash := leaves.keys() & set(folders):
            raise ValueError(
                f"save: {clash.pop()} is a leaf, so {name} cannot be within it; rename one."
            )


def _parts(name: str, leaf: Any) -> tuple[Tensors, Any]:
    """The tensors of a leaf by name, and its description if it is not a plain tensor."""
    if isinstance(leaf, Matrix):
        return _matrix_parts(name, leaf)
    if _is_number(leaf):
        return {}, {"number": leaf}
    _check_values(name, leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = on_host(jax.random.key_data(leaf))
        return {name: data}, {"key": str(jax.random.key_impl(leaf))}
    host = _contiguous(leaf)
    return _without_zeros(name, host) or ({name: host}, None)


def _check_values(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"save: {name} is abstract, {leaf}; save a model that has values.")
    if isinstance(leaf, Tracer):
        raise ValueError(f"save: {name} is traced; call save outside of jit, grad and vmap.")


def _contiguous(x: Any) -> np.ndarray:
    host = on_host(x)
    return np.ascontiguousarray(host).reshape(host.shape)  # without axes it would get one


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float)


def _matrix_parts(name: str, matrix: Matrix) -> tuple[Tensors, Any]:
    """One tensor for each leaf of a matrix; its class, static fields and inner matrices."""
    cls = type(matrix)
    if _formats().get(cls.__name__) is not cls:
        raise ValueError(
            f"save: {name} is a {cls.__name__}, a name that another format has; rename the class."
        )
    static = {key: getattr(matrix, key) for key in fields_of(cls, static=True)}
    as_json(cls, tuple(static.values()))  # raises for what is lost there
    tensors: Tensors = {}
    inner: dict[str, Any] = {}
    for key in fields_of(cls):
        part, value = f"{name}.{key}", getattr(matrix, key)
        if value is None and key in optional_fields(cls):
            continue
        if value is None:
            raise ValueError(
                f"save: {name} has no {key}, as an sj.nn.SparseKernel keeps the values apart from "
                "the indices; save the model, its nnx.State or kernel[...]."
            )
        found, kind = _matrix_parts(part, value) if isinstance(value, Matrix) else (None, None)
        if found is None:
            _check_values(part, value)
            found = {part: _contiguous(value)}
        tensors |= found
        if kind is not None:
            inner[key] = kind
    return tensors, {"kind": cls.__name__, "static": static, "matrices": inner}


def _without_zeros(name: str, host: np.ndarray) -> tuple[Tensors, Any] | None:
    """One bit for each entry, and the entries whose bits are not all zero; None if not smaller."""
    if host.ndim < 2 or not jnp.issubdtype(host.dtype, jnp.floating):
        return None
    bits = np.dtype(f"u{host.dtype.itemsize}")
    kept = host.reshape(-1).view(bits) != 0
    marks = np.packbits(kept, bitorder="little")
    if kept.sum() * host.dtype.itemsize + marks.nbytes > _WORTH * host.nbytes:
        return None
    values = host.reshape(-1)[kept]
    return {f"{name}.bits": marks, f"{name}.values": values}, {"bitmask": host.shape}


def _restored(name: str, about: Any, tensors: Tensors) -> Any:
    """The leaf of a description; removes its tensors from the dict."""
    kind, value = next(iter(about.items()), ("", None))
    if kind == "key":
        return jax.random.wrap_key_data(tensors.pop(name), impl=value)
    if name in tensors:
        raise ValueError(f"{name} is both a tensor and described as {value}")
    if kind == "number" and _is_number(value):
        return value
    if kind == "bitmask":
        return _with_zeros(name, value, tensors)
    matrix = _restored_matrix(name, about, tensors)
    matrix.validate()
    return matrix


def _with_zeros(name: str, shape: Any, tensors: Tensors) -> jax.Array:
    marks, values = (np.asarray(tensors.pop(f"{name}.{part}")) for part in ("bits", "values"))
    size = math.prod(shape)
    sizes = all(type(n) is int and n >= 0 for n in shape)
    if not sizes or marks.dtype != np.uint8 or marks.shape != (-(-size // 8),):
        raise ValueError(f"the bitmask of {name} does not fit the shape {shape}")
    kept = np.unpackbits(marks, bitorder="little").astype(bool)
    if kept[size:].any() or values.shape != (kept.sum(),):
        raise ValueError(f"the bitmask of {name} does not fit its values")
    dense = np.zeros(size, values.dtype)
    dense[kept[:size]] = values
    return jnp.asarray(dense.reshape(shape))


def _restored_matrix(name: str, about: Any, tensors: Tensors) -> Matrix:
    cls, parts = _format_of(name, about["kind"]), {}
    for key in fields_of(cls):
        part = f"{name}.{key}"
        inner = about["matrices"].get(key)
        if not inner and part not in tensors:
            if key in optional_fields(cls):
                continue
            raise ValueError(f"it has no tensor {part}")
        parts[key] = _restored_matrix(part, inner, tensors) if inner else tensors.pop(part)
    return cls(**parts, **{key: hashable(x) for key, x in about["static"].items()})


def _format_of(name: str, kind: str) -> Callable[..., Matrix]:
    known = _formats()
    if kind not in known:
        raise ValueError(
            f"{name} is a {kind}, which is not among {', '.join(sorted(known))}; import the module "
            "that defines it before"
        )
    return known[kind]


def _formats() -> dict[str, type[Matrix]]:
    """All formats that are defined, by name: of two with one name the first, unless redefined."""
    found: dict[str, type[Matrix]] = {}
    for cls in _subclasses(Matrix):
        first = found.setdefault(cls.__name__, cls)
        if (first.__module__, first.__qualname__) == (cls.__module__, cls.__qualname__):
            found[cls.__name__] = cls
    return found


def _subclasses(cls: type) -> Iterator[Any]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def _checked_kinds(path: Path) -> dict[str, Any]:
    """The descriptions in a file by name, after its checksum; none of a file without metadata."""
    with importlib.import_module("safetensors").safe_open(path, "np") as file:
        metadata = file.metadata() or {}
    digest = metadata.get(DIGEST)
    if (digest is None) != (KINDS not in metadata):
        raise ValueError(f"its metadata must have both {KINDS} and {DIGEST}")
    if digest is None:
        return {}
    with path.open("rb") as file:
        if len(digest) != len(UNSIGNED) or _signature(file, digest)[0] != digest:
            raise ValueError("its checksum is another one: bytes have changed since it was saved")
    return json.loads(metadata[KINDS])


def _tensors(path: Path) -> Tensors:
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    with importlib.import_module("safetensors").safe_open(path, "flax") as file:
        return {
            name: _own(path, start, name, header[name])
            if header[name]["dtype"] in _OWN
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }


def _own(path: Path, start: int, name: str, about: Any) -> jax.Array:
    """A tensor of a dtype that safetensors does not read, or that may not fit without float64."""
    begin, end = about["data_offsets"]
    data = np.fromfile(path, np.uint8, end - begin, offset=start + begin)
    host = data.view(jnp.dtype(_OWN[about["dtype"]])).reshape(about["shape"])
    with np.errstate(over="ignore"):
        found = jnp.asarray(host.astype(jax.dtypes.canonicalize_dtype(host.dtype)))
    if host.dtype.kind in "iu" and not np.array_equal(host, np.asarray(found)):
        raise ValueError(f"{name} holds integers beyond {found.dtype}; set jax_enable_x64")
    return found


def _signature(file: Any, digest: str) -> tuple[str, int]:
    """The SHA-256 of a file with zeros in place of its digest, and the place of the digest."""
    size = file.read(8)
    header = file.read(int.from_bytes(size, "little"))
    place = header.index(f'"{digest}"'.encode()) + 1
    found = hashlib.sha256(size + header[:place] + UNSIGNED.encode())
    found.update(header[place + len(digest) :])
    while chunk := file.read(2**20):
        found.update(chunk)
    return found.hexdigest(), len(size) + place


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError('safetensors files need: pip install "sparsejax[models]".') from error
