"""Sirius: decoding by a sparse model with periodic correction by the full one."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ..._arguments import check_not_nan, checked, known
from ...models import Llama
from ._beams import beam_step
from ._contextual import prompt_tokens

_LOST = -2  # written where the logits are NaN


@checked(threshold="[0, 1]", temperature="(0, inf)")
def accept_length(
    logits: Shaped[Array | np.ndarray, "n v"],
    tokens: Int[Array | np.ndarray, " n"],
    threshold: float | Array,
    temperature: float | Array = 0.6,
) -> Int[Array, ""]:
    r"""Counts the drafted tokens that the full model accepts: the first run of `p_j >= threshold`.

    `p_j = softmax(logits_j / temperature)[tokens_{j+1}]`; the first token is not judged.

    Args:
      logits: Of the full model, behind each token.
      tokens: A token of the full model, then drafted ones.
      threshold: The least probability.
      temperature: Of the softmax.

    Returns:
      A number from 0 to n - 1.

    Raises:
      ValueError: If logits hold NaN, or a token is not one of theirs.

    Reference:
      Zhou et al., Sirius, 2024 (arXiv 2409.03856).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> logits = jnp.array([[0.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
      >>> int(activation_sparsity.accept_length(logits, jnp.array([0, 1, 0]), 0.1))
      1
    """
    check_not_nan("accept_length", logits=logits)
    if known(tokens) and not np.isin(tokens, np.arange(logits.shape[1])).all():
        raise ValueError(
            f"accept_length: tokens must be from 0 to {logits.shape[1] - 1}, columns of the logits."
        )
    p = jax.nn.softmax(jnp.asarray(logits).astype(jnp.float32)[:-1] / temperature, axis=-1)
    chosen = jnp.take_along_axis(p, jnp.asarray(tokens)[1:, None], axis=1)[:, 0]
    return jnp.cumprod(chosen >= threshold).sum().astype(jnp.int32)


class Corrected(NamedTuple):
    """Tokens by `corrected_generate`, and what they cost.

    Attributes:
      tokens: The new tokens.
      advances: Tokens that each check kept, from 1 to the period; they may run past the end.
      sparse_calls: Calls of the sparse model.
      full_calls: Calls of the full model, the prompt included.
    """

    tokens: list[int]
    advances: list[int]
    sparse_calls: int
    full_calls: int

    @property
    def advance_length(self) -> float:
        """Mean of the advances (AAL)."""
        return float(np.mean(self.advances)) if self.advances else float("nan")


@checked(density="[0, 1]", period="[1, inf)", advance_length="(0, inf)")
def effective_density(
    density: float, period: int, advance_length: float
) -> Float[np.ndarray, ""] | float:
    r"""Weights read per kept token over those of the full model, `((n - 1) r + 1) / AAL`.

    Args:
      density: r, weights of the sparse model over all weights.
      period: n.
      advance_length: Mean number of tokens that a check keeps.

    Reference:
      Zhou et al., Sirius, 2024 (arXiv 2409.03856).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> round(activation_sparsity.effective_density(0.65, 16, 15.22), 3)
      0.706
    """
    return ((period - 1) * density + 1) / advance_length


@checked(
    steps="[1, inf)", period="[1, inf)", threshold="[0, 1]", temperature="(0, inf)",
    width="[1, inf)", sure="[0, 1]",
)  # fmt: skip
def corrected_generate(
    full: Llama,
    sparse: Llama,
    prompt: Sequence[int],
    steps: int,
    *,
    period: int = 16,
    threshold: float = 0.1,
    temperature: float = 0.6,
    stop: Sequence[int] = (),
    width: int = 1,
    sure: float = 0.95,
    rewrite: bool = True,
    second_rollback: bool = False,
) -> Corrected:
    r"""Greedy decoding by a sparse model that the full model corrects after each period (Sirius).

    The sparse model drafts `period - 1` tokens. One pass of the full model over them overwrites
    their keys and values, keeps those up to the first of a probability below the threshold, and
    adds its likeliest token. A threshold above 0.5 gives the tokens of the full model.

    With a tree (`width` above 1) the sparse model drafts that many beams by `beam_step`, and the
    one of which the full model keeps most tokens is continued. Beams do not hold tokens of `stop`;
    only the full model ends a text.

    Args:
      full: The full decoder.
      sparse: A decoder with the same cache, such as from `coarse_sparse` or `fine_sparse`; with a
        tree, `fine_sparse(model, density, shared=True)` reads the weights of one set for all beams.
      prompt: Token ids.
      steps: The most tokens to write.
      period: Tokens between two checks, the corrected one included.
      threshold: The least probability of a token that is kept.
      temperature: Of the softmax that judges, and that scores beams; without a tree tokens are
        always the likeliest.
      stop: Tokens that end the text, once the full model has accepted them; they are kept.
      width: Number of beams; the paper uses 4 to 8.
      sure: As for `beam_step`.
      rewrite: Whether the full model overwrites the keys and values of the draft; False shows what
        this contributes.
      second_rollback: Whether to replace the first rejected token of each chunk by the likeliest
        of the full model, and check the chunk once more, instead of dropping all tokens behind it.
        A chunk with a rejected token then takes two calls of the full model.

    Returns:
      A `Corrected`. Chunks are whole: the last check may judge tokens beyond the end.

    Raises:
      ValueError: If the prompt is empty or holds a token that the model does not know, or a tree
        has fewer beams than there are tokens in `stop`, and one more, or more than the vocabulary,
        or the logits of `full` are NaN.

    Reference:
      Zhou et al., Sirius, 2024 (arXiv 2409.03856).

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> sparse = activation_sparsity.fine_sparse(model, 0.3)
      >>> found = activation_sparsity.corrected_generate(
      ...     model, sparse, [1, 2, 3], 8, period=4, threshold=0.6)
      >>> found.tokens == sj.models.generate(model, [[1, 2, 3]], 8)[0]
      True
    """
    ids = prompt_tokens("corrected_generate", prompt, full)
    if width > 1 and not len(set(stop)) < width <= full.config.vocabulary:
        raise ValueError(
            "corrected_generate: width must be 1, or above the number of tokens in stop and at "
            f"most the vocabulary of {full.config.vocabulary}, got {width} with {len(stop)}."
        )
    ends = np.array([-1, *stop], np.int32)
    found = _generate(
        *nnx.split(full), *nnx.split(sparse), ids[None], ends, threshold, temperature, sure,
        steps=int(steps), period=int(period), width=int(width), axis=int(full.scan),
        rewrite=bool(rewrite), second=bool(second_rollback),
    )  # fmt: skip
    written, advances, checks, passes = jax.tree.map(np.asarray, found)
    if (written == _LOST).any():
        raise ValueError(
            "corrected_generate: the logits of full are NaN at the new token "
            f"{np.argmax(written == _LOST)}; jax.config.update('jax_debug_nans', True) finds their "
            "origin."
        )
    row = written[:steps]
    stopped = np.flatnonzero(np.isin(row, ends))
    tokens = row[: stopped[0] + 1 if len(stopped) else None].tolist()
    tokens = [token for token in tokens if token >= 0]
    drafted = int(checks) * (period - 1)
    return Corrected(tokens, advances[: int(checks)].tolist(), drafted, int(passes) + 1)


class _Checked(NamedTuple):
    """Beams with the number of tokens that a pass of the full model accepts, and its outputs."""

    chunks: Array
    lengths: Array
    logits: Array
    cache: Any


@functools.partial(
    jax.jit, static_argnums=(0, 2),
    static_argnames=("steps", "period", "width", "axis", "rewrite", "second"),
)  # fmt: skip
def _generate(full, full_state, sparse, sparse_state, ids, ends, threshold, temperature, sure, *,
              steps, period, width, axis, rewrite, second):  # fmt: skip
    def run(graphdef, state, tokens, cache):
        # Modules are changed where they are traced, so each loop has its own.
        logits, cache = nnx.merge(graphdef, state, copy=True)(tokens, cache)
        return logits.astype(jnp.float32), cache

    def rows(cache, index):
        """The cache with the rows of other beams."""
        take = lambda x: jnp.take(x, index, axis=axis)  # noqa: E731
        keys, values = jax.tree.map(take, (cache.keys, cache.values))
        return cache._replace(keys=keys, values=values, counts=cache.counts[index])

    def last_of(checked, drafted, end):
        """The keys and values of the draft, and from `end` on those of the full model."""

        def pick(new, old):
            before = jnp.arange(new.shape[axis + 1]) < end[:, None]
            return jnp.where(before[:, :, None, None], old, new)

        keys, values = (
            jax.tree.map(pick, *pair)
            for pair in ((checked.keys, drafted.keys), (checked.values, drafted.values))
        )
        return checked._replace(keys=keys, values=values)

    def likeliest(logits):
        return jnp.where(jnp.isnan(logits).any(), _LOST, jnp.argmax(logits)).astype(jnp.int32)

    cache = nnx.merge(full, full_state, copy=True).empty_cache(1, ids.shape[1] + steps + 2 * period)
    logits, cache = run(full, full_state, ids, cache)
    first = likeliest(logits[0, -1])
    cache = rows(cache, jnp.zeros(width, jnp.int32))
    alone, place = jnp.full(width, -jnp.inf).at[0].set(0.0), jnp.arange(period)

    def draft(i, carry):
        chunks, scores, cache = carry
        logits, cache = run(sparse, sparse_state, chunks[:, i, None], cache)
        if width == 1:
            return chunks.at[:, i + 1].set(jnp.argmax(logits[:, 0], -1)), scores, cache
        beams = beam_step(logits[:, 0], scores, ends[1:], temperature=temperature, sure=sure)
        chunks = chunks[beams.parents].at[:, i + 1].set(beams.tokens)
        return chunks, beams.scores, rows(cache, beams.parents)

    def going(loop):
        return (loop.length < steps) & ~loop.ended

    def check(chunks, scores, cache):
        # The full model writes its keys and values over those of the draft.
        logits, cache = run(full, full_state, chunks, cache)
        accept = lambda logits, chunk: accept_length(  # noqa: E731
            logits, chunk, threshold, temperature
        )
        lengths = jnp.where(jnp.isfinite(scores), jax.vmap(accept)(logits, chunks), -1)
        return _Checked(chunks, lengths, logits, cache)

    def mended(found):
        """The chunks with the first rejected token replaced by the likeliest of the full model."""
        own = jnp.take_along_axis(jnp.argmax(found.logits, -1), found.lengths[:, None], axis=1)
        rejected = place == found.lengths[:, None] + 1
        return jnp.where(rejected, own.astype(jnp.int32), found.chunks)

    def advance(loop):
        start = loop.cache.counts
        chunks = jnp.zeros((width, period), jnp.int32)
        chunks = chunks.at[:, 0].set(loop.written[loop.length - 1])
        drafted = lax.fori_loop(0, period - 1, draft, (chunks, alone, loop.cache))
        chunks, scores, cache = drafted
        found = check(chunks, scores, cache._replace(counts=start))
        passes, end = loop.passes + 1, start + period - 1  # of the keys and values of the draft
        if second:
            end = jnp.minimum(end, start + found.lengths + 1)
            again = jnp.max(found.lengths) < period - 1
            passes += again
            found = lax.cond(
                again,
                lambda x: check(mended(x), scores, x.cache._replace(counts=start)),
                lambda x: x,
                found,
            )
        cache = found.cache if rewrite else last_of(found.cache, cache, end)
        best = jnp.argmax(found.lengths)
        kept, chunk = found.lengths[best], found.chunks[best]
        own = likeliest(found.logits[best, kept])  # no token of NaN logits is accepted
        new = jnp.where(place < kept, jnp.roll(chunk, -1), jnp.where(place == kept, own, -1))
        cache = rows(cache, jnp.full(width, best)) if width > 1 else cache
        return _Loop(
            cache._replace(counts=start + kept + 1),
            lax.dynamic_update_slice(loop.written, new, (loop.length,)),
            loop.length + kept + 1,
            jnp.isin(new, ends[1:]).any() | (own == _LOST),
            loop.advances.at[loop.checks].set(kept + 1),
            loop.checks + 1,
            passes,
        )

    written = jnp.full(steps + period, -1, jnp.int32).at[0].set(first)
    zero = jnp.zeros((), jnp.int32)
    ended = jnp.isin(first, ends) | (first == _LOST)
    loop = _Loop(cache, written, zero + 1, ended, jnp.zeros(steps, jnp.int32), zero, zero)
    loop = lax.while_loop(going, advance, loop)
    return loop.written, loop.advances, loop.checks, loop.passes


class _Loop(NamedTuple):
    cache: Any
    written: Array
    length: Array
    ended: Array
    advances: Array
    checks: Array
    passes: Array
