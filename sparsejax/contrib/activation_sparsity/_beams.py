"""Drafts of several beams: one step, and the choice among checked ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_not_nan, checked, known as is_known


class Beams(NamedTuple):
    """The beams after a step, the likeliest first.

    Attributes:
      parents: `(W,)`, the beam that each continues.
      tokens: `(W,)`, the token that it adds.
      scores: `(W,)`, cumulative log-probabilities; -inf for a copy of the first beam, where fewer
        than W remain.
    """

    parents: Int[Array, " w"]
    tokens: Int[Array, " w"]
    scores: Float[Array, " w"]


@checked(temperature="(0, inf)", sure="[0, 1]")
def beam_step(
    logits: Shaped[Array | np.ndarray, "w v"],
    scores: Float[Array | np.ndarray, " w"],
    stop: Int[Array | np.ndarray, " s"],
    *,
    temperature: float | Array = 0.6,
    sure: float | Array = 0.95,
) -> Beams:
    r"""The W likeliest continuations of W beams by one token.

    Each beam proposes its W likeliest tokens by `log_softmax(logits / temperature)` but those that
    end a text, and none after one of a probability above `sure`. The W children of the largest
    cumulative log-probabilities are kept, in that order; of equal ones the first.

    Args:
      logits: Of each beam.
      scores: Cumulative log-probabilities; -inf for a beam that is not in use.
      stop: Tokens that end a text.
      temperature: Of the softmax.
      sure: Probability of a token behind which its beam proposes no other; 1 for no such limit.

    Raises:
      ValueError: If logits hold NaN, W is above the number of tokens, or a token of `stop` is not
        one of theirs.

    Reference:
      Zhou et al., Sirius, 2024 (arXiv 2409.03856).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> logits = jnp.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
      >>> beams = activation_sparsity.beam_step(logits, jnp.array([0.0, -jnp.inf]), jnp.array([2]))
      >>> beams.tokens.tolist(), beams.scores[1].tolist()
      ([1, 1], -inf)
    """
    check_not_nan("beam_step", logits=logits)
    width, known = np.shape(logits)
    if width > known:
        raise ValueError(
            f"beam_step: logits of {width} beams must have as many tokens, got {known}."
        )
    if is_known(stop) and not np.all((np.asarray(stop) >= 0) & (np.asarray(stop) < known)):
        raise ValueError(f"beam_step: stop must hold tokens from 0 to {known - 1}, got {stop}.")
    likely = jax.nn.log_softmax(jnp.asarray(logits).astype(jnp.float32) / temperature, axis=-1)
    best, tokens = jax.lax.top_k(likely, width)
    proposed = ~jnp.isin(tokens, jnp.asarray(stop))
    certain = proposed & (jnp.exp(best) > sure)
    proposed &= jnp.cumsum(certain, axis=1) - certain == 0
    children = jnp.where(proposed, jnp.asarray(scores)[:, None] + best, -jnp.inf).ravel()
    order = jnp.argsort(-children, stable=True)[:width]
    # Places without a child hold the first one again, so that a shared pattern is not disturbed.
    found = children[order]
    order = jnp.where(jnp.isfinite(found), order, order[0])
    return Beams(order // width, tokens.ravel()[order].astype(jnp.int32), found)
