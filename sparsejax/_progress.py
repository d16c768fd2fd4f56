"""The record of a long procedure: its result, the argument of its callback, its resume point."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree
from rich.progress import Progress as Bar

from ._arguments import check_callable, check_count, check_resume, known
from ._tree import named_leaves, summary


@jax.tree_util.register_static
@dataclass(frozen=True)
class Arguments:
    """The arguments of a run by name; static, so that the leaves of a `Progress` are numbers."""

    items: tuple[tuple[str, Any], ...]


class Progress(NamedTuple):
    """The state of a procedure after some of its steps.

    Every recipe returns one. Recipes and all other long procedures pass one to `callback` after
    each step, or each chunk of steps, and continue from the one passed as `resume`: the result is
    bit for bit that of an uninterrupted run. A pytree of arrays and numbers that can be pickled
    (with orbax, if arrays span processes); a resumed run checks that the arguments are the same.

    Attributes:
      params: The parameters, exactly zero off the masks; or what else is sought, such as the
        weights of a graph.
      masks: The masks; None for leaves that are not planned.
      step: Number of finished steps: rounds, phases, layers, points of a sweep, steps of training.
      extra: Other records by name, described by the recipe; `extra["arguments"]` holds the
        arguments that a resumed run must share.
    """

    params: PyTree
    masks: PyTree
    step: int
    extra: dict[str, Any]

    def __repr__(self) -> str:
        extra = ", ".join(self.extra)
        return (
            f"Progress(step={self.step}, params={summary(self.params)}, "
            f"masks={summary(self.masks)}, extra: {extra or 'nothing'})"
        )


def run_steps(
    what: str,
    done: Progress,
    advance: Callable[[Progress], Progress],
    steps: int,
    *,
    callback: Callable[[Progress], Any] | None,
    progress: bool,
    finished: Callable[[Progress], bool] = lambda done: False,
    shown: Callable[[Progress], tuple[int, int]] | None = None,
) -> Progress:
    """Takes the remaining steps, and reports each time that some are done.

    `shown(done)` is how many steps of how many the bar shows, by default `done.step` of `steps`.
    """
    with Bar(disable=not progress) as bar:
        task = bar.add_task(what)

        def show(done: Progress) -> None:
            completed, total = shown(done) if shown else (done.step, steps)
            bar.update(task, completed=completed, total=total)

        show(done)
        while done.step < steps and not finished(done):
            done = advance(done)
            if callback is not None:
                callback(done)
            show(done)
    return done


def run_chunks(
    what: str,
    begin: Any,
    advance: Callable[[Any, int, int], Any],
    steps: int,
    arguments: Arguments,
    *,
    chunk: int,
    callback: Callable[[Progress], Any] | None,
    resume: Progress | None,
    progress: bool,
    inputs: Any = (),
    finished: Callable[[Any], bool] = lambda state: False,
    view: Callable[[Any], PyTree] = lambda state: state[0],
    shown: Callable[[Any], tuple[int, int]] | None = None,
) -> Any:
    """The state of a loop after all its steps, taken in chunks; at once if it is traced.

    Args:
      what: Name of the procedure.
      begin: The state before the first step, a tree of arrays.
      advance: `(state, first, last) -> state`, takes the steps from `first` up to `last`.
      steps: Number of steps.
      arguments: From `check_progress`.
      chunk: Number of steps between two reports. A resumed run has the same chunks as one that was
        not interrupted, with or without a callback, so that the same programs run.
      callback: As passed by the user.
      resume: As passed by the user.
      progress: Whether to show a progress bar.
      inputs: What else may be traced.
      finished: Whether a state needs no more steps.
      view: The parameters in a state, for `Progress.params`.
      shown: How many steps of how many the bar shows in a state, if not those of `steps`.

    Raises:
      ValueError: If the loop is traced and has a callback or a run to resume, which end with it.
    """
    check_count("chunk", chunk)
    if not known(*jax.tree.leaves((begin, inputs))):
        outside(what, callback, resume, progress)
        return advance(begin, 0, steps)
    if resume is not None and resume.step > steps:
        raise ValueError(f"{what}: resume has made {resume.step} steps, more than {steps}.")

    def record(state: Any, step: int) -> Progress:
        return Progress(view(state), None, step, {"arguments": arguments, "state": state})

    def onward(done: Progress) -> Progress:
        last = min(done.step + chunk, steps)
        return record(advance(done.extra["state"], done.step, last), last)

    done = record(begin, 0) if resume is None else resume
    return run_steps(
        what, done, onward, steps, callback=callback, progress=progress,
        finished=lambda done: finished(done.extra["state"]),
        shown=shown and (lambda done: shown(done.extra["state"])),
    ).extra["state"]  # fmt: skip


def outside(what: str, callback: Any, resume: Any, progress: bool) -> None:
    """Raises if a traced loop is to be reported or resumed."""
    if callback is not None or resume is not None or progress:
        raise ValueError(
            f"{what}: callback, resume and progress need a call outside jit and vmap; omit them "
            "here."
        )


def fingerprint(tree: PyTree) -> str:
    """A digest of the names, shapes, dtypes and entries of a tree, for comparison on resuming.

    Sums of the bytes of each array with two sets of weights, computed where the array is. Leaves
    other than arrays, numbers and strings count by their type.
    """
    with jax.ensure_compile_time_eval():  # known arrays, also inside jit
        found = [(name, _summary(x)) for name, x in sorted(named_leaves(tree).items())]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _summary(x: Any) -> Any:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if isinstance(x, str | int | float | complex | None):
        return x
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        return type(x).__qualname__
    if x.dtype.kind in "OSUMm":
        return np.asarray(x).tolist()
    return x.shape, str(x.dtype), *map(int, _sums(jnp.asarray(x)))


@jax.jit
def _sums(x: Array) -> tuple[Array, Array]:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    whole = x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 4
    bits = x if whole else jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}")
    bits = bits.ravel().astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    odd = (place * jnp.uint32(2654435761)) | 1
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(2246822519)
    return jnp.sum(bits * odd, dtype=jnp.uint32), jnp.sum(
        mixed * (odd ^ (odd >> 13)), dtype=jnp.uint32
    )


def appended(extra: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The records with one more value in the history of each name of `now`."""
    return {**extra} | {name: (*extra.get(name, ()), value) for name, value in now.items()}


