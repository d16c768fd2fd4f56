"""The record of a long procedure: its result, the argument of its callback, its resume point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree
from rich.progress import track

from .._arguments import check_callable, check_resume
from .._tree import named_leaves
from ..masks import Plan


@jax.tree_util.register_static
@dataclass(frozen=True)
class Arguments:
    """The arguments of a run by name; static, so that the leaves of a `Progress` are numbers."""

    items: tuple[tuple[str, Any], ...]


class Progress(NamedTuple):
    """The state of a procedure after some of its steps.

    Every recipe returns one, passes one to `callback` after each step, and continues from the one
    passed as `resume`: the result equals that of an uninterrupted run. A pytree of arrays and
    numbers that can be pickled; a resumed run checks that the arguments are the same.

    Attributes:
      params: The parameters, exactly zero off the masks.
      masks: The masks; None for leaves that are not planned.
      step: Number of finished steps: rounds, phases, layers or points of a sweep.
      extra: Other records by name, described by the recipe; `extra["arguments"]` holds the
        arguments that a resumed run must share.
    """

    params: PyTree
    masks: PyTree
    step: int
    extra: dict[str, Any]


def run_steps(
    what: str,
    done: Progress,
    advance: Callable[[Progress], Progress],
    steps: int,
    *,
    callback: Callable[[Progress], Any] | None,
    progress: bool,
) -> Progress:
    """Takes the remaining steps, and reports each one."""
    numbers = range(done.step, steps)
    for _ in track(numbers, what, total=len(numbers)) if progress else numbers:
        done = advance(done)
        if callback is not None:
            callback(done)
    return done


def appended(extra: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The records with one more value in the history of each name of `now`."""
    return {**extra} | {name: (*extra.get(name, ()), value) for name, value in now.items()}


def check_progress(
    what: str,
    resume: Progress | None,
    callback: Callable[[Progress], Any] | None,
    *,
    plan: Plan | None = None,
    key: Key[Array, ""] | None = None,
    **arguments: Any,
) -> Arguments:
    """The arguments of a run, compared with those of the run that is resumed.

    Args:
      what: Name of the recipe.
      resume: As passed by the user.
      callback: As passed by the user.
      plan: The plan; patterns are compared by value.
      key: The random key.
      **arguments: Other arguments that a resumed run must share; hashable values.

    Raises:
      TypeError: If `resume` is not a `Progress` or the callback takes no argument.
      ValueError: If an argument differs.
    """
    if callback is not None:
        check_callable("callback", callback, "progress")
    if plan is not None:
        leaves = tuple((x.name, x.shape, x.pattern, x.layout.contraction) for x in plan.leaves)
        arguments |= {"plan": leaves, "joint": plan.joint}
    if key is not None:
        arguments["key"] = tuple(np.asarray(jax.random.key_data(key)).tolist())
    if resume is not None:
        check_resume("resume", resume, Progress)
        before = dict(resume.extra.get("arguments", Arguments(())).items)
        for name, value in arguments.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{what}: resume began with {name}={before.get(name)!r} and cannot continue "
                    f"with {name}={value!r}; resume with the original arguments."
                )
    return Arguments(tuple(arguments.items()))


def check_shapes(what: str, resume: Progress, params: PyTree) -> None:
    """Raises if the parameters of a resumed run have other shapes."""
    before, after = named_leaves(params), named_leaves(resume.params)
    for name in {**before, **after}:
        given, held = (_shape(leaves, name) for leaves in (before, after))
        if given != held:
            raise ValueError(
                f"{what}: {name} has shape {held} in resume.params and {given} in params; resume "
                "with the original params."
            )


def _shape(leaves: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(jnp.shape(leaves[name])) if name in leaves else None
