"""Training of sparse autoencoders: one step, and the loop over data in memory or a buffer."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree, Shaped

from .._arguments import check_count, check_optimizer, checked, rows_of
from .._minibatches import minibatches
from .._progress import Progress, check_loop, run_chunks, structure
from .._steady import steady
from ._buffer import ActivationBuffer
from ._sae import SAE, State, Weights

Data = Shaped[Array | np.ndarray, "n d"] | Mapping[str, Any] | ActivationBuffer


class Trained(NamedTuple):
    """Parameters, the state of the optimizer and the state of the autoencoder.

    A pytree: the carry of `train_step`, and the result of `train`, from which training continues
    by `train_step`.
    """

    params: PyTree
    opt_state: PyTree
    state: State


@checked()
def begin(sae: SAE, params: Weights, optimizer: optax.GradientTransformation) -> Trained:
    """The carry before the first `train_step`.

    Args:
      sae: The autoencoder.
      params: Initial parameters, from `sae.init`.
      optimizer: The optimizer that `train_step` receives.

    Example:
      >>> import jax, optax, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(1))
      >>> carry = sj.sae.begin(sae, sae.init(2, 4, key=jax.random.key(0)), optax.adam(1e-3))
      >>> int(carry.state.step)
      0
    """
    params = dict(params)
    tx = whole_optimizer(optimizer, sae.constraint, "threshold" in params)
    return Trained(params, tx.init(params), sae.state(params))


@checked()
def train_step(
    sae: SAE, optimizer: optax.GradientTransformation, carry: Trained, batch: Any
) -> Trained:
    """One step of training on a batch; `jax.vmap` over carries trains several on the same batch.

    Compiled once for each autoencoder, optimizer and shape. The optimizer is wrapped by
    `sae.constraint`, and thresholds of `JumpReLU` are projected to values of at least 0.

    Args:
      sae: The autoencoder.
      optimizer: An optax transformation, the same object at each call.
      carry: From `begin` or from the last step.
      batch: Samples `(n, d)`, or a dict of them with `x`, and `grad` or `target`.

    Returns:
      The next carry; `carry.state.loss` is the loss of this batch.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> sae, adam = sj.sae.SAE(sj.sae.TopK(1), constraint=sj.optim.unit_norm), optax.adam(1e-2)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> start = jax.vmap(lambda key: sj.sae.begin(sae, sae.init(2, 4, key=key), adam))(keys)
      >>> step = jax.vmap(lambda carry: sj.sae.train_step(sae, adam, carry, jnp.eye(2)))
      >>> step(start).params["W_dec"].shape
      (3, 4, 2)
    """
    return _step(sae, optimizer, carry, batch)


@partial(jax.jit, static_argnames="optimizer")
def _step(sae: SAE, optimizer: Any, carry: Trained, batch: PyTree) -> Trained:
    params, opt_state, state = carry
    tx = whole_optimizer(optimizer, sae.constraint, "threshold" in params)
    grads, after = jax.grad(lambda p: sae.loss(p, batch, state), has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    # The state keeps its dtypes: with x64 the numbers of a loss may be wider.
    after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
    return Trained(optax.apply_updates(params, updates), opt_state, after)


@partial(jax.jit, static_argnames="optimizer")
def _steps(sae: SAE, optimizer: Any, carry: Trained, data: PyTree, rows: Array) -> Trained:
    def step(carry, row):
        return _step(sae, optimizer, carry, jax.tree.map(lambda x: x[row], data)), None

    return jax.lax.scan(step, carry, rows)[0]


@lru_cache(64)
def whole_optimizer(optimizer: Any, constraint: Any, jumps: bool) -> optax.GradientTransformation:
    """The optimizer, its constraint, and thresholds of at least 0."""
    tx = steady(optimizer) if constraint is None else constraint(optimizer)
    if not jumps:
        return tx
    at_threshold = lambda params: {name: name == "threshold" for name in params}  # noqa: E731
    return optax.chain(tx, optax.masked(optax.keep_params_nonnegative(), at_threshold))


@lru_cache(64)
def _adam(latents: int, steps: int) -> optax.GradientTransformation:
    """Adam with gradients clipped to norm 1, a warm-up, and a linear decay in the last fifth."""
    peak, warmup, decay = 2e-4 / (latents / 2**14) ** 0.5, min(1000, steps // 5), steps // 5
    rate = optax.join_schedules(
        [
            optax.linear_schedule(peak / max(warmup, 1), peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, max(decay, 1)),
        ],
        [warmup, steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@checked(steps="[0, inf)", batch_size="[1, inf)", chunk="[1, inf)")
def train(
    sae: SAE,
    params: Weights,
    data: Data,
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int,
    key: Key[Array, ""],
    batch_size: int = 4096,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Trained:
    r"""Trains an autoencoder on activations.

    Data in memory are visited once an epoch in a new order. Then the function can be traced: jit
    it, and vmap it over keys, parameters or numbers of the autoencoder (k, strengths), which are
    then trained in one pass. An `ActivationBuffer` streams more than memory holds.

    Args:
      sae: The autoencoder.
      params: Initial parameters, from `sae.init`.
      data: Samples `(n, d)`; a dict of arrays with `x`, and `grad` for `GradientTopK` or `target`
        for a transcoder; or an `ActivationBuffer`, with its own batch size and order.
      optimizer: An optax transformation; None for Adam of rate `2e-4 / sqrt(h / 2^14)` with a
        warm-up of 1000 steps, a linear decay in the last fifth, and gradients clipped to norm 1.
      steps: Number of steps.
      key: A key made by `jax.random.key`, for the order of the samples.
      batch_size: Samples per step; at most all of them.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk, whose `extra["state"]` is a
        `Trained`; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      Parameters and states. `sae.inference(params, state)` is for use after training.

    Raises:
      ValueError: If shapes do not agree, or `resume` began with other arguments.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> x = jnp.eye(8)
      >>> sae = sj.sae.SAE(sj.sae.TopK(1), constraint=sj.optim.unit_norm)
      >>> params = sae.init(8, 32, key=jax.random.key(0))
      >>> tx = optax.adam(1e-2)
      >>> done = sj.sae.train(sae, params, x, tx, steps=200, key=jax.random.key(1))
      >>> bool(jnp.abs(sae(done.params, x) - x).max() < 0.1)
      True
    """
    optimizer = _adam(params["W_dec"].shape[0], steps) if optimizer is None else optimizer
    check_optimizer("train", optimizer)
    begun = begin(sae, params, optimizer)
    source = _source(data, steps, int(batch_size), key)
    arguments = check_loop(
        "train", resume, callback, key=key, batch_size=batch_size, chunk=chunk, sae=_names(sae),
        data={"params": params, "numbers": jax.tree.leaves(sae), "data": source.data,
              "optimizer": structure(optimizer, params)},
    )  # fmt: skip
    if resume is not None:
        source.restore(resume.extra["state"][1])
    carry, _ = run_chunks(
        "train", (begun, source.position()),
        lambda state, first, last: source.advance(sae, optimizer, state[0], first, last),
        steps, arguments, chunk=chunk, callback=callback, resume=resume, progress=progress,
        inputs=(source.data, jax.tree.leaves(sae)), view=lambda state: state[0].params,
    )  # fmt: skip
    return carry


def _names(sae: SAE) -> tuple[Any, ...]:
    """The parts of an autoencoder without their numbers, the same in every process."""
    parts = [type(x).__name__ for x in (sae.activation, sae.reconstruction, *sae.losses)]
    constraint = getattr(sae.constraint, "__qualname__", None)
    return (*parts, constraint, sae.normalize, sae.center, sae.transcoder, sae.rescale)


class _InMemory:
    """Minibatches of arrays, taken in one scan."""

    def __init__(self, data: PyTree, steps: int, batch_size: int, key: Array):
        self.data = jax.tree.map(jnp.asarray, data)
        self.rows = minibatches(rows_of("data", data), batch_size, steps, key=key)

    def position(self) -> PyTree:
        return ()

    def restore(self, position: PyTree) -> None:
        del position

    def advance(self, sae: SAE, optimizer: Any, carry: Trained, first: int, last: int) -> Any:
        return _steps(sae, optimizer, carry, self.data, self.rows[first:last]), ()


class _Streamed:
    """Batches of a buffer, one step at a time."""

    data = ()

    def __init__(self, buffer: ActivationBuffer):
        self.buffer = buffer

    def position(self) -> PyTree:
        return self.buffer.position()

    def restore(self, position: PyTree) -> None:
        self.buffer.restore(position)

    def advance(self, sae: SAE, optimizer: Any, carry: Trained, first: int, last: int) -> Any:
        for _ in range(first, last):
            carry = _step(sae, optimizer, carry, self.buffer.batch())
        return carry, self.position()


@singledispatch
def _source(data: Any, steps: int, batch_size: int, key: Array) -> Any:
    check_count("steps", steps, 0)
    return _InMemory(data, steps, batch_size, key)


@_source.register
def _(data: ActivationBuffer, steps: int, batch_size: int, key: Array) -> Any:
    del steps, batch_size, key
    return _Streamed(data)
