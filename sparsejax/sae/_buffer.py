"""A shuffled buffer over a stream of activations, refilled at half; activations on disk."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from .._arguments import check_count, checked, rows_of
from .._files import read_npz, replacing
from .._sharding import on_host

Source = Callable[[int], Iterable[Any]]
_ONLY, _BITS = "rows", ".bfloat16"  # names in files: of a chunk without names, of bfloat16


class ActivationBuffer:
    """Batches of a stream in a random order, from a buffer that is refilled when half is left.

    Each refill appends chunks of the source until the buffer is full and shuffles all rows, so that
    batches mix the chunks of neighbouring refills. The last rows of an exhausted source are served,
    then the source begins again.

    Args:
      source: `source(start)` returns an iterable over chunks from number `start` on, each an array
        `(m, d)` or a dict of arrays with m rows; `lambda start: chunks[start:]` for a list.
      capacity: Number of rows, at least twice the batch size. Chunks are kept whole: one that does
        not fit is split, and its rest waits for the next refill.
      batch_size: Rows per batch.
      key: A key made by `jax.random.key`, for the order.

    Raises:
      ValueError: If the capacity is below two batches, or the source has no rows.

    Example:
      >>> import jax, numpy as np, sparsejax as sj
      >>> chunks = [np.arange(8.0).reshape(4, 2) + 10 * i for i in range(3)]
      >>> buffer = sj.sae.ActivationBuffer(
      ...     lambda start: chunks[start:], 8, 2, key=jax.random.key(0)
      ... )
      >>> buffer.batch().shape
      (2, 2)
    """

    @checked(capacity="[1, inf)", batch_size="[1, inf)")
    def __init__(self, source: Source, capacity: int, batch_size: int, *, key: Key[Array, ""]):
        if capacity < 2 * batch_size:
            raise ValueError(
                f"ActivationBuffer: capacity must be at least two batches, {2 * batch_size}, got "
                f"{capacity}."
            )
        self._source, self.capacity, self.batch_size = source, capacity, batch_size
        self._seed = np.asarray(jax.random.key_data(_typed(key))).ravel().tolist()
        self._rows: PyTree = None  # those not yet served, in their order
        self._chunks: Iterator[Any] | None = None
        # Chunks taken from the source, rows used of the last one, and refills.
        self._taken, self._used, self._refills = 0, 0, 0
        self._rest: PyTree = None

    def batch(self) -> PyTree:
        """The next rows, an array or a dict of arrays in NumPy."""
        if self._count() < max(self.capacity // 2, self.batch_size):
            self._refill()
        rows = self._rows
        self._rows = jax.tree.map(lambda x: x[self.batch_size :], rows)
        return jax.tree.map(lambda x: x[: self.batch_size], rows)

    def position(self) -> dict[str, Any]:
        """The position in the stream and the unserved rows, from which `restore` continues."""
        rows = () if self._rows is None else self._rows
        used = (self._taken, self._used, self._refills)
        return {"rows": rows, "used": np.asarray(used, np.int64)}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Continues from a position of a buffer with the same arguments, bit for bit."""
        self._taken, self._used, self._refills = map(int, position["used"])
        rows = jax.tree.map(np.asarray, position["rows"])
        self._rows = rows if jax.tree.leaves(rows) else None
        self._chunks, self._rest = None, None
        if self._used:
            chunk = _checked_chunk(next(iter(self._source(self._taken - 1))))
            self._rest = jax.tree.map(lambda x: x[self._used :], chunk)

    def _count(self) -> int:
        leaves = jax.tree.leaves(self._rows)
        return len(leaves[0]) if leaves else 0

    def _refill(self) -> None:
        """Fills up and shuffles all rows by the number of the refill."""
        parts, count = [] if self._rows is None else [self._rows], self._count()
        while count < self.capacity:
            chunk, room = self._next(), self.capacity - count
            size = len(jax.tree.leaves(chunk)[0])
            parts.append(jax.tree.map(lambda x: x[:room], chunk))  # noqa: B023
            if size > room:
                self._rest = jax.tree.map(lambda x: x[room:], chunk)  # noqa: B023
                self._used += room
            else:
                self._rest, self._used = None, 0
            count += min(size, room)
        kinds = [jax.tree.map(lambda x: x.shape[1:], part) for part in parts]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(
                f"ActivationBuffer: source gives chunks with rows of the shapes {kinds[0]} and "
                f"{next(kind for kind in kinds if kind != kinds[0])}; they must agree."
            )
        rows = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        order = np.random.default_rng([*self._seed, self._refills]).permutation(count)
        self._rows, self._refills = jax.tree.map(lambda x: x[order], rows), self._refills + 1

    def _next(self) -> PyTree:
        if self._rest is not None:
            return self._rest
        for _ in range(2):
            if self._chunks is None:
                self._chunks = iter(self._source(self._taken))
            for chunk in self._chunks:
                self._taken += 1
                return _checked_chunk(chunk)
            self._chunks, self._taken = None, 0  # the source begins again
        raise ValueError("ActivationBuffer: source has no chunks, source(0) is empty.")


