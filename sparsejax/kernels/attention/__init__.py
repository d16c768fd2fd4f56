"""Attention over lists of key blocks, of one token over listed pages, and by features."""

from . import _implementations  # noqa: F401 - fills the table
from ._api import block_sparse_attention
from ._linear import LinearState, linear_attention, linear_attention_step
from ._lists import KeyBlocks
from ._paged import paged_attention

__all__ = [
    "KeyBlocks",
    "LinearState",
    "block_sparse_attention",
    "linear_attention",
    "linear_attention_step",
    "paged_attention",
]
