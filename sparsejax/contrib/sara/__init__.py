"""Fine-tuning of the small entries of a network."""

from ._entries import gather_values, indices_of, select_gradients, write_back
from ._sara import SaRAState, sara
from ._select import below_threshold
from ._vlhi import vlhi

__all__ = [
    "SaRAState",
    "below_threshold",
    "gather_values",
    "indices_of",
    "sara",
    "select_gradients",
    "vlhi",
    "write_back",
]