def _typed(key: Any) -> Any:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def _checked_chunk(chunk: Any) -> PyTree:
    rows_of("source", chunk)
    return jax.tree.map(on_host, chunk)


@checked()
def cache_activations(folder: str | os.PathLike[str], source: Source) -> Source:
    """A source that reads chunks from files, writing first those that are missing.

    Chunk i is `chunk-i.npz`, which appears when it is complete; an interrupted run continues behind
    the last one. Once `source` is exhausted, `complete.json` holds the number of chunks and the
    model is not run again.

    Args:
      folder: Made if it is missing; one for each model, place and data set.
      source: `source(start)` returns chunks from number `start` on, as for `ActivationBuffer`.

    Returns:
      A source for `ActivationBuffer`.

    Raises:
      ValueError: If a file is damaged.

    Example:
      >>> import tempfile, numpy as np, sparsejax as sj
      >>> made = []
      >>> def source(start):
      ...     for i in range(start, 2):
      ...         made.append(i)
      ...         yield np.full((2, 3), i)
      >>> folder = tempfile.mkdtemp()
      >>> for _ in range(2):
      ...     chunks = list(sj.sae.cache_activations(folder, source)(0))
      >>> made, chunks[1].tolist()
      ([0, 1], [[1, 1, 1], [1, 1, 1]])
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    end = place / "complete.json"

    def cached(start: int) -> Iterator[Any]:
        for i in itertools.count(start):
            if end.exists() and i >= _chunks_in(end):
                return
            if not (place / f"chunk-{i}.npz").exists():
                break
            yield _read_chunk(place / f"chunk-{i}.npz")
        for chunk in source(i):
            rows = _checked_chunk(chunk)
            with replacing(place / f"chunk-{i}.npz") as file:
                _write_chunk(file, rows)
            yield rows
            i += 1
        with replacing(end) as file:
            file.write_text(json.dumps({"chunks": i}))

    return cached


def _chunks_in(file: Path) -> int:
    """The number of chunks of a cache that is complete."""
    try:
        found = json.loads(file.read_text())
        return check_count("chunks", found["chunks"], 0) or found["chunks"]
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(
            f"cache_activations: {file} cannot be read: {error}; delete it to count the chunks "
            "again."
        ) from error


def _write_chunk(file: Path, chunk: PyTree) -> None:
    """Arrays by name; NumPy has no bfloat16, so that its bits are stored."""
    named = chunk if isinstance(chunk, Mapping) else {_ONLY: chunk}
    short = {name: x.dtype == jnp.bfloat16 for name, x in named.items()}
    stored = {
        f"{name}{_BITS}" if short[name] else name: x.view(np.uint16) if short[name] else x
        for name, x in named.items()
    }
    with file.open("wb") as opened:
        np.savez(opened, **stored)


def _read_chunk(file: Path) -> PyTree:
    try:
        named = {
            name.removesuffix(_BITS): x.view(jnp.bfloat16) if name.endswith(_BITS) else x
            for name, x in read_npz(file).items()
        }
        rows_of("source", named)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"cache_activations: {file} cannot be read: {error}; delete it to compute it again."
        ) from error
    return named[_ONLY] if list(named) == [_ONLY] else named
