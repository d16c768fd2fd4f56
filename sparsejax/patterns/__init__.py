"""Sparsity patterns: units of entries pruned together, and the layout of kernels."""

from ._block import Block
from ._channel import Channel
from ._groups import Groups, filter_groups
from ._layout import Layout, layout
from ._nm import NM
from ._pattern import Pattern
from ._stages import Stages, nm_stages
from ._unstructured import FanIn, Unstructured

__all__ = [
    "NM",
    "Block",
    "Channel",
    "FanIn",
    "Groups",
    "Layout",
    "Pattern",
    "Stages",
    "Unstructured",
    "filter_groups",
    "layout",
    "nm_stages",
]
