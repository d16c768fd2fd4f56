"""Training of sparse Bayesian networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Key, PyTree

from ..._arguments import checked, rows_of
from ..._minibatches import minibatches
from ..._progress import check_loop, run_chunks, structure
from ..._tree import pure
from ...masks import Plan, apply_masks
from ...optim import get_masks
from ...recipes import Progress
from ._model import kernels_of, kl, set_masks
from ._scores import snr
from ._ssvi import ssvi


@checked(steps="[0, inf)", every="[1, inf)", end_fraction="[0, 1]", kl_scale="[0, inf)",
         warmup="[0, 1]", batch_size="[1, inf)", criterion="criterion(mu, sigma)",
         nll="nll(model, batch, key)")  # fmt: skip
def train_ssvi(
    model: nnx.Module,
    plan: Plan,
    nll: Callable[[Any, PyTree, Key[Array, ""]], Any],
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    steps: int,
    key: Key[Array, ""],
    batch_size: int = 128,
    every: int = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
    end_fraction: float = 0.75,
    criterion: Callable[[Array, Array], Array] = snr,
    new_sigma: float | None = None,
    kl_scale: float = 0.01,
    warmup: float = 0.5,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> nnx.Module:
    r"""Trains a Bayesian network whose weights exist on a support of constant size.

    Minimises `nll + min(t / (warmup steps), 1) (kl_scale / n) KL` over minibatches of n samples,
    by `ssvi`. At sparsity 0 it is plain variational inference, at drop_fraction 0 inference on a
    fixed random support.

    Args:
      model: A module of `BayesLinear` and `BayesConv`; it is unchanged.
      plan: The sparse means: `sj.plan(model, {r"mu$": sj.Unstructured(0.95)})`.
      nll: Function `(model, batch, key)` that returns the mean negative log-likelihood of a batch;
        it calls the model with the key, or parts of it.
      optimizer: An optax transformation of all parameters.
      data: A tree of arrays with the samples along their first axis.
      steps: Number of steps; those that move the support update no parameters.
      key: A key from `jax.random.key`, for masks, noise and the order of the samples.
      batch_size: Samples per step; at most all of them.
      every: Steps between two changes of the support.
      drop_fraction: As for `ssvi`.
      end_fraction: Fraction of the steps after which the support is fixed.
      criterion: As for `ssvi`.
      new_sigma: As for `ssvi`.
      kl_scale: Weight of the divergence: 1 is the evidence lower bound, below 1 a cold posterior.
      warmup: Fraction of the steps in which the weight of the divergence rises from 0.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      The trained module, with masks.

    Raises:
      ValueError: If the model has no Gaussian weights, the plan holds other leaves than their
        means, the data are empty or of unequal lengths, or `resume` began with other arguments.
      TypeError: If `nll` cannot be called as `nll(model, batch, key)`.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> model = bayes.BayesLinear(8, 1, rngs=nnx.Rngs(0))
      >>> plan = sj.plan(model, {r"mu$": sj.Unstructured(0.75)})
      >>> nll = lambda model, x, key: jnp.mean((model(x, key)[:, 0] - x[:, 0]) ** 2)
      >>> trained = bayes.train_ssvi(model, plan, nll, optax.adam(0.1), jnp.eye(8), steps=60,
      ...                            key=jax.random.key(0), every=5)
      >>> int((trained.kernel.std() > 0).sum())
      2
    """
    n = rows_of("data", data)
    kernels_of(model)
    draws, order, noise = jax.random.split(key, 3)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)
    tx = ssvi(
        optimizer, plan, key=draws, end=int(end_fraction * steps), every=every,
        drop_fraction=drop_fraction, criterion=criterion, new_sigma=new_sigma,
    )  # fmt: skip
    arguments = check_loop(
        "train_ssvi", resume, callback, key=key, batch_size=batch_size, chunk=chunk, every=every,
        steps=steps, end_fraction=end_fraction, new_sigma=new_sigma, kl_scale=kl_scale,
        warmup=warmup, drop_fraction=None if callable(drop_fraction) else drop_fraction, plan=plan,
        data={"params": params, "rest": rest, "data": data,
              "optimizer": structure(optimizer, params)},
    )  # fmt: skip
    rows = minibatches(n, batch_size, steps, key=order)
    data = jax.tree.map(jnp.asarray, data)
    full = max(warmup * steps, 1)

    def masked(params, state):
        return set_masks(nnx.merge(graph, params, rest), get_masks(state))

    def step(carry, inputs):
        params, state = carry
        t, row = inputs

        def loss(params):
            model = masked(params, state)
            batch = jax.tree.map(lambda x: x[row], data)
            fit = nll(model, batch, jax.random.fold_in(noise, t))
            return fit + jnp.minimum(t / full, 1) * (kl_scale / n) * kl(model)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, inputs: jax.lax.scan(step, carry, inputs)[0])
    state = tx.init(params)
    params, state = run_chunks(
        "train_ssvi", (apply_masks(params, pure(get_masks(state))), state),
        lambda carry, first, last: run(carry, (jnp.arange(first, last), rows[first:last])),
        steps, arguments, chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip
    return masked(params, state)
