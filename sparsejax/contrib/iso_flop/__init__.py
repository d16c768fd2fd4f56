"""Sparse layers with the FLOPs of a dense one."""

from ._layers import (
    Doped,
    Factorized,
    Parallel,
    doped_rank,
    factorized_rank,
    log2_masks,
    match_flops,
    parallel_branches,
    wide_width,
)

__all__ = [
    "Doped",
    "Factorized",
    "Parallel",
    "doped_rank",
    "factorized_rank",
    "log2_masks",
    "match_flops",
    "parallel_branches",
    "wide_width",
]
