"""The tokenizer that a GGUF file describes."""

from pathlib import Path
from typing import Any

from ._extras import extra

# What splits text before the merges, by the name in the file.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(file: Path, meta: dict[str, Any]) -> Any:
    """The byte-level BPE of the metadata; None for other models of tokenizers."""
    if meta.get("tokenizer.ggml.model") != "gpt2":
        return None
    tokenizers = extra("tokenizers")
    split = tokenizers.pre_tokenizers
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    bytes_of = split.ByteLevel
    first = {
        "smollm": [split.Digits(individual_digits=True), bytes_of(add_prefix_space=False)],
        "gpt-2": [bytes_of(add_prefix_space=False)],
        "llama-bpe": [
            split.Split(tokenizers.Regex(_LLAMA3), "isolated"),
            bytes_of(add_prefix_space=False, use_regex=False),
        ],
    }
    kind = meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in first:
        raise ValueError(
            f"llama: {file.name}: the pre-tokenizer {kind!r} is not known, only {', '.join(first)}."
        )
    tokenizer.pre_tokenizer = split.Sequence(first[kind])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [token for token, which in zip(tokens, kinds) if which == 3]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in special]
    )
    return tokenizer
