"""Networks cut to size: channels permuted, masked and removed."""

from ._graph import ChannelGraph, channel_graph, permute_channels
from ._nodes import compact, edges_from_nodes, node_masks
from ._rearrange import Rearranged, rearrange
from ._remove import remove_channels

__all__ = [
    "ChannelGraph",
    "Rearranged",
    "channel_graph",
    "compact",
    "edges_from_nodes",
    "node_masks",
    "permute_channels",
    "rearrange",
    "remove_channels",
]
