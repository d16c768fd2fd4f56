"""Sparse coding with any penalty, and dictionaries learned for it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._arguments import (
    check_count,
    check_key,
    checked,
    checked_number,
    checked_start,
    finite_array,
    near_one,
)
from .._arrays import largest_eigenvalue
from .._progress import Progress, check_loop, run_chunks
from .._solution import Solution, code, finish
from ..prox import Penalty
from ._proximal_gradient import check_step


@checked(step="(0, inf)", tol="[0, inf)")
def sparse_code(
    X: ArrayLike,
    dictionary: ArrayLike,
    penalty: Penalty,
    *,
    step: ArrayLike | None = None,
    max_steps: int = 100,
    tol: ArrayLike = 0.0,
    w0: ArrayLike | None = None,
    throw: bool = False,
) -> Solution:
    r"""Sparse codes of signals in a dictionary, by proximal gradient steps.

    Minimises `0.5 ||x - D w||^2 + penalty(w)` by `w <- prox(w + step D^T (x - D w), step)`: for
    `prox.l1` soft thresholding (ISTA), for `prox.l0` iterative hard thresholding, and so on. With
    a step below `1 / ||D||^2` no step increases the objective, even if the penalty is not convex.
    Can be jitted, mapped over penalties and differentiated in forward mode.

    Args:
      X: Signals in rows, (batch, pixels).
      dictionary: Atoms in columns, (pixels, atoms).
      penalty: Penalty of the codes, such as `prox.cel0(0.1)`; its `a` is the norm of the atoms.
      step: Step size, `0.99 / ||D||^2` by default. With much smaller steps hard thresholds never
        leave 0.
      max_steps: Maximum number of steps.
      tol: Converged when no coefficient changes by more; with 0 all steps are taken, unless no
        coefficient changes at all.
      w0: Initial codes (batch, atoms), 0 by default.
      throw: Whether to raise if the codes did not converge (outside jit).

    Returns:
      A `Solution` with the codes (batch, atoms) and the statistics `n_iter` and `objective`, summed
      over the batch. The codes are NaN if the step is too long, or if none is given and
      `||D||^2` is out of the range of floats.

    Raises:
      RuntimeError: If `throw` and the codes did not converge.
      ValueError: If signals and atoms differ in length or are empty, values are not finite, or the
        step is not > 0.

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox, solve
      >>> X = jnp.array([[3.0, 0.1]])
      >>> solve.sparse_code(X, jnp.eye(2), prox.l0(0.5), step=1.0).value.tolist()
      [[3.0, 0.0]]
    """
    X = finite_array("sparse_code", "X", X, 2)
    dictionary = finite_array("sparse_code", "dictionary", dictionary, 2)
    if X.shape[1] != dictionary.shape[0]:
        raise ValueError(
            f"sparse_code: signals of {X.shape[1]} pixels, shape {X.shape}, cannot be coded by "
            f"atoms of {dictionary.shape[0]}, shape {dictionary.shape}; signals are rows and "
            "atoms are columns."
        )
    check_step(step)
    check_count("max_steps", max_steps, 0)
    checked_number("tol", tol, "tol=1e-6")
    step = 0.99 / largest_eigenvalue(dictionary) if step is None else step
    shape, dtype = (X.shape[0], dictionary.shape[1]), jnp.result_type(X, dictionary)
    codes = checked_start("sparse_code", w0, shape, dtype)
    return finish("sparse_code", _code(X, dictionary, penalty, codes, step, tol, max_steps), throw)


@jax.jit
def _code(
    X: Array,
    dictionary: Array,
    penalty: Penalty,
    codes: Array,
    step: ArrayLike,
    tol: ArrayLike,
    max_steps: ArrayLike,
) -> Solution:
    def move(state):
        codes, taken, _ = state
        pull = (X - codes @ dictionary.T) @ dictionary
        new = penalty.prox(codes + jnp.asarray(step, codes.dtype) * pull, step)
        return new, taken + 1, jnp.max(jnp.abs(new - codes)) <= tol

    def more(state):
        return (state[1] < max_steps) & ~state[2]

    begin = codes, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    codes, taken, still = lax.while_loop(more, move, begin)
    objective = jnp.sum((X - codes @ dictionary.T) ** 2) / 2 + penalty.value(codes)
    found = code(jnp.isfinite(codes).all(), still)
    return Solution(codes, found, {"n_iter": taken, "objective": objective})


@checked(learning_rate="[0, inf)")
def dictionary_step(
    dictionary: Float[Array, "pixels atoms"],
    X: Float[Array, "batch pixels"],
    codes: Float[Array, "batch atoms"],
    learning_rate: ArrayLike,
) -> Float[Array, "pixels atoms"]:
    r"""One gradient step of the dictionary for given codes, and atoms of norm 1 again.

    `D <- normalise(D + rate (x - D r)^T r / batch)`; an atom that no signal uses stays.

    Args:
      dictionary: Atoms in columns, (pixels, atoms).
      X: Signals in rows, (batch, pixels).
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
      >>> X, codes = jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0]])
      >>> solve.dictionary_step(atoms, X, codes, 1.0).round(2)
      Array([[0.71, 0.  ],
             [0.71, 1.  ]], dtype=float32)
    """
    X = finite_array("dictionary_step", "X", X, 2)
    residual = X - codes @ dictionary.T
    moved = dictionary + learning_rate * residual.T @ codes / len(X)
    return normalise(moved)


def normalise(dictionary: Array) -> Array:
    """Columns of norm 1; one of norm 0 stays."""
    norm = jnp.linalg.norm(dictionary, axis=0)
    return dictionary / jnp.maximum(norm, 1e-12)


@checked(learning_rate="(0, inf)", tol="[0, inf)")
def dictionary_learning(
    batches: ArrayLike,
    atoms: int,
    penalty: Penalty,
    *,
    key: PRNGKeyArray,
    learning_rate: ArrayLike = 0.5,
    max_steps: int = 100,
    tol: ArrayLike = 0.0,
    w0: ArrayLike | None = None,
    throw: bool = True,
    chunk: int = 100,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Solution:
    r"""Learns a dictionary in which signals have sparse codes, one batch after the other.

    Each batch is coded from 0 by `sparse_code`, then the dictionary takes one `dictionary_step`.
    Can be jitted, and mapped over keys and strengths of the penalty. Compare penalties at equal
    activity, never at equal strength; the sign and the order of the atoms are arbitrary.

    Args:
      batches: Signals, (batches, batch, pixels).
      atoms: Number of atoms, more than pixels for an overcomplete dictionary.
      penalty: Penalty of the codes.
      key: A random key, for the initial dictionary: normal entries, atoms of norm 1.
      learning_rate: Step size of the dictionary.
      max_steps: Steps of each inference.
      tol: As in `sparse_code`.
      w0: Initial dictionary (pixels, atoms).
      throw: Whether to raise if the dictionary is not finite (outside jit).
      chunk: Number of batches between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Solution` with the dictionary (pixels, atoms), of atoms of norm 1, and statistics of each
      batch, coded before its step: `error`, the mean squared error per pixel (batches,), and
      `active`, the mean number of non-zero coefficients per signal (batches,). `usage` (atoms,) is
      the fraction of signals that use an atom in the last batch.

    Raises:
      RuntimeError: If `throw` and the dictionary is not finite.
      ValueError: If the batches are not of shape (batches, batch, pixels), empty, not finite or of
        a size whose square is out of the range of floats, w0 is not (pixels, atoms), or `resume`
        began with other batches or arguments.

    Reference:
      Rentzeperis et al., Beyond l1 sparse coding in V1, 2023 (arXiv 2301.10002).

    Example:
      >>> import jax
      >>> from sparsejax import prox, solve
      >>> batches = jax.random.normal(jax.random.key(0), (5, 20, 16))
      >>> fit = solve.dictionary_learning(batches, 32, prox.cel0(0.1), key=jax.random.key(1))
      >>> fit.value.shape, fit.stats["error"].shape
      ((16, 32), (5,))
    """
    batches = finite_array("dictionary_learning", "batches", batches, 3)
    check_count("atoms", atoms)
    check_key("key", key)
    checked_number("learning_rate", learning_rate, "learning_rate=0.5")
    checked_number("tol", tol, "tol=1e-6")
    check_count("max_steps", max_steps, 0)
    near_one(batches=batches)
    shape = batches.shape[-1], atoms
    first = checked_start("dictionary_learning", w0, shape, batches.dtype)
    if w0 is None:
        first = normalise(jax.random.normal(key, shape, batches.dtype))

    def advance(state, first, last):
        settings = penalty, learning_rate, tol, max_steps
        dictionary, record = _learn(state[0], batches[first:last], *settings)
        return dictionary, jax.tree.map(lambda *x: jnp.concatenate(x), state[1], record)

    arguments = check_loop(
        "dictionary_learning", resume, callback, key=key, atoms=atoms, max_steps=max_steps,
        penalty=type(penalty).__qualname__,
        chunk=chunk, data={"batches": batches, "first": first, "strengths": penalty,
                           "numbers": (learning_rate, tol)},
    )  # fmt: skip
    empty = jnp.zeros(0, batches.dtype), jnp.zeros((0, atoms), batches.dtype)
    dictionary, (error, used) = run_chunks(
        "dictionary_learning", (first, empty), advance, len(batches), arguments,
        chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip
    stats = {"error": error, "active": jnp.sum(used, axis=1), "usage": used[-1]}
    result = code(jnp.isfinite(dictionary).all(), jnp.ones((), bool))
    return finish("dictionary_learning", Solution(dictionary, result, stats), throw)


@jax.jit
def _learn(
    dictionary: Array,
    batches: Array,
    penalty: Penalty,
    learning_rate: ArrayLike,
    tol: ArrayLike,
    max_steps: ArrayLike,
) -> tuple[Array, tuple[Array, Array]]:
    """The dictionary after all batches, and the error and usage of each."""

    def learn(dictionary, X):
        step, codes = (
            0.99 / largest_eigenvalue(dictionary),
            jnp.zeros((len(X), dictionary.shape[1])),
        )
        codes = _code(X, dictionary, penalty, codes.astype(X.dtype), step, tol, max_steps).value
        error = jnp.mean((X - codes @ dictionary.T) ** 2)
        used = jnp.mean((codes != 0).astype(error.dtype), axis=0)
        return dictionary_step(dictionary, X, codes, learning_rate), (error, used)

    return lax.scan(learn, dictionary, batches)
