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
    check_callable,
    check_count,
    check_fraction,
    check_key,
    check_number,
    check_params,
    check_resume,
)
from ..._tree import map_named, named_leaves, pure
from ...prox import nuclear
from ._entries import gather_values, indices_of, select_gradients, write_back
from ._select import below_threshold

_ADAM = optax.scale_by_adam()


class SaRAState(NamedTuple):
    """The state of a run.

    `indices` and `values` are sufficient to restore the fine-tuned network from the pre-trained
    parameters: `write_back(params, values, indices)`.

    Attributes:
      step: Number of steps completed.
      params: The fine-tuned parameters.
      indices: Flat indices of the trained entries, by path.
      values: Their values.
      moments: Adam's moments of the values.
    """

    step: int
    params: PyTree
    indices: PyTree
    values: PyTree
    moments: optax.OptState


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
    state: SaRAState | None = None,
    callback: Callable[[int, float], Any] | None = None,
) -> SaRAState:
    r"""Fine-tunes the weights below a threshold, with gradients and moments for these only.

    Trains `v = P[I]`, `I = {|P| < theta}`, by AdamW on
    `loss(P with v at I) + rank_strength * ||S(v)||_*`, where S has v at I and 0 elsewhere. The
    nuclear norm is that of one matrix per step, drawn uniformly among those with both sides above
    `rank_min_dim`. At `progressive_step` entries that have reached theta are frozen and the moments
    are reset; the parameters do not change in that step.

    Args:
      params: Pre-trained parameters; they are not changed.
      loss: Function of (params, key) to a scalar; the key draws the batch. Jitted.
      key: A random key; step t uses `fold_in(key, t)`.
      theta: Threshold, 2e-3 by default.
      fraction: The fraction of the weights to train; replaces theta.
      where: Regular expression for the paths of the trainable leaves, all by default.
      steps: Number of steps.
      progressive_step: Step at which entries are selected again; None keeps the selection.
      learning_rate: A number or an optax schedule of the step; `1e-3 exp(-350 theta)` by default.
      weight_decay: Decoupled weight decay of the values.
      rank_strength: Strength of the nuclear norm; 0 omits it.
      rank_min_dim: Matrices with a side of at most this size are excluded from the nuclear norm.
      rank_of_all: Whether every step uses the nuclear norm of all these matrices, with an SVD of
        each, rather than of one.
      chunk: Number of steps compiled together, and between two calls of the callback.
      state: A state that an earlier call returned, for example after fewer steps; the run continues
        from it to the same result.
      callback: Called with (step, mean loss since the last call).

    Returns:
      The state after the last step; `state.params` are the fine-tuned parameters.

    Raises:
      TypeError: If `loss` does not take two arguments, `params` hold NNX variables other than
        `nnx.Param`, or `state` is not a `SaRAState`.
      ValueError: If the loss is not finite, nothing is selected, theta and fraction are both given,
        `chunk` is less than 1, or `state` comes from other parameters, another fraction or more
        steps.

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
    check_callable("loss", loss, "params", "key")
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
    run = _runner(loss, rate, weight_decay, rank_strength, rank_min_dim, rank_of_all)
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
        if not owned:  # copy what the caller still holds: the buffers are donated
            held, owned = jax.tree.map(jnp.copy, held), True
        values, new, moments, mean = run(*held, state.indices, key, steps_now)
        if not np.isfinite(float(mean)):
            raise ValueError(
                f"sara: the loss is {float(mean)} between steps {state.step} and "
                f"{state.step + count}; lower learning_rate, or check the loss for NaN."
            )
        state = SaRAState(state.step + count, new, state.indices, values, moments)
        if callback is not None:
            callback(state.step, float(mean))
    return state


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
    # Just above the largest selected magnitude, so that `< theta` selects the same entries.
    return float(np.nextafter(np.float32(max(below, default=0.0)), np.float32(np.inf)))


def _check_state(state, params: PyTree, steps: int, progressive_step, share) -> None:
    """Raises unless a state belongs to this run; `share` is (theta, where), or None."""
    check_resume("state", state, SaRAState)
    if state.step > steps:
        raise ValueError(
            f"sara: state has made {state.step} steps and steps={steps} is fewer; raise steps."
        )
    shapes = [{n: jnp.shape(x) for n, x in named_leaves(t).items()} for t in (state.params, params)]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"state: {name} has shape {shapes[0].get(name)} in state.params and "
                f"{shapes[1].get(name)} in params; pass the params of the first call."
            )
    if share is None:
        return
    chosen = below_threshold(params, theta=share[0], where=share[1])
    selected = sum(int(m.sum()) for m in jax.tree.leaves(chosen))
    found = sum(at.size for at in jax.tree.leaves(state.indices))
    frozen = progressive_step is not None and state.step > progressive_step
    if found > selected or (found < selected and not frozen):
        raise ValueError(
            f"state trains {found} weights and fraction selects {selected}; pass the fraction, "
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
            "sara: no weight is below the threshold, so there is nothing to train; raise theta or "
            "pass fraction=0.1."
        )
    values = gather_values(params, indices)
    return SaRAState(step, params, indices, values, _ADAM.init(values))
