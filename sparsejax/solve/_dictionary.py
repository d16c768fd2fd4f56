"""Sparse coding with any penalty, and dictionaries learned for it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..prox import Penalty


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
    signals: Float[Array, "batch pixels"],
    dictionary: Float[Array, "_ atoms"],
    penalty: Penalty,
    *,
    step: ArrayLike | None = None,
    max_steps: int = 100,
    tolerance: ArrayLike = 0.0,
    start: Float[Array, "batch atoms"] | None = None,
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
      A `Codes`.

    Raises:
      ValueError: If signals and atoms differ in length.

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> signals = jnp.array([[3.0, 0.1]])
      >>> solve.sparse_code(signals, jnp.eye(2), prox.l0(0.5), step=1.0).codes.tolist()
      [[3.0, 0.0]]
    """
    if signals.shape[-1] != dictionary.shape[0]:
        raise ValueError(
            f"sparse_code: signals of {signals.shape[-1]} pixels, shape {signals.shape}, cannot be "
            f"coded by atoms of {dictionary.shape[0]}, shape {dictionary.shape}; signals stand in "
            "rows, atoms in columns."
        )
    step = 0.99 / largest_eigenvalue(dictionary) if step is None else step
    shape = signals.shape[0], dictionary.shape[1]
    codes = jnp.zeros(shape, signals.dtype) if start is None else start

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


def largest_eigenvalue(dictionary: Array) -> Array:
    """`||D||_2^2`, exactly: what a power iteration finds is too small, and steps too large."""
    wide = dictionary.shape[1] > dictionary.shape[0]
    gram = dictionary @ dictionary.T if wide else dictionary.T @ dictionary
    top = jnp.linalg.eigvalsh(lax.stop_gradient(gram))[-1]
    return jnp.where(top > 0, top, 1)


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
    residual = signals - codes @ dictionary.T
    moved = dictionary + learning_rate * residual.T @ codes / len(signals)
    return normalise(moved)


def normalise(dictionary: Array) -> Array:
    """Columns of norm 1; one of norm 0 stays."""
    norm = jnp.linalg.norm(dictionary, axis=0)
    return dictionary / jnp.maximum(norm, 1e-12)


def dictionary_learning(
    key: PRNGKeyArray,
    batches: Float[Array, "batches batch pixels"],
    atoms: int,
    penalty: Penalty,
    *,
    learning_rate: ArrayLike = 0.5,
    max_steps: int = 100,
    tolerance: ArrayLike = 0.0,
    start: Float[Array, "pixels atoms"] | None = None,
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
      ValueError: If the batches are not of shape (batches, batch, pixels).

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
    if start is None:
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
