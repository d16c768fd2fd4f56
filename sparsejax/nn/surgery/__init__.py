"""Surgery on networks: permuting, masking and removing channels."""

from ._channels import mask_channels, permute_channels, remove_channels
from ._graph import ChannelGraph, channel_graph
from ._rearrange import Rearranged, rearrange

__all__ = [
    "ChannelGraph",
    "Rearranged",
    "channel_graph",
    "mask_channels",
    "permute_channels",
    "rearrange",
    "remove_channels",
]
