"""SaRA: fine-tuning of the weights that matter least."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from ..._arguments import check_count, check_fraction, check_key, check_number
from ..._tree import map_named, named_leaves, pure
from ...formats import gather_values, indices_of, tap, write_back
from ...prox import nuclear
from ...recipes._check import check_callable, check_params, check_resume
from ._select import below_threshold

_ADAM = optax.scale_by_adam()


class SaRAState(NamedTuple):
    """Where a run is: the step, the trained parameters, the indices and values, Adam's moments.

    `indices` and `values` are all that need be saved beside the pre-trained parameters.
    """

    step: int
    params: PyTree
    indices: PyTree
    values: PyTree
    moments: optax.OptState


def sara(
    loss_fn: Callable[[PyTree, Key[Array, ""]], Array],
    params: PyTree,
    key: Key[Array, ""],
    *,
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
    state: SaRAState | None = None,
    callback: Callable[[int, float], Any] | None = None,
) -> SaRAState:
    r"""Fine-tunes the weights below a threshold, with gradients and moments for these only.

    Trains `v = P[I]`, `I = {|P| < theta}`, by AdamW on
    `loss(P with v at I) + rank_strength * ||S(v)||_*`, where S is the array of v at I and 0
    elsewhere; the nuclear norm is of one matrix a step, drawn uniformly among those with both
    sides above `rank_min_dim`. At `progressive_step` what has grown to theta or beyond is frozen,
    the moments start anew and no step is made.

    Args:
      loss_fn: Function of (params, key) to a scalar; the key draws the batch. Jitted.
      params: Pre-trained parameters, not changed.
      key: Key of all that is random; step t uses `fold_in(key, t)`.
      theta: Threshold, 2e-3 by default.
      fraction: Instead of theta: the share of the weights to train.
      where: Regular expression of the leaves that may be trained, all by default.
      steps: Number of steps.
      progressive_step: Step at which entries are selected again; None never does.
      learning_rate: A number or an optax schedule of the step; `1e-3 exp(-350 theta)` by default.
      weight_decay: Of the values, decoupled.
      rank_strength: lambda of the nuclear norm; 0 leaves it out.
      rank_min_dim: Matrices with a side of at most this are left out of it.
      rank_of_all: Whether the nuclear norm is of all those matrices at every step, not of one: an
        SVD of each.
      chunk: Steps that are compiled together, and between two calls of the callback.
      state: A state that an earlier call has returned, after fewer steps for example: the run goes
        on from there, to the same result.
      callback: Called with (step, mean loss since the last call).

    Returns:
      The state after the last step; `state.params` are the fine-tuned parameters.

    Raises:
      TypeError: If `loss_fn` does not take two arguments, `params` hold variables of NNX that are
        not `nnx.Param`s, or `state` is no `SaRAState`.
      ValueError: If nothing is selected, theta and fraction are both given, `chunk` is less than
        1, or `state` is of other parameters, another fraction or more steps.

    Reference:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
      Adaptation, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import sara
      >>> params = {"w": jnp.array([1.0, 0.001, -0.001])}
      >>> loss = lambda params, key: jnp.sum((params["w"] - 1) ** 2)
      >>> state = sara.sara(loss, params, jax.random.key(0), steps=300, learning_rate=0.01,
      ...                         progressive_step=None, weight_decay=0.0)
      >>> state.params["w"].round(1).tolist(), state.indices["w"].tolist()
      ([1.0, 1.0, 1.0], [1, 2])
    """
    check_callable("loss_fn", loss_fn, "params", "key")
    check_count("steps", steps, 0)
    check_count("chunk", chunk)
    check_params("sara", params)
    check_key("key", key)
    params = pure(params)
    theta = _threshold(params, theta, fraction, where)
    if learning_rate is None:
        learning_rate = 1e-3 * float(np.exp(-350 * theta))
    owned = False
    if state is None:
        state = _select(0, params, theta, where)
    else:
        share = None if fraction is None else (theta, where)
        _check_state(state, params, steps, progressive_step, share)
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    run = _runner(loss_fn, rate, weight_decay, rank_strength, rank_min_dim, rank_of_all)
    while state.step < steps:
        if state.step == progressive_step:
            kept = jax.tree.map(lambda v: jnp.abs(v) < theta, state.values)
            state = _reselect(state, kept)
            continue
        ends = [state.step + chunk, steps]
        if progressive_step is not None and state.step < progressive_step:
            ends.append(progressive_step)
        count = min(ends) - state.step
        steps_now = jnp.arange(state.step, state.step + count)
        held = state.params, state.values, state.moments
        if not owned:  # what is donated must not be what the caller still holds
            held, owned = jax.tree.map(jnp.copy, held), True
        values, new, moments, loss = run(*held, state.indices, key, steps_now)
        state = SaRAState(state.step + count, new, state.indices, values, moments)
        if callback is not None:
            callback(state.step, float(loss))
    return state


def _runner(loss_fn, rate, weight_decay, strength, least, every):
    """Some steps in one compiled loop, in place."""

    def run(params, values, moments, indices, key, steps):
        matrices = [
            name
            for name, w in named_leaves(params).items()
            if w.ndim == 2 and min(w.shape) > least and name in named_leaves(indices)
        ]

        def step(carry, t):
            params, values, moments = carry
            batch, draw = jax.random.split(jax.random.fold_in(key, t))
            loss, grads = jax.value_and_grad(lambda v: loss_fn(tap(params, v, indices), batch))(
                values
            )
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
    """The gradient of the nuclear norm of the selected matrices, of one if there is a key."""
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
        check_number("theta", theta, "2e-3")
    if fraction is None:
        return 2e-3 if theta is None else theta
    check_fraction("fraction", fraction)
    chosen = below_threshold(params, fraction=fraction, where=where)
    below = [
        float(jnp.max(jnp.where(m, jnp.abs(w), 0)))
        for w, m in zip(named_leaves(params).values(), jax.tree.leaves(chosen, is_leaf=_is_none))
        if m is not None and m.size
    ]
    # Just above what is selected, so that `< theta` selects the same.
    return float(np.nextafter(np.float32(max(below, default=0.0)), np.float32(np.inf)))


def _check_state(state, params: PyTree, steps: int, progressive_step, share) -> None:
    """Raises if a state is not one of this run; the share is (theta, where), or None."""
    check_resume("state", state, SaRAState)
    if state.step > steps:
        raise ValueError(f"state has made {state.step} steps and steps={steps} asks for fewer.")
    shapes = [{n: jnp.shape(x) for n, x in named_leaves(t).items()} for t in (state.params, params)]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"state: {name} has shape {shapes[0].get(name)} in state.params and "
                f"{shapes[1].get(name)} in params; go on with the params of the first call."
            )
    if share is None:
        return
    chosen = below_threshold(params, theta=share[0], where=share[1])
    asked = sum(int(m.sum()) for m in jax.tree.leaves(chosen))
    found = sum(at.size for at in jax.tree.leaves(state.indices))
    frozen = progressive_step is not None and state.step > progressive_step
    if found > asked or (found < asked and not frozen):
        raise ValueError(
            f"state trains {found} weights and fraction selects {asked}; go on with the fraction, "
            "where and params of the first call."
        )


def _is_none(x: Any) -> bool:
    return x is None


def _select(step: int, params: PyTree, theta: ArrayLike, where: str) -> SaRAState:
    indices = indices_of(below_threshold(params, theta=theta, where=where))
    return _fresh(step, params, indices)


def _reselect(state: SaRAState, kept: PyTree) -> SaRAState:
    indices = jax.tree.map(lambda at, k: at[np.asarray(k)], state.indices, kept)
    return _fresh(state.step + 1, state.params, indices)


def _fresh(step: int, params: PyTree, indices: PyTree) -> SaRAState:
    if not sum(at.size for at in jax.tree.leaves(indices)):
        raise ValueError(
            "sara: no weight is below the threshold, nothing would train; raise theta or give "
            "fraction=0.1."
        )
    values = gather_values(params, indices)
    return SaRAState(step, params, indices, values, _ADAM.init(values))
