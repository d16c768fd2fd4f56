"""The few whole networks that recipes and benchmarks need, read from files at hand."""

from ._bert import Bert as Bert
from ._bert import bert_from_safetensors as bert_from_safetensors
from ._bert import minilm as minilm

__all__ = ["Bert", "bert_from_safetensors", "minilm"]
