"""Attention over lists of key blocks, and of one token over listed pages."""

from . import _implementations  # noqa: F401 - fills the table
from ._api import block_sparse_attention
from ._lists import KeyBlocks
from ._paged import paged_attention

__all__ = [
    "KeyBlocks",
    "block_sparse_attention",
    "paged_attention",
]
