"""The tokenizer that a GGUF file describes."""

from pathlib import Path
from typing import Any

from ._reading import extra

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
        tokenizers.models.BPE(
            {token: i for i, token in enumerate(tokens)},
            merges,
            ignore_merges=meta.get("tokenizer.ggml.pre") == "llama-bpe",
        )
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
    added = lambda kind: [  # noqa: E731
        tokenizers.AddedToken(token, normalized=False)
        for token, which in zip(tokens, kinds)
        if which == kind
    ]
    tokenizer.add_special_tokens(added(3))
    tokenizer.add_tokens(added(4))
    first_token = meta.get("tokenizer.ggml.bos_token_id")
    if meta.get("tokenizer.ggml.add_bos_token", kind == "llama-bpe") and first_token is not None:
        name = tokens[first_token]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, first_token)]
        )
    return tokenizer
