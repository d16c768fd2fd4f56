"""The few whole networks that recipes and benchmarks need."""

from ._bert import Bert as Bert
from ._bert import bert_from_safetensors as bert_from_safetensors
from ._bert import minilm as minilm
from ._mobilenet import MobileNet as MobileNet
from ._mobilenet import cache_aware_width as cache_aware_width
from ._mobilenet import mobilenet_v1 as mobilenet_v1
from ._mobilenet import mobilenet_v2 as mobilenet_v2

__all__ = [
    "Bert",
    "MobileNet",
    "bert_from_safetensors",
    "cache_aware_width",
    "minilm",
    "mobilenet_v1",
    "mobilenet_v2",
]
