"""LoRA, and its gradients in almost linear time where the logits of attention are small."""

from ._attention import polynomial_attention
from ._degree import attention_norm, degree_for
from ._features import polynomial_features
from ._gradients import AttentionGradients, attention_gradients
from ._lora import Adapter, LoRAKernel, add_lora
from ._merge import merge_lora, unmerge_lora

__all__ = [
    "Adapter",
    "AttentionGradients",
    "LoRAKernel",
    "add_lora",
    "attention_gradients",
    "attention_norm",
    "degree_for",
    "merge_lora",
    "polynomial_attention",
    "polynomial_features",
    "unmerge_lora",
]
