"""Networks for recipes and benchmarks."""

from ._bert import Bert, bert_from_safetensors, minilm
from ._mobilenet import MobileNet, cache_aware_width, mobilenet_v1, mobilenet_v2

__all__ = [
    "Bert",
    "MobileNet",
    "bert_from_safetensors",
    "cache_aware_width",
    "minilm",
    "mobilenet_v1",
    "mobilenet_v2",
]
