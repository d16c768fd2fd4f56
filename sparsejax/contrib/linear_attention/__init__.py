"""Norm-aware linear attention: features that keep the norm of queries and all signs."""

from ._block import BlockState, NormAwareBlock
from ._features import norm_aware
from ._layer import AttentionState, NormAwareAttention
from ._products import LinearState, linear_attention, linear_attention_step
from ._rotary import rotary_angles, rotate
from ._weights import attention_entropy, linear_attention_weights

__all__ = [
    "AttentionState",
    "BlockState",
    "LinearState",
    "NormAwareAttention",
    "NormAwareBlock",
    "attention_entropy",
    "linear_attention",
    "linear_attention_step",
    "linear_attention_weights",
    "norm_aware",
    "rotary_angles",
    "rotate",
]
