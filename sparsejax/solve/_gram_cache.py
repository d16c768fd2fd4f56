"""A cache of inner products of features along a path."""

import numpy as np

# Maximum number of features whose products are cached: 128 MiB in float64.
MOST = 4096


class GramCache:
    """`X^T X / n` for the requested columns, shared by the working sets of a path."""

    def __init__(self, X: np.ndarray) -> None:
        self.X = X
        self._clear()

    def of(self, chosen: np.ndarray, size: int) -> np.ndarray:
        """The Gram matrix of some columns, zero-padded to the size."""
        new = chosen[self.place[chosen] < 0]
        if self.count + new.size > MOST:
            self._clear()
            new = chosen
        if new.size:
            self._add(new)
        at = self.place[chosen]
        gram = np.zeros((size, size), self.X.dtype)
        gram[: at.size, : at.size] = self.gram[at][:, at]
        return gram

    def _clear(self) -> None:
        n, p = self.X.shape
        self.place, self.count = np.full(p, -1), 0
        self.rows, self.gram = np.empty((0, n), self.X.dtype), np.empty((0, 0), self.X.dtype)

    def _add(self, new: np.ndarray) -> None:
        old, total = self.count, self.count + new.size
        if total > len(self.gram):
            self._grow(max(total, min(2 * total, MOST)))
        self.rows[old:total] = self.X[:, new].T
        products = self.rows[:total] @ self.rows[old:total].T / self.X.shape[0]
        self.gram[:total, old:total] = products
        self.gram[old:total, :total] = products.T
        self.place[new] = np.arange(old, total)
        self.count = total

    def _grow(self, size: int) -> None:
        rows = np.empty((size, self.X.shape[0]), self.X.dtype)
        gram = np.empty((size, size), self.X.dtype)
        rows[: self.count] = self.rows[: self.count]
        gram[: self.count, : self.count] = self.gram[: self.count, : self.count]
        self.rows, self.gram = rows, gram
