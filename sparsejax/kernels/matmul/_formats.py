"""One implementation from the modules of its formats."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ...formats import BlockArray, NMArray, SparseArray


def by_format(blocks: ModuleType, nm: ModuleType) -> tuple[Callable[..., Any], ...]:
    """`product`, `transposed`, `sampled` and `explain` of whichever module has the format of w."""

    def module(w: SparseArray) -> ModuleType:
        if isinstance(w, BlockArray):
            return blocks
        if isinstance(w, NMArray):
            return nm
        raise NotImplementedError(f"multiplies NMArray and BlockArray, not {type(w).__name__}")

    def product(x, w, bias, how):
        return module(w).product(x, w, bias, how)

    def transposed(dy, w, how):
        return module(w).transposed(dy, w, how)

    def sampled(x, dy, w, how):
        return module(w).sampled(x, dy, w, how)

    def explain(rows, w):
        return module(w).explain(rows, w)

    return product, transposed, sampled, explain
