"""The names of parameters and sizes of a Llama: here, at Hugging Face and in GGUF."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ._llama import LlamaConfig

# Path of a parameter, its name at Hugging Face, its name in GGUF. Matrices are (out, in) there.
OUTSIDE = {
    "embed/embedding": ("model.embed_tokens", "token_embd"),
    "norm/scale": ("model.norm", "output_norm"),
    "head/kernel": ("lm_head", "output"),
}
LAYER = {
    "attention_norm/scale": ("input_layernorm", "attn_norm"),
    "attention/query/kernel": ("self_attn.q_proj", "attn_q"),
    "attention/key/kernel": ("self_attn.k_proj", "attn_k"),
    "attention/value/kernel": ("self_attn.v_proj", "attn_v"),
    "attention/out/kernel": ("self_attn.o_proj", "attn_output"),
    "norm/scale": ("post_attention_layernorm", "ffn_norm"),
    "mlp/gate/kernel": ("mlp.gate_proj", "ffn_gate"),
    "mlp/up/kernel": ("mlp.up_proj", "ffn_up"),
    "mlp/down/kernel": ("mlp.down_proj", "ffn_down"),
}
# Sizes in config.json and in the metadata of GGUF, behind "llama.".
SIZES = {
    "vocabulary": ("vocab_size", "vocab_size"),
    "width": ("hidden_size", "embedding_length"),
    "hidden": ("intermediate_size", "feed_forward_length"),
    "layers": ("num_hidden_layers", "block_count"),
    "heads": ("num_attention_heads", "attention.head_count"),
    "key_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_size": ("head_dim", "attention.key_length"),
    "theta": ("rope_theta", "rope.freq_base"),
    "epsilon": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "positions": ("max_position_embeddings", "context_length"),
}
# Kinds of rotary scaling, and the numbers of each in config.json, as in `LlamaConfig.scaling`.
SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    ),
}  # fmt: skip


def inside(path: str, layers: int, scan: bool) -> tuple[str, list[Any]]:
    """The name of a parameter inside its layer, and the layers it holds; [None] outside of all."""
    where, _, rest = path.partition("/")
    if where != "layers":
        return path, [None]
    if scan:
        return rest, list(range(layers))
    number, _, name = rest.partition("/")
    return name, [int(number)]


def place(name: str, layer: int | None) -> tuple[str, str]:
    """The names of a parameter at Hugging Face and in GGUF."""
    if layer is None:
        hub, ggml = OUTSIDE[name]
        return f"{hub}.weight", f"{ggml}.weight"
    hub, ggml = LAYER[name]
    return f"model.layers.{layer}.{hub}.weight", f"blk.{layer}.{ggml}.weight"


def check_names(path: Path, config: LlamaConfig, names: Collection[str], ggml: bool) -> None:
    """Raises, before anything is read, if the file has tensors too few or too many."""
    if config.layers > len(names):  # before any work for so many
        raise ValueError(
            f"llama: {path.name} has {len(names)} tensors, too few for {config.layers} layers."
        )
    outside = [name for name in OUTSIDE if name != "head/kernel" or not config.tied]
    places = [place(name, None) for name in outside]
    places += [place(name, i) for i in range(config.layers) for name in LAYER]
    wanted = {both[ggml] for both in places}
    if missing := sorted(wanted - set(names)):
        raise ValueError(f"llama: {path.name} has no tensor {', '.join(missing[:3])}.")
    # A tied head may be written twice; frequencies are computed.
    more = set(names) - wanted - {"lm_head.weight"}
    if more := sorted(name for name in more if not name.endswith("rotary_emb.inv_freq")):
        raise ValueError(
            f"llama: {path.name} has a tensor {more[0]}, which a Llama of this config.json or "
            "metadata does not have; biases, adapters and experts are not supported."
        )