def check_progress(
    what: str,
    resume: Progress | None,
    callback: Callable[[Progress], Any] | None,
    *,
    plan: Any = None,
    key: Key[Array, ""] | None = None,
    data: Mapping[str, PyTree] | None = None,
    **arguments: Any,
) -> Arguments:
    """The arguments of a run, compared with those of the run that is resumed.

    Args:
      what: Name of the recipe.
      resume: As passed by the user.
      callback: As passed by the user.
      plan: The plan; patterns are compared by value.
      key: The random key.
      data: Arrays and trees of arrays that a resumed run must share, by name; none if traced.
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
    for name, tree in (data or {}).items():
        if known(*jax.tree.leaves(tree)):
            arguments[name] = fingerprint(tree)
    if key is not None and known(key):
        with jax.ensure_compile_time_eval():  # a known key, also inside jit
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


def check_loop(
    what: str,
    resume: Progress | None,
    callback: Callable[[Progress], Any] | None,
    data: Mapping[str, PyTree],
    **arguments: Any,
) -> Arguments:
    """As `check_progress`, for `run_chunks`: data are summed up only if a `Progress` is shown."""
    shown = callback is not None or resume is not None
    return check_progress(what, resume, callback, data=data if shown else {}, **arguments)


def structure(optimizer: Any, params: PyTree) -> str:
    """The structure of an optimizer's state, which tells optimizers apart but not their rates."""
    return str(jax.tree.structure(jax.eval_shape(optimizer.init, params)))


def also_recording(callback: Callable[[Progress], Any] | None, arguments: Arguments) -> Any:
    """The callback of a procedure within another one, whose arguments it adds to the record."""
    if callback is None:
        return None

    def report(done: Progress) -> None:
        items = done.extra["arguments"].items + arguments.items
        callback(done._replace(extra=done.extra | {"arguments": Arguments(items)}))

    return report


def check_shapes(what: str, resume: Progress | None, params: PyTree) -> None:
    """Raises if `resume` is not a `Progress`, or its parameters have other shapes."""
    if resume is None:
        return
    check_resume("resume", resume, Progress)
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
