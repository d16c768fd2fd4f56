"""In what shape entries stand or fall together, and how a kernel is read as a matrix."""

from ._block import Block
from ._channel import Channel
from ._groups import Groups, group_labels
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
    "Pattern",
    "Stages",
    "Unstructured",
    "group_labels",
    "nm_stages",
]
