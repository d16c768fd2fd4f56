"""The result type of solvers: the value, a result code, statistics."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._arguments import known
from ._tree import register, summary


class Result(enum.IntEnum):
    """The codes of `Solution.result`."""

    SUCCESSFUL = 0
    MAX_STEPS = 1
    NONFINITE = 2
    WORKING_SET = 3
    INDEFINITE = 4
    INFEASIBLE = 5


_MESSAGES = {
    Result.MAX_STEPS: "the tolerance was not reached; increase the number of steps or tol",
    Result.NONFINITE: "a number is not finite; check the data for NaN and inf",
    Result.WORKING_SET: "the support outgrew the working set; increase working_set",
    Result.INDEFINITE: "a matrix is not positive definite; pass more data",
    Result.INFEASIBLE: "no candidate agrees with the data; increase the error bounds",
}


@register
@dataclass(frozen=True, repr=False)
class Solution:
    """The result of a solver, a pytree.

    Attributes:
      value: The solution.
      result: A code of `Result`, 0 for success; an array of codes under `jax.vmap`.
      stats: Numbers by name, such as `n_iter` and `gap`.
    """

    value: PyTree
    result: Any
    stats: Mapping[str, Any]

    def __repr__(self) -> str:
        stats = ", ".join(f"{name}={summary(x)}" for name, x in self.stats.items())
        result = Result(int(self.result)).name if _is_code(self.result) else summary(self.result)
        return f"Solution({summary(self.value)}, {result}, {{{stats}}})"

    @property
    def converged(self) -> Any:
        """Whether the solver succeeded."""
        return self.result == Result.SUCCESSFUL


def _is_code(result: Any) -> bool:
    return known(result) and np.ndim(result) == 0


def finish(solver: str, solution: Solution, throw: bool) -> Solution:
    """Returns the solution, or raises if it failed and its result is not traced.

    The last call of every solver. Under `jax.jit` and `jax.vmap` the solution is returned for every
    result.

    Args:
      solver: Name of the solver, the first words of the message.
      solution: The solution.
      throw: Whether to raise on failure.

    Returns:
      The same solution.

    Raises:
      RuntimeError: If `throw` and the result, or one of an array of results, is a failure.

    Example:
      >>> from sparsejax._solution import Result, Solution, finish
      >>> failed = Solution(0.0, Result.MAX_STEPS, {"n_iter": 9})
      >>> finish("mine", failed, throw=False).converged
      False
      >>> finish("mine", failed, throw=True)
      Traceback (most recent call last):
      RuntimeError: mine: the tolerance was not reached; ...
    """
    if throw and known(solution.result):
        worst = Result(int(np.max(np.asarray(solution.result))))
        if worst != Result.SUCCESSFUL:
            raise RuntimeError(
                f"{solver}: {_MESSAGES[worst]} ({_numbers(solution.stats)}). With throw=False the "
                "unconverged solution is returned, with result and stats."
            )
    return solution


def code(finite: Array, done: Array, otherwise: int | Array = Result.MAX_STEPS) -> Array:
    """The result code of a solver.

    Args:
      finite: Whether all numbers are finite.
      done: Whether the solver reached its goal.
      otherwise: The code if it did not.

    Returns:
      `SUCCESSFUL` or `otherwise`; `NONFINITE` takes precedence over both: int32, a scalar or an
      array like the arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax._solution import Result, code
      >>> Result(int(code(jnp.array(True), jnp.array(False)))).name
      'MAX_STEPS'
    """
    failed = jnp.where(finite, otherwise, Result.NONFINITE)
    return jnp.where(finite & done, Result.SUCCESSFUL, failed).astype(jnp.int32)


def refuse_infinite(value: Array, result: Any) -> Array:
    """The result, or NONFINITE for vectors outside the float range."""
    return jnp.where(jnp.isfinite(value).all(axis=-1), result, Result.NONFINITE).astype(jnp.int32)


def _numbers(stats: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {float(np.max(np.asarray(v))):.3g}" for k, v in stats.items())
