"""The record of a long procedure: its result, the argument of its callback, its resume point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from rich.progress import track

from .._arguments import check_callable, check_resume
from .._tree import named_leaves
from ..masks import Plan


@jax.tree_util.register_static
@dataclass(frozen=True)
class Arguments:
    """The arguments of a run as text, by name; static, so that a `Progress` holds numbers only."""

    items: tuple[tuple[str, str], ...]


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


def check_progress(
    what: str,
    resume: Progress | None,
    callback: Callable[[Progress], Any] | None,
    arguments: Mapping[str, Any],
) -> Arguments:
    """The arguments as text, compared with those of the run that is resumed.

    Raises:
      TypeError: If `resume` is not a `Progress` or the callback takes no argument.
      ValueError: If an argument differs.
    """
    if callback is not None:
        check_callable("callback", callback, "progress")
    now = {name: _text(value) for name, value in arguments.items()}
    if resume is None:
        return Arguments(tuple(now.items()))
    check_resume("resume", resume, Progress)
    before = dict(resume.extra["arguments"].items) if "arguments" in resume.extra else {}
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{what}: resume began with {name}={before.get(name)} and cannot continue with "
                f"{name}={now.get(name)}; resume with the original arguments."
            )
    return Arguments(tuple(now.items()))


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


def _text(value: Any) -> str:
    if isinstance(value, Plan):
        leaves = ", ".join(f"{x.name}{list(x.shape)}: {x.pattern}" for x in value.leaves)
        return leaves + (", compared across leaves" if value.joint else "")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {np.asarray(jax.random.key_data(value)).tolist()}"
    return repr(value)
