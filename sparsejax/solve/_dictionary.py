"""Sparse coding with any penalty, and dictionaries learned for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..prox import Penalty
from ..prox._check import known
from ._algebra import magnitude
from ._duality import near_one
from ._proximal_gradient import check_step


class Codes(NamedTuple):
    """Sparse codes of a batch.

    Attributes:
      codes: Coefficients (batch, atoms).
      objective: `0.5 ||x - D r||^2 + penalty(r)`, summed over the batch.
      steps: Steps taken.
      converged: Whether the last step changed no coefficient by more than the tolerance.
    """

    codes: Float[Array, "batch atoms"]
    objective: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


class DictionaryFit(NamedTuple):
    """A learned dictionary, and for each batch how it was coded before the dictionary moved.

    Attributes:
      dictionary: Atoms in columns (pixels, atoms), of norm 1.
      error: Mean squared error per pixel, (batches,).
      active: Mean number of non-zero coefficients per signal, (batches,).
      usage: Share of the signals that use an atom in the last batch, (atoms,).
    """

    dictionary: Float[Array, "pixels atoms"]
    error: Float[Array, " batches"]
    active: Float[Array, " batches"]
    usage: Float[Array, " atoms"]


def sparse_code(
    signals: ArrayLike,
    dictionary: ArrayLike,
    penalty: Penalty,
    *,
    step: ArrayLike | None = None,
    max_steps: int = 100,
    tolerance: ArrayLike = 0.0,
    start: ArrayLike | None = None,
) -> Codes:
    r"""Sparse codes of signals in a dictionary, by proximal gradient steps.

    Minimises `0.5 ||x - D r||^2 + penalty(r)` by `r <- prox(r + step D^T (x - D r), step)`: for
    `prox.l1` soft thresholding (ISTA), for `prox.l0` iterative hard thresholding, and so on. With
    a step below `1 / ||D||^2` no step increases the objective, whether the penalty is convex or
    not. May be jitted, mapped over penalties and differentiated forwards.

    Args:
      signals: Signals in rows, (batch, pixels).
      dictionary: Atoms in columns, (pixels, atoms).
      penalty: Of the coefficients, such as `prox.cel0(0.1)`; its `a` is the norm of the atoms.
      step: By default `0.99 / ||D||^2`. Much smaller ones leave hard thresholds stuck at 0.
      max_steps: The largest number of steps.
      tolerance: Stop when no coefficient changes by more; 0 takes all steps unless at rest.
      start: Coefficients to start from, by default 0.

    Returns:
      A `Codes`; the codes are NaN and not converged if the step is too long, or if none is given
      and `||D||^2` is out of the range of floats.

    Raises:
      ValueError: If signals and atoms differ in length or are empty, numbers are not finite, or the
        step is not > 0.

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> signals = jnp.array([[3.0, 0.1]])
      >>> solve.sparse_code(signals, jnp.eye(2), prox.l0(0.5), step=1.0).codes.tolist()
      [[3.0, 0.0]]
    """
    signals, dictionary = finite("sparse_code", signals, 2), finite("sparse_code", dictionary, 2)
    if signals.shape[1] != dictionary.shape[0]:
        raise ValueError(
            f"sparse_code: signals of {signals.shape[1]} pixels, shape {signals.shape}, cannot be "
            f"coded by atoms of {dictionary.shape[0]}, shape {dictionary.shape}; signals stand in "
            "rows, atoms in columns."
        )
    check_step(step)
    step = 0.99 / largest_eigenvalue(dictionary) if step is None else step
    shape = signals.shape[0], dictionary.shape[1]
    dtype = jnp.result_type(signals, dictionary)
    codes = jnp.zeros(shape, dtype) if start is None else jnp.asarray(start, dtype)
    if codes.shape != shape:
        raise ValueError(f"sparse_code: start must have shape {shape}, got {codes.shape}.")

    def move(state):
        codes, taken, _ = state
        pull = (signals - codes @ dictionary.T) @ dictionary
        new = penalty.prox(codes + jnp.asarray(step, codes.dtype) * pull, step)
        return new, taken + 1, jnp.max(jnp.abs(new - codes)) <= tolerance

    def more(state):
        return (state[1] < max_steps) & ~state[2]

    begin = codes, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    codes, taken, rest = lax.while_loop(more, move, begin)
    objective = jnp.sum((signals - codes @ dictionary.T) ** 2) / 2 + penalty.value(codes)
    return Codes(codes, objective, taken, rest)


def finite(caller: str, x: ArrayLike, ndim: int) -> Array:
    """An array of floats, not empty, without NaN or infinity where that can be seen."""
    x = jnp.asarray(x)
    if x.ndim != ndim or 0 in x.shape:
        raise ValueError(f"{caller} needs arrays of {ndim} axes, not empty, got shape {x.shape}.")
    if known(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{caller}: an array of shape {x.shape} holds NaN or infinity.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def largest_eigenvalue(dictionary: Array) -> Array:
    """`||D||_2^2`, exactly: what a power iteration finds is too small, and steps too large.

    1 for a matrix of zeros, NaN where it is out of the range of floats.
    """
    size = magnitude(dictionary)
    nothing = ~jnp.any(dictionary)
    dictionary = dictionary / size
    wide = dictionary.shape[1] > dictionary.shape[0]
    gram = dictionary @ dictionary.T if wide else dictionary.T @ dictionary
    top = jnp.linalg.eigvalsh(lax.stop_gradient(gram))[-1] * size * size
    return jnp.where(nothing, 1, jnp.where((top > 0) & jnp.isfinite(top), top, jnp.nan))


def dictionary_step(
    dictionary: Float[Array, "pixels atoms"],
    signals: Float[Array, "batch pixels"],
    codes: Float[Array, "batch atoms"],
    learning_rate: ArrayLike,
) -> Float[Array, "pixels atoms"]:
    r"""One gradient step of the dictionary for given codes, and atoms of norm 1 again.

    `D <- normalise(D + rate (x - D r)^T r / batch)`; an atom that no signal uses stays.

    Args:
      dictionary: Atoms in columns, (pixels, atoms).
      signals: (batch, pixels).
      codes: (batch, atoms).
      learning_rate: The step.

    Returns:
      The new dictionary.

    Reference:
      Olshausen and Field, Sparse coding with an overcomplete basis set, 1997.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> atoms = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> signals, codes = jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0]])
      >>> solve.dictionary_step(atoms, signals, codes, 1.0).round(2)
      Array([[0.71, 0.  ],
             [0.71, 1.  ]], dtype=float32)
    """
    signals = finite("dictionary_step", signals, 2)
    residual = signals - codes @ dictionary.T
    moved = dictionary + learning_rate * residual.T @ codes / len(signals)
    return normalise(moved)


def normalise(dictionary: Array) -> Array:
    """Columns of norm 1; one of norm 0 stays."""
    norm = jnp.linalg.norm(dictionary, axis=0)
    return dictionary / jnp.maximum(norm, 1e-12)


def dictionary_learning(
    key: PRNGKeyArray,
    batches: ArrayLike,
    atoms: int,
    penalty: Penalty,
    *,
    learning_rate: ArrayLike = 0.5,
    max_steps: int = 100,
    tolerance: ArrayLike = 0.0,
    start: ArrayLike | None = None,
) -> DictionaryFit:
    r"""Learns a dictionary in which signals have sparse codes, one batch after the other.

    Each batch is coded from 0 by `sparse_code`, then the dictionary takes one `dictionary_step`.
    May be jitted, and mapped over keys and strengths of the penalty. Compare penalties at equal
    activity, never at equal strength; the sign and the order of atoms mean nothing.

    Args:
      key: A random key, for the first dictionary: normal entries, atoms of norm 1.
      batches: Signals, (batches, batch, pixels).
      atoms: The number of atoms, more than pixels for an overcomplete dictionary.
      penalty: Of the coefficients.
      learning_rate: Of the dictionary.
      max_steps: Steps of each inference.
      tolerance: As in `sparse_code`.
      start: A dictionary to start from.

    Returns:
      A `DictionaryFit`.

    Raises:
      ValueError: If the batches are not of shape (batches, batch, pixels), empty, not finite or of
        a size whose square is out of the range of floats, or the start is not (pixels, atoms).

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> import jax
      >>> from sparsejax import prox, solve
      >>> batches = jax.random.normal(jax.random.key(0), (5, 20, 16))
      >>> fit = solve.dictionary_learning(jax.random.key(1), batches, 32, prox.cel0(0.1))
      >>> fit.dictionary.shape, fit.error.shape
      ((16, 32), (5,))
    """
    batches = finite("dictionary_learning", batches, 3)
    if atoms < 1:
        raise ValueError(f"dictionary_learning: atoms must be >= 1, got {atoms}.")
    near_one(batches=batches)
    shape = batches.shape[-1], atoms
    if start is not None and jnp.shape(start) != shape:
        raise ValueError(f"start must have shape {shape}, got {jnp.shape(start)}.")
    if start is not None:
        start = jnp.asarray(start, batches.dtype)
    else:
        start = normalise(jax.random.normal(key, (batches.shape[-1], atoms), batches.dtype))

    def learn(dictionary, signals):
        codes = sparse_code(
            signals, dictionary, penalty, max_steps=max_steps, tolerance=tolerance
        ).codes
        error = jnp.mean((signals - codes @ dictionary.T) ** 2)
        used = jnp.mean((codes != 0).astype(error.dtype), axis=0)
        return dictionary_step(dictionary, signals, codes, learning_rate), (error, used)

    dictionary, (error, used) = lax.scan(learn, start, batches)
    return DictionaryFit(dictionary, error, jnp.sum(used, axis=1), used[-1])
