"""A document encoder: BERT and a masked-language-model head tied to its embeddings."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ...models import Bert
from ...nn import record
from ._pool import splade_pool


class SpladeEncoder(nnx.Module):
    r"""Sparse vectors of documents, `splade_pool(LN(gelu(H W + b)) E^T + c)`.

    H are the outputs of the last layer of a BERT, read by a tap, and E its word embeddings. The
    head starts as that of an encoder without one: W is the identity. The logits are computed by
    parts of the vocabulary and never held all together, forward and backward.

    Args:
      bert: A `Bert`, such as that of `sj.models.minilm()`; it is shared, and trained with the head.
      bias: Initial value of c: below 0, such as -4, vectors start with few non-zeros.
      rngs: Keys of the layers; nothing of them is random.

    Reference:
      Formal et al., SPLADE, 2021 (arXiv 2107.05720); Geng et al., 2024 (arXiv 2411.04403).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import retrieval
      >>> bert = sj.models.Bert(50, 16, 8, 16, 2, 2, rngs=nnx.Rngs(0))
      >>> encoder = retrieval.SpladeEncoder(bert, rngs=nnx.Rngs(1))
      >>> encoder(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool)).shape
      (1, 50)
    """

    def __init__(self, bert: Bert, bias: float = 0.0, *, rngs: nnx.Rngs):
        vocabulary, width = bert.word.embedding.shape
        self.bert = bert
        identity = lambda key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype)  # noqa: E731
        self.transform = nnx.Linear(width, width, kernel_init=identity, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.bias = nnx.Param(jnp.full(vocabulary, bias))

    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch vocabulary"]:
        """Weights >= 0 of the documents for each token of the vocabulary.

        Args:
          ids: Tokens, padded at the end.
          mask: True at tokens, False at padding.
        """
        _, found = record(self.bert, rf"^layers/{len(self.bert.layers) - 1}$", ids, mask)
        (hidden,) = found.values()
        x = self.norm(jax.nn.gelu(self.transform(hidden), approximate=False))
        return _tied_pool(x, self.bert.word.embedding[...], self.bias[...], mask)


_CHUNK = 4096  # tokens of the vocabulary whose logits are held together


def _tied_pool(x: Array, table: Array, bias: Array, mask: Array) -> Array:
    """`splade_pool(x table^T + bias, mask)`, by parts of the vocabulary, also in the gradient.

    The logits of 64 documents of 256 tokens would take 2 GB, and the gradient several times that.
    """
    vocabulary, width = table.shape
    chunk = min(_CHUNK, vocabulary)
    parts = -(-vocabulary // chunk)
    rest = parts * chunk - vocabulary
    tables = jnp.pad(table, ((0, rest), (0, 0))).reshape(parts, chunk, width)
    biases = jnp.pad(bias, (0, rest)).reshape(parts, chunk)

    @partial(jax.checkpoint, prevent_cse=False)
    def pooled(part: tuple[Array, Array]) -> Array:
        return splade_pool(x @ part[0].T + part[1], mask)

    found = jax.lax.map(pooled, (tables, biases))
    return jnp.moveaxis(found, 0, 1).reshape(len(x), -1)[:, :vocabulary]
