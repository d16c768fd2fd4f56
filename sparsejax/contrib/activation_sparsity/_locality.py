"""Losses and measures of the experts that neighbouring tokens share, and the factor of a loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..._arguments import check_not_nan, checked


@checked(steepness="(0, inf)")
def activation_locality(
    logits: Shaped[Array | np.ndarray, "t e"],
    segments: Int[Array | np.ndarray, " t"] | None = None,
    steepness: float = 100.0,
) -> Float[Array, ""]:
    r"""Loss that makes neighbouring tokens use the same experts.

    The mean over pairs (t-1, t) and experts of the binary cross-entropy of the logits
    `a A_{t-1}` with the target `sigmoid(a A_t)`. Gradients flow through both.

    Args:
      logits: `Routed.logits` of T tokens.
      segments: The document of each token; pairs across documents do not count.
      steepness: a.

    Returns:
      The loss; 0 if there is no pair.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> logits = jnp.array([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
      >>> round(float(activation_sparsity.activation_locality(logits)), 2)
      50.0
    """
    steep = steepness * jnp.asarray(logits).astype(jnp.float32)
    before, target = steep[:-1], jax.nn.sigmoid(steep[1:])
    loss = jnp.maximum(before, 0) - before * target + jnp.log1p(jnp.exp(-jnp.abs(before)))
    if segments is None:
        pairs = jnp.ones(len(loss), bool)
    else:
        pairs = jnp.asarray(segments)[1:] == jnp.asarray(segments)[:-1]
    total = jnp.sum(jnp.where(pairs[:, None], loss, 0))
    return total / jnp.maximum(jnp.sum(pairs) * loss.shape[1], 1)


@checked(chunk="[1, inf)", epsilon="(0, inf)")
def chunk_sparsification(
    normed: Shaped[Array | np.ndarray, "t e"],
    valid: Bool[Array | np.ndarray, " t"] | None = None,
    chunk: int = 64,
    epsilon: float = 1e-5,
) -> Float[Array, ""]:
    r"""Loss that makes few experts active in each chunk of tokens.

    With `p = A / (sum_e A_e + eps)`:
    `1 - mean_{chunks, e} exp(sum_{t in chunk} log(1 - p_te + eps))`.

    Args:
      normed: `Routed.normed` of T tokens.
      valid: Which tokens are not padding.
      chunk: Tokens of a chunk; must divide T.
      epsilon: eps; the loss may fall below 0 by about chunk eps.

    Raises:
      ValueError: If the chunk does not divide T.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> normed = jnp.array([[1.0, 1.0], [1.0, 0.0]])
      >>> round(float(activation_sparsity.chunk_sparsification(normed, chunk=2)), 2)
      0.75
    """
    normed = jnp.asarray(normed).astype(jnp.float32)
    if len(normed) % chunk or not len(normed):
        raise ValueError(
            f"chunk_sparsification: chunk must divide the number of tokens, got {chunk} for "
            f"{len(normed)}."
        )
    p = normed / (jnp.sum(normed, axis=1, keepdims=True) + epsilon)
    p = p if valid is None else jnp.where(jnp.asarray(valid)[:, None], p, 0)
    unused = jnp.log(1 - p + epsilon).reshape(-1, chunk, p.shape[1]).sum(1)
    return 1 - jnp.mean(jnp.exp(unused))


@checked(length="[1, inf)")
def chunk_sparsity(
    weights: Shaped[Array | np.ndarray, "t e"],
    length: int = 8,
    valid: Bool[Array | np.ndarray, " t"] | None = None,
) -> float:
    r"""The fraction of experts that no token of a chunk uses (CLS), over chunks without overlap.

    Args:
      weights: `Routed.weights`; active are those that are not zero.
      length: Tokens of a chunk; 1 gives the sparsity of tokens (TLS).
      valid: The tokens that count, of which chunks are cut; an incomplete last one is dropped.

    Raises:
      ValueError: If there are fewer valid tokens than `length`.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> weights = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> round(activation_sparsity.chunk_sparsity(weights, 2), 3)
      0.333
    """
    check_not_nan("chunk_sparsity", weights=weights)
    active = jnp.asarray(weights) != 0
    active = active if valid is None else active[jnp.asarray(valid)]
    chunks = len(active) // length
    if not chunks:
        raise ValueError(
            f"chunk_sparsity: length must be at most the {len(active)} valid tokens, got {length}."
        )
    used = active[: chunks * length].reshape(chunks, length, -1).any(1)
    return float(1 - used.mean())


@checked()
def reuse_ratio(weights: Shaped[Array | np.ndarray, "t e"]) -> float:
    r"""The mean over tokens of `|S_t and S_{t+1}| / |S_t|` for the sets S of active experts.

    Args:
      weights: `Routed.weights`. Tokens without an active expert are left out.

    Returns:
      The ratio; NaN without a pair.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> activation_sparsity.reuse_ratio(jnp.array([[1.0, 2.0], [1.0, 0.0]]))
      0.5
    """
    check_not_nan("reuse_ratio", weights=weights)
    active = jnp.asarray(weights) != 0
    size, both = active[:-1].sum(1), (active[:-1] & active[1:]).sum(1)
    some = size > 0
    shares = jnp.where(some, both / jnp.maximum(size, 1), 0)
    return float(jnp.sum(shares) / jnp.sum(some)) if bool(some.any()) else float("nan")


class FactorState(NamedTuple):
    """State of an `adaptive_factor`: the step, sums of two windows, the factor and its growth."""

    step: Int[Array, ""]
    before: Float[Array, ""]
    current: Float[Array, ""]
    base: Float[Array, ""]
    ratio: Float[Array, ""]


class AdaptiveFactor(NamedTuple):
    """`init() -> state` and `update(state, loss) -> (factor, state)`."""

    init: Callable[[], FactorState]
    update: Callable[[FactorState, ArrayLike], tuple[Array, FactorState]]


@checked(initial="(0, inf)", warmup="[0, inf)", every="[1, inf)", least="[1, inf)", most="[1, inf)")
def adaptive_factor(
    initial: float = 5e-2,
    *,
    warmup: int = 1000,
    every: int = 100,
    least: float = 1.025,
    most: float = 4.0,
    interpolate: bool = True,
) -> AdaptiveFactor:
    r"""The factor of a loss that grows while the loss grows, and falls with it.

    At each multiple m of `every` from `warmup` on, once two windows are full, the factor of the
    next steps becomes `factor * ratio`, where the ratio is the mean loss of the last `every` steps
    over that of the `every` before: at least `least` if above 1, and at most `most initial /
    factor`. A window whose mean is not positive changes nothing.

    Args:
      initial: The factor until then.
      warmup: First step at which it changes.
      every: Steps of a window.
      least: The least growth.
      most: The largest factor over `initial`.
      interpolate: Whether the factor moves linearly over the next window, as in the code of the
        paper, or at once.

    Returns:
      An `AdaptiveFactor`. `update` returns the factor of the current step, and can be jitted.

    Reference:
      Song et al., BlockFFN, 2025 (arXiv 2507.08771).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> factor = activation_sparsity.adaptive_factor(1.0, warmup=0, every=1, interpolate=False)
      >>> state, values = factor.init(), []
      >>> for loss in (1.0, 2.0, 1.0, 1.0):
      ...     value, state = factor.update(state, loss)
      ...     values.append(float(value))
      >>> values
      [1.0, 1.0, 2.0, 1.0]
    """

    def init() -> FactorState:
        zero = jnp.zeros((), jnp.float32)
        return FactorState(jnp.zeros((), jnp.int32), zero, zero, zero + initial, zero + 1)

    def update(state: FactorState, loss: ArrayLike) -> tuple[Array, FactorState]:
        step, current = state.step + 1, state.current + loss
        place = (step - 1) % every + 1
        share = place / every if interpolate else 1.0
        value = state.base * (1 + (state.ratio - 1) * share)

        ends = step % every == 0
        both = (current > 0) & (state.before > 0)
        ratio = jnp.where(both, current / jnp.where(both, state.before, 1), 1)
        ratio = jnp.where(ratio > 1, jnp.maximum(ratio, least), ratio)
        ratio = jnp.minimum(ratio, most * initial / value)
        ready = (step >= warmup) & (step >= 2 * every)
        return value, FactorState(
            step,
            jnp.where(ends, current, state.before),
            jnp.where(ends, 0, current),
            jnp.where(ends, value, state.base),
            jnp.where(ends, jnp.where(ready, ratio, 1), state.ratio),
        )

    return AdaptiveFactor(init, update)
