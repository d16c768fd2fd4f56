"""Text from a decoder, and how well it predicts text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array

from .._arguments import checked
from ._ids import row_of
from ._llama import Llama

_LOST = -2  # written where the logits are NaN


@checked(steps="[1, inf)", temperature="[0, inf)")
def generate(
    model: Llama,
    prompts: Sequence[Any],
    steps: int,
    *,
    temperature: float = 0.0,
    stop: Sequence[int] = (),
    attention: Any = None,
    key: Array | None = None,
) -> list[list[int]]:
    r"""The tokens that a decoder writes behind each prompt.

    All prompts run as one batch, of one compilation per number of prompts and `steps` for prompts
    of similar length; keys and values stay in buffers of a fixed length.

    Args:
      model: The model; its kernels may be compressed and its layers replaced.
      prompts: Token ids, of any lengths from 1.
      steps: The most tokens to write.
      temperature: 0 takes the likeliest token; t samples from softmax(logits / t).
      stop: Tokens that end a row; the row keeps the one that it ended with.
      attention: Replaces the attention of every layer, such as
        `sj.contrib.sparse_attention.Quest()`. A pytree with two methods:
        `prefill(q, k, v, counts, steps) -> (y, state)` for the prompts, of which `counts` tokens
        are not padding, with room for `steps` more tokens, and
        `step(q, k, v, state) -> (y, state)` for one more token. Queries and keys are rotated; all
        are (batch, length, heads, size), and so is y. None for dense attention.
      key: The key of sampling; needed where temperature is above 0.

    Returns:
      For each prompt the new tokens, without the prompt.

    Raises:
      ValueError: If there is no prompt, a prompt is empty or holds a token that the model does not
        know, `steps` is below 1, `key` is missing, or the logits are NaN.
      TypeError: If `attention` lacks a method.

    Example:
      >>> import sparsejax as sj
      >>> model, tokenizer = sj.models.smollm2()  # doctest: +SKIP
      >>> prompt = tokenizer.encode("The capital of France is").ids  # doctest: +SKIP
      >>> tokenizer.decode(sj.models.generate(model, [prompt], 8)[0])  # doctest: +SKIP
      ' Paris. It is the largest city in'
    """
    if temperature > 0 and key is None:
        raise ValueError("generate: sampling at a temperature needs key=jax.random.key(0).")
    rows = [row_of("generate: each of prompts", row, model.config.vocabulary, 1) for row in prompts]
    if not rows:
        raise ValueError("generate: prompts is empty; give a list of lists of tokens.")
    # Few distinct lengths, so that few programs are compiled.
    length = -(-max(map(len, rows)) // 32) * 32
    ids = np.zeros((len(rows), length), np.int32)
    for at, row in zip(ids, rows):
        at[: len(row)] = row
    counts = np.array([len(row) for row in rows], np.int32)
    ends = np.array([-1, *stop], np.int32)
    key = jax.random.key(0) if key is None else key
    attention = (
        None if attention is None else _check_attention("generate", attention, ("prefill", "step"))
    )
    rest = attention, ids, counts, ends, temperature, key
    written = np.asarray(_generate(model, *rest, steps=int(steps)))
    if (written == _LOST).any():
        row, token = np.argwhere(written == _LOST)[0]
        raise ValueError(
            f"generate: the logits of model are NaN at the new token {token} of prompts[{row}]; "
            "jax.config.update('jax_debug_nans', True) finds their origin."
        )
    return [_until(row, ends) for row in written]


@nnx.jit(static_argnames=("steps",))
def _generate(model, attention, ids, counts, ends, temperature, key, steps):
    x, cache = _read(model, attention, ids, counts, steps)
    # Behind a shorter prompt the buffers hold padding, which new tokens overwrite.
    cache = cache._replace(counts=counts)
    x = jnp.take_along_axis(x, counts[:, None, None] - 1, axis=1)

    # Modules are changed where they are traced, so the loop has its own.
    graphdef, state = nnx.split(model)

    def choose(model, x, key):
        logits = model.logits(x)[:, 0].astype(jnp.float32)
        token = lax.cond(  # drawing one number per token of the vocabulary takes time
            temperature > 0,
            lambda: jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-20)),
            lambda: jnp.argmax(logits, -1),
        )
        return jnp.where(jnp.isnan(jnp.max(logits, -1)), _LOST, token).astype(jnp.int32)

    def going(loop):
        step, _, _, written, ended = loop
        return (step < steps) & ~jnp.all(ended)

    def write(loop):
        step, x, cache, written, ended = loop
        model = nnx.merge(graphdef, state, copy=True)
        token = choose(model, x, jax.random.fold_in(key, step))
        written = written.at[:, step].set(jnp.where(ended, -1, token))
        ended = ended | jnp.isin(token, ends) | (token == _LOST)
        if attention is None:
            x, cache = model.features(token[:, None], cache)
        else:
            x, cache = model.features_by(attention.step, token[:, None], cache)
        return step + 1, x, cache, written, ended

    written = jnp.full((len(ids), steps), -1, jnp.int32)
    start = jnp.zeros((), jnp.int32), x, cache, written, jnp.zeros(len(ids), bool)
    return lax.while_loop(going, write, start)[3]


def _read(model, attention, ids, counts, steps):
    """The stream behind the prompts, and their cache with room for more tokens."""
    if attention is None:
        return model.features(ids, model.empty_cache(len(ids), ids.shape[1] + steps))

    def attend(q, k, v, state):
        del state
        return attention.prefill(q, k, v, counts, steps)

    return model.features_by(attend, ids)


@checked(window="[1, inf)", stride="[1, inf)", model="model(ids)")
def token_losses(
    model: Callable[[Array], Array],
    tokens: Any,
    *,
    window: int = 512,
    stride: int | None = None,
    attention: Any = None,
) -> np.ndarray:
    r"""The negative log-likelihood -log p(t_i | t_<i) of each token but the first.

    Long texts are read in windows of one shape, so that one program serves any length. A token sees
    at least `window - stride` tokens before it, and at most `window`.

    Args:
      model: Logits (1, length, vocabulary) of token ids (1, length), such as a `Llama`.
      tokens: The ids of a text, at least 2.
      window: Tokens that are read at once.
      stride: Tokens by which the window moves on; the window by default.
      attention: Replaces the attention of every layer of a `Llama`, such as
        `sj.contrib.sparse_attention.BlockTopK()`. A pytree with the method
        `attend(q, k, v, counts) -> y` for texts read at once, as for `generate`.

    Returns:
      One number for each token from the second on, in nats, float32.

    Raises:
      ValueError: If there are fewer than 2 tokens, a token is negative or (for a `Llama`) unknown,
        or `stride` is not between 1 and `window`.
      TypeError: If `attention` is given for a model that is not a `Llama`, or has no `attend`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> uniform = lambda ids: jnp.zeros((*ids.shape, 4))
      >>> print(sj.models.token_losses(uniform, [0, 1, 2, 3, 0], window=2).round(3))
      [1.386 1.386 1.386 1.386]
    """
    stride = window if stride is None else stride
    if stride > window:
        raise ValueError(
            f"token_losses: stride must be at most the window, got {stride} above {window}."
        )
    vocabulary = model.config.vocabulary if isinstance(model, Llama) else None
    row = row_of("token_losses: tokens", tokens, vocabulary, 2)
    known, targets = row[:-1], row[1:]
    losses, done = np.empty(len(targets), np.float32), 0
    if attention is not None:
        compiled = _attended(model, attention)
    elif isinstance(model, nnx.Module):
        compiled = functools.partial(_compiled_losses, model)
    else:
        compiled = jax.jit(functools.partial(_losses, model))
    while done < len(targets):
        start = 0 if done == 0 else done + stride - window
        start = max(start, 0)
        ids, expected = (np.zeros((1, window), np.int32) for _ in range(2))
        count = min(window, len(known) - start)
        ids[0, :count] = known[start : start + count]
        expected[0, :count] = targets[start : start + count]
        count_of = {} if attention is None else {"counts": np.array([count], np.int32)}
        found = np.asarray(compiled(ids, expected, **count_of))[0]
        losses[done : start + count] = found[done - start : count]
        done = start + count
    return losses


def _losses(model, ids, expected):
    return _losses_of(model(ids), expected)


def _losses_of(logits, expected):
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, expected[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


_compiled_losses = nnx.jit(_losses)


def _attended(model: Any, attention: Any) -> Callable[..., Array]:
    """The losses of a Llama with another attention."""
    if not isinstance(model, Llama):
        raise TypeError(
            f"token_losses: attention needs a Llama as the model, got a {type(model).__name__}."
        )
    _check_attention("token_losses", attention, ("attend",))
    return functools.partial(_attended_losses, model, attention)


@nnx.jit
def _attended_losses(model, attention, ids, expected, counts):
    def attend(q, k, v, state):
        return attention.attend(q, k, v, counts), state

    return _losses_of(model.logits(model.features_by(attend, ids)[0]), expected)


def _check_attention(what: str, attention: Any, methods: Sequence[str]) -> Any:
    """The attention; raises unless it has the methods."""
    missing = [name for name in methods if not callable(getattr(attention, name, None))]
    if missing or isinstance(attention, type):
        raise TypeError(
            f"{what}: attention must have the methods {', '.join(methods)}, got {attention!r:.80}; "
            "for example attention=sj.contrib.sparse_attention.Quest()."
        )
    return attention


@checked(window="[1, inf)", stride="[1, inf)", model="model(ids)")
def perplexity(
    model: Callable[[Array], Array],
    tokens: Any,
    *,
    window: int = 512,
    stride: int | None = None,
    attention: Any = None,
) -> float:
    r"""Perplexity exp(mean of -log p(t_i | t_<i)) of a text, in windows.

    Args:
      model: As for `token_losses`.
      tokens: As for `token_losses`.
      window: As for `token_losses`.
      stride: As for `token_losses`.
      attention: As for `token_losses`.

    Returns:
      The perplexity over all tokens but the first.

    Raises:
      ValueError: As `token_losses`.
      TypeError: As `token_losses`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> uniform = lambda ids: jnp.zeros((*ids.shape, 4))
      >>> print(f"{sj.models.perplexity(uniform, [0, 1, 2, 3, 0]):.1f}")
      4.0
    """
    losses = token_losses(model, tokens, window=window, stride=stride, attention=attention)
    return float(np.exp(np.mean(losses, dtype=np.float64)))


def _until(row: np.ndarray, ends: np.ndarray) -> list[int]:
    stopped = np.flatnonzero(np.isin(row, ends))
    # -1 stands behind the end.
    return [
        token for token in row[: stopped[0] + 1 if len(stopped) else None].tolist() if token >= 0
    ]
