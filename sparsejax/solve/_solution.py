"""What a solver gives back: the value, a result code, statistics."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._tree import register_dataclass
from ..prox._check import known


class Result(enum.IntEnum):
    """How a solver ended; the codes of `Solution.result`."""

    SUCCESSFUL = 0
    MAX_STEPS = 1
    NONFINITE = 2
    WORKING_SET = 3


_MESSAGES = {
    Result.MAX_STEPS: "the tolerance was not reached; raise the number of steps or tol",
    Result.NONFINITE: "a number that is not finite came up; look for NaN or inf in the data",
    Result.WORKING_SET: "the support outgrew the working set; raise working_set",
}


@register_dataclass
@dataclass(frozen=True)
class Solution:
    """The result of a solver, a pytree.

    Attributes:
      value: What was solved for.
      result: A code of `Result`, 0 for success; an array of codes under `jax.vmap`.
      stats: Numbers by name, such as `n_iter` and `gap`.
    """

    value: PyTree
    result: Any
    stats: Mapping[str, Any]

    @property
    def converged(self) -> Any:
        """Whether the result is a success."""
        return self.result == Result.SUCCESSFUL


def finish(solver: str, solution: Solution, throw: bool) -> Solution:
    """The solution, or a RuntimeError if it failed and the code is known (not traced)."""
    if throw and known(solution.result):
        worst = Result(int(np.max(np.asarray(solution.result))))
        if worst != Result.SUCCESSFUL:
            raise RuntimeError(
                f"{solver}: {_MESSAGES[worst]} ({_numbers(solution.stats)}). With throw=False the "
                "unfinished solution comes back, with result and stats to look at."
            )
    return solution


def code(finite: Array, done: Array, otherwise: int | Array = Result.MAX_STEPS) -> Array:
    """The result of a loop that ended."""
    failed = jnp.where(finite, otherwise, Result.NONFINITE)
    return jnp.where(finite & done, Result.SUCCESSFUL, failed).astype(jnp.int32)


def refuse_infinite(value: Array, result: Any) -> Array:
    """The result, or NONFINITE for vectors that are out of the range of floats."""
    return jnp.where(jnp.isfinite(value).all(axis=-1), result, Result.NONFINITE).astype(jnp.int32)


def _numbers(stats: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {float(np.max(np.asarray(v))):.3g}" for k, v in stats.items())
