"""SaRA: fine-tuning of the weights of smallest magnitude."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from ..._arguments import (
    check_count,
    check_fraction,
    check_key,
    check_params,
    checked,
    checked_number,
)
from ..._progress import check_loop, check_shapes, run_chunks
from ..._sharding import on_host
from ..._tree import map_named, named_leaves, pure
from ...prox import nuclear
from ...recipes import Progress
from ._entries import gather_values, indices_of, select_gradients, write_back
from ._select import below_threshold

_ADAM = optax.scale_by_adam()


class SaRAState(NamedTuple):
    """The state of a run.

    `indices` and `values` are sufficient to restore the fine-tuned network from the pre-trained
    parameters: `write_back(params, values, indices)`. They include the entries that have been
    frozen since they have grown.

    Attributes:
      step: Number of steps completed.
      params: The fine-tuned parameters.
      indices: Flat indices of the selected entries, by path.
      values: Their values.
      places: The places in `indices` of those that are still trained, by path.
      moments: Adam's moments of these.
    """

    step: int
    params: PyTree
    indices: PyTree
    values: PyTree
    places: PyTree
    moments: optax.OptState


@checked(
    learning_rate="[0, inf)",
    rank_strength="[0, inf)",
    rank_min_dim="[0, inf)",
    loss="loss(params, key)",
)
def sara(
    params: PyTree,
    loss: Callable[[PyTree, Key[Array, ""]], Array],
    *,
    key: Key[Array, ""],
    theta: float | None = None,
    fraction: float | None = None,
    where: str = "",
    steps: int = 5000,
    progressive_step: int | None = 2500,
    learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: float = 1e-2,
    rank_strength: float = 5e-4,
    rank_min_dim: int = 64,
    rank_of_all: bool = False,
    chunk: int = 100,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> SaRAState:
    r"""Fine-tunes the weights below a threshold, with gradients and moments for these only.

    Trains `v = P[I]`, `I = {|P| < theta}`, by AdamW on
    `loss(P with v at I) + rank_strength * ||S(v)||_*`, where S has v at I and 0 elsewhere. The
    nuclear norm is that of one matrix per step, drawn uniformly among those with both sides above
    `rank_min_dim`. At `progressive_step` entries that have reached theta are frozen and the moments
    are reset; the parameters do not change in that step, nor later if all are frozen.

    Args:
      params: Pre-trained parameters; they are not changed.
      loss: Function of (params, key) to a scalar; the key draws the batch. Jitted.
      key: A random key; step t uses `fold_in(key, t)`.
      theta: Threshold, 2e-3 by default.
      fraction: The fraction of the weights to train; replaces theta.
      where: Regular expression for the paths of the trainable leaves, all by default.
      steps: Number of steps.
      progressive_step: Step at which entries are selected again; None keeps the selection.
      learning_rate: A number or an optax schedule of the step; `1e-3 exp(-350 theta)` by default,
        for small theta.
      weight_decay: Decoupled weight decay of the values.
      rank_strength: Strength of the nuclear norm; 0 omits it.
      rank_min_dim: Matrices with a side of at most this size are excluded from the nuclear norm.
      rank_of_all: Whether every step uses the nuclear norm of all these matrices, with an SVD of
        each, rather than of one.
      chunk: Number of steps compiled together, and between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; `extra["state"]` holds the
        `SaRAState` and the mean loss of each chunk.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      The state after the last step; `state.params` are the fine-tuned parameters.

    Raises:
      TypeError: If `loss` does not take two arguments, `params` hold NNX variables other than
        `nnx.Param`, or `resume` is not a `Progress`.
      ValueError: If the loss is not finite, nothing is selected, theta and fraction are both given,
        a number is negative or NaN, the default learning rate is too small for theta to train
        anything, or `resume` began with other parameters or arguments.

    Reference:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
      Adaptation, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> params = {"w": jnp.array([1.0, 0.001, -0.001])}
      >>> loss = lambda params, key: jnp.sum((params["w"] - 1) ** 2)
      >>> state = sara.sara(params, loss, key=jax.random.key(0), steps=300, learning_rate=0.01,
      ...                   progressive_step=None, weight_decay=0.0)
      >>> state.params["w"].round(1).tolist(), state.indices["w"].tolist()
      ([1.0, 1.0, 1.0], [1, 2])
    """
    check_count("steps", steps, 0)
    check_count("chunk", chunk)
    check_params("sara", params)
    check_key("key", key)
    params = pure(params)
    for name, number in (("weight_decay", weight_decay), ("rank_strength", rank_strength)):
        checked_number(name, number, f"{name}=1e-3")
    if progressive_step is not None:
        check_count("progressive_step", progressive_step, 0)
    check_shapes("sara", resume, params)
    theta = _threshold(params, theta, fraction, where)
    rate = _rate(learning_rate, theta, steps)
    arguments = check_loop(
        "sara", resume, callback, {"params": params}, key=key, theta=theta, where=where,
        progressive_step=progressive_step, weight_decay=weight_decay, chunk=chunk,
        rank=(rank_strength, rank_min_dim, rank_of_all),
        learning_rate=None if callable(learning_rate) else learning_rate,
    )  # fmt: skip
    run = _runner(loss, rate, weight_decay, rank_strength, rank_min_dim, rank_of_all)

    def advance(held, first, last):
        state, losses = held
        if callback is not None:  # the buffers are donated, and the callback may have kept them
            state = jax.tree.map(jnp.copy, state)
        while state.step < last:
            if state.step == progressive_step:
                state = _reselect(state, theta)
                continue
            before = progressive_step is not None and state.step < progressive_step
            end = min(last, progressive_step) if before else last  # pyright: ignore
            state, mean = _train(run, state, key, end)
            losses = (*losses, mean)
        return state, losses

    begin = _select(jax.tree.map(jnp.copy, params), theta, where)
    return run_chunks(
        "sara", (begin, ()), advance, steps, arguments, chunk=chunk, callback=callback,
        resume=resume, progress=progress, view=lambda held: held[0].params,
    )[0]  # fmt: skip


def _train(run, state: SaRAState, key, end: int) -> tuple[SaRAState, Array]:
    """Trains the entries that are not frozen, if any."""
    at, values = (_at(x, state.places) for x in (state.indices, state.values))
    if not sum(x.size for x in jax.tree.leaves(at)):
        return state._replace(step=end), jnp.array(jnp.nan)
    steps = jnp.arange(state.step, end)
    values, params, moments, mean = run(state.params, values, state.moments, at, key, steps)
    if not np.isfinite(float(mean)):
        raise ValueError(
            f"sara: the loss is {float(mean)} between steps {state.step} and {end}; lower "
            "learning_rate, or check the loss for NaN."
        )
    whole = jax.tree.map(lambda v, p, new: v.at[p].set(new), state.values, state.places, values)
    return state._replace(step=end, params=params, values=whole, moments=moments), mean


def _at(x: PyTree, places: PyTree) -> PyTree:
    return jax.tree.map(lambda v, p: v[p], x, places)


def _rate(learning_rate, theta: float, steps: int) -> Callable[[Any], Any]:
    """The learning rate of a step."""
    if callable(learning_rate):
        return learning_rate
    if learning_rate is not None:
        checked_number("learning_rate", learning_rate, "learning_rate=1e-3")
        return lambda step: learning_rate
    rate = 1e-3 * float(np.exp(-350 * theta))
    if steps and steps * rate < 1e-3 * theta:
        raise ValueError(
            f"sara: the default learning_rate 1e-3 exp(-350 theta) is {rate:.3g} for "
            f"theta={theta:.3g}, which moves weights of that size by nothing in {steps} steps; "
            "pass one: learning_rate=1e-3."
        )
    return lambda step: rate


def _runner(loss_of, rate, weight_decay, strength, least, every):
    """A jitted loop over several steps that updates its arguments in place."""

    def run(params, values, moments, indices, key, steps):
        matrices = [
            name
            for name, w in named_leaves(params).items()
            if w.ndim == 2 and min(w.shape) > least and name in named_leaves(indices)
        ]

        def step(carry, t):
            params, values, moments = carry
            batch, draw = jax.random.split(jax.random.fold_in(key, t))
            seen = lambda v: select_gradients(params, v, indices)  # noqa: E731
            loss, grads = jax.value_and_grad(lambda v: loss_of(seen(v), batch))(values)
            if strength and matrices:
                drawn = None if every else draw
                grads = _add_rank(grads, values, params, indices, matrices, strength, drawn)
            moves, moments = _ADAM.update(grads, moments, values)
            values = jax.tree.map(lambda v, u: v - rate(t) * (u + weight_decay * v), values, moves)
            return (write_back(params, values, indices), values, moments), loss

        (params, values, moments), losses = jax.lax.scan(step, (params, values, moments), steps)
        return values, params, moments, jnp.mean(losses)

    return jax.jit(run, donate_argnums=(0, 1, 2))


def _add_rank(grads, values, params, indices, matrices, strength, key):
    """Adds the gradient of the nuclear norm: of one random matrix, or without a key of all."""
    by_name, at, leaves = (named_leaves(x) for x in (values, indices, params))

    def pull(name):
        zeros = jnp.zeros(leaves[name].shape, by_name[name].dtype)
        matrix = write_back({"": zeros}, {"": by_name[name]}, {"": at[name]})
        polar = jax.grad(nuclear(strength).value)(matrix[""])
        return gather_values({"": polar}, {"": at[name]})[""]

    def only(chosen):
        return lambda: {
            name: pull(name) if name in chosen else 0 * v for name, v in by_name.items()
        }

    if key is None:
        pulls = only(matrices)()
    else:
        drawn = jax.random.randint(key, (), 0, len(matrices))
        pulls = jax.lax.switch(drawn, [only([name]) for name in matrices])
    return map_named(lambda name, g, p: g + p, grads, pulls)


def _threshold(params, theta, fraction, where) -> float:
    if theta is not None and fraction is not None:
        raise ValueError("sara: give theta or fraction, not both.")
    if theta is not None:
        checked_number("theta", theta, "theta=2e-3")
    if fraction is None:
        return 2e-3 if theta is None else float(theta)
    check_fraction("fraction", fraction)
    chosen = below_threshold(params, fraction=fraction, where=where)
    below = [
        float(jnp.max(jnp.where(m, jnp.abs(w), 0)))
        for w, m in zip(named_leaves(params).values(), jax.tree.leaves(chosen, is_leaf=_is_none))
        if m is not None and m.size
    ]
    # Just above the largest selected magnitude, so that `< theta` selects the same entries.
    return float(np.nextafter(np.float32(max(below, default=0.0)), np.float32(np.inf)))


def _is_none(x: Any) -> bool:
    return x is None


def _select(params: PyTree, theta: ArrayLike, where: str) -> SaRAState:
    indices = indices_of(below_threshold(params, theta=theta, where=where))
    if not sum(at.size for at in jax.tree.leaves(indices)):
        raise ValueError(
            "sara: no weight is below the threshold, so there is nothing to train; raise theta or "
            "pass fraction=0.1."
        )
    values = gather_values(params, indices)
    places = jax.tree.map(lambda at: jnp.arange(at.size), indices)
    return SaRAState(0, params, indices, values, places, _ADAM.init(values))


def _reselect(state: SaRAState, theta: float) -> SaRAState:
    values = _at(state.values, state.places)
    places = jax.tree.map(lambda p, v: p[np.abs(on_host(v)) < theta], state.places, values)
    moments = _ADAM.init(_at(state.values, places))
    return state._replace(step=state.step + 1, places=places, moments=moments)
