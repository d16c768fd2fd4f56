"""The common table of cases for tests, benchmarks and tuning."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ...formats import BlockArray, NMArray, SparseArray


@dataclass(frozen=True)
class Case:
    """A product: the shape of x, the shape of W, and how W is compressed.

    `fill` is the placement of the stored blocks: evenly over the block columns, at random, none, or
    at random with an empty first block row and column.
    """

    name: str
    rows: tuple[int, ...]
    k: int
    n: int
    nm: tuple[int, int] | None = None
    share: int = 1
    block: tuple[int, int] = (1, 1)
    density: float = 1.0
    slots: int | None = None
    fill: Literal["even", "random", "none", "holes"] = "even"

    def make(self, dtype: Any = jnp.float32, seed: int = 0) -> tuple[jnp.ndarray, SparseArray]:
        """x of shape `(*rows, K)` and W of shape `(K, N)`."""
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(size=(*self.rows, self.k)), dtype)
        w = rng.normal(size=(self.k, self.n))
        if self.nm is not None:
            return x, NMArray.fromdense(jnp.asarray(w, dtype), *self.nm, share=self.share)
        mask = np.kron(self._stored(rng), np.ones(self.block, bool))
        w = jnp.asarray(w, dtype)
        return x, BlockArray.fromdense(w, self.block, mask=mask, slots=self.slots)

    def _stored(self, rng: np.random.Generator) -> np.ndarray:
        shape = self.k // self.block[0], self.n // self.block[1]
        scores = rng.random(shape)
        if self.fill == "even":
            kept = max(1, round(self.density * shape[0]))
            return scores.argsort(0).argsort(0) < kept
        stored = scores < (0 if self.fill == "none" else self.density)
        if self.fill == "holes":
            stored[0], stored[:, 0] = False, False
        return stored


# Small enough to compare with float64, irregular enough to reveal errors.
SMALL = (
    Case("2:4", (5,), 16, 12, nm=(2, 4)),
    Case("1:4, batch axes", (2, 3), 16, 8, nm=(1, 4)),
    Case("4:8, one row", (1,), 32, 8, nm=(4, 8)),
    Case("1:8, one row selects", (1,), 32, 8, nm=(1, 8)),
    Case("1:8, vector", (), 32, 8, nm=(1, 8)),
    Case("2:4, K not divisible", (5,), 18, 6, nm=(2, 4)),
    Case("3:32, large group", (4,), 64, 5, nm=(3, 32)),
    Case("9:18, index planes", (4,), 36, 4, nm=(9, 18)),
    Case("4:4, dense", (4,), 8, 4, nm=(4, 4)),
    Case("1:4, share 4", (4,), 16, 8, nm=(1, 4), share=4),
    Case("1:4, share 32", (4,), 18, 64, nm=(1, 4), share=32),
    Case("2:4, share 32, many rows", (70,), 16, 32, nm=(2, 4), share=32),
    Case("no rows", (0,), 16, 8, nm=(2, 4)),
    Case("blocks 4x4", (5,), 32, 16, block=(4, 4), density=0.5),
    Case("blocks 2x8, batch axes", (2, 3), 16, 32, block=(2, 8), density=0.4),
    Case("blocks 8x2, vector", (), 32, 8, block=(8, 2), density=0.5),
    Case("uneven", (6,), 32, 24, block=(4, 4), density=0.4, fill="random"),
    Case("empty row and column", (6,), 32, 24, block=(4, 4), density=0.4, fill="holes"),
    Case("more slots than blocks", (6,), 32, 24, block=(4, 4), density=0.4, slots=7, fill="holes"),
    Case("no slots", (6,), 16, 8, block=(4, 4), fill="none"),
    Case("all blocks", (6,), 16, 8, block=(4, 4)),
    Case("all blocks, many rows", (512,), 8, 8, block=(4, 4)),
    Case("no rows, blocks", (0,), 16, 8, block=(4, 4), density=0.5),
)

# The smallest sizes that the tiles of TPU and GPU kernels divide.
TILED = (
    Case("blocks 128", (5,), 384, 256, block=(128, 128), density=0.5),
    Case("blocks 128, holes", (2, 20), 384, 384, block=(128, 128), fill="holes", density=0.5),
    Case("blocks 128, more slots", (3,), 256, 256, block=(128, 128), density=0.5, slots=2),
    Case("blocks 128, two tiles of rows", (600,), 128, 128, block=(128, 128)),
    Case("blocks 64x128", (5,), 256, 256, block=(64, 128), density=0.5, fill="random"),
    Case("blocks 16x128", (5,), 64, 256, block=(16, 128), density=0.5, fill="random"),
    Case("blocks 64x32", (5,), 128, 64, block=(64, 32), density=0.5),
    Case("blocks 16", (130,), 64, 64, block=(16, 16), density=0.4, fill="random"),
    Case("2:4 tiled", (5,), 512, 128, nm=(2, 4)),
    Case("1:4 tiled, share 64", (20,), 512, 128, nm=(1, 4), share=64),
    Case("4:8 tiled, K padded", (3,), 1020, 128, nm=(4, 8)),
    Case("2:16 tiled", (130,), 2048, 128, nm=(2, 16)),
    Case("1:32 tiled", (1,), 4096, 128, nm=(1, 32)),
)

ROWS = (1, 16, 128, 1024)
DENSITIES = (0.5, 0.25, 0.1, 0.05)


def block_benchmarks(blocks: tuple[int, ...] = (16, 32, 64, 128)) -> Iterator[Case]:
    """Square block-sparse products of side 2048."""
    for b in blocks:
        for m in ROWS:
            for d in DENSITIES:
                yield Case(f"{m}/{b}/{d}", (m,), 2048, 2048, block=(b, b), density=d)


def nm_benchmarks() -> Iterator[Case]:
    """N:M products of side 2048, with one pattern per column or shared patterns."""
    for n, m, share in ((2, 4, 1), (1, 4, 1), (1, 8, 1), (2, 4, 128), (1, 4, 128)):
        for rows in ROWS:
            yield Case(f"{n}:{m} share {share}", (rows,), 2048, 2048, nm=(n, m), share=share)
    for n, m, share in ((1, 8, 32), (1, 8, 128), (1, 16, 128)):
        for rows in ROWS:
            yield Case(f"{n}:{m} share {share}", (rows,), 2048, 2048, nm=(n, m), share=share)
