"""Networks for recipes and benchmarks."""

from ._bert import Bert, bert_from_safetensors, minilm
from ._decode import generate, perplexity, token_losses
from ._llama import Llama, LlamaConfig
from ._llama_files import llama, save_llama, smollm2
from ._llama_sharding import llama_specs, shard_llama
from ._mobilenet import MobileNet, cache_aware_width, mobilenet_v1, mobilenet_v2

__all__ = [
    "Bert",
    "Llama",
    "LlamaConfig",
    "MobileNet",
    "bert_from_safetensors",
    "cache_aware_width",
    "generate",
    "llama",
    "llama_specs",
    "minilm",
    "mobilenet_v1",
    "mobilenet_v2",
    "perplexity",
    "save_llama",
    "shard_llama",
    "smollm2",
    "token_losses",
]
