"""Floating-point operations of a decoder with sparse attention."""

from typing import NamedTuple

from ..._arguments import checked
from ...models import LlamaConfig
from ._method import SparseAttention


class DecoderFlops(NamedTuple):
    """Operations of all layers by part; a multiplication and an addition are two.

    Attributes:
      projections: Queries, keys, values and outputs.
      attention: Scores and sums of values.
      mlp: Gated feed-forward networks.
      head: Logits.
      indexing: The choice of what is attended to, which is not part of the total of the paper.
    """

    projections: float
    attention: float
    mlp: float
    head: float
    indexing: float

    @property
    def total(self) -> float:
        """The sum without the indexing."""
        return self.projections + self.attention + self.mlp + self.head


@checked(tokens="[1, inf)", sparsity="[0, 1]")
def decoder_flops(
    config: LlamaConfig,
    tokens: int,
    sparsity: float = 0.0,
    *,
    decode: bool = False,
    method: SparseAttention | None = None,
) -> DecoderFlops:
    r"""The operations to read a text, or to write one token behind it.

    Of each layer, for n tokens of width D, `Hq` query and `Hk` key heads of size d, F hidden units
    and V tokens: projections `2 n D (2 Hq d + 2 Hk d)`, attention `4 Hq d n (n + 1) / 2 (1 -
    sparsity)`, the network `6 n D F`; and once the head `2 n D V`. To write one token, n is 1 and
    the pairs are n.

    Args:
      config: The sizes of the model.
      tokens: n, number of tokens.
      sparsity: Share of the pairs that attention leaves out.
      decode: Whether to count one token behind the text.
      method: The method whose choice is counted as `indexing`; None counts none.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768); the cost model is a reading of
      it.

    Example:
      >>> import sparsejax as sj
      >>> from sparsejax.contrib import sparse_attention
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=152_064, width=5120, hidden=13_824, layers=48, heads=40, key_heads=8,
      ...     head_size=128)
      >>> [f"{sparse_attention.decoder_flops(config, 131_072, s).total:.3g}" for s in (0.0, 0.95)]
      ['1.21e+16', '4.09e+15']
    """
    n, pairs = (1, tokens) if decode else (tokens, tokens * (tokens + 1) / 2)
    size, width, layers = config.head_size, config.width, config.layers
    chosen = 0.0 if method is None else method.indexing_flops(config.heads, size, tokens)
    return DecoderFlops(
        projections=4.0 * layers * n * width * (config.heads + config.key_heads) * size,
        attention=4.0 * layers * config.heads * size * pairs * (1 - sparsity),
        mlp=6.0 * layers * n * width * config.hidden,
        head=2.0 * n * width * config.vocabulary,
        indexing=float(layers * chosen),
    )
