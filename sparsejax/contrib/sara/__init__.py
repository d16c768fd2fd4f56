"""Fine-tuning of the small entries of a network."""

from ._sara import SaRAState, sara
from ._select import below_threshold

__all__ = [
    "SaRAState",
    "below_threshold",
    "sara",
]
