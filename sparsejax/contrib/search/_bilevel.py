"""Gradients through a training step, for bi-level problems."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree


def bilevel_gradient(
    train_loss: Callable[[PyTree, PyTree], Any],
    validation_loss: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    alpha: PyTree,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: optax.OptState | None = None,
) -> tuple[Array, PyTree]:
    r"""The gradient of the validation loss after one training step, with respect to alpha.

    With `w'(alpha) = w + update(grad_w train_loss(w, alpha))`, the value and the gradient of
    `validation_loss(w'(alpha), alpha)`: second order, exact, differentiated through the step of
    any optax optimizer, including momentum, weight decay and learning rate. Without an optimizer
    w' = w, which is first order.

    Args:
      train_loss: Function (params, alpha) to a scalar, on one training batch.
      validation_loss: The same on a held-out batch.
      params: w, the lower variables.
      alpha: The upper variables, such as operation weights or penalty strengths.
      optimizer: Optimizer of the lower variables; None for first order.
      opt_state: Its state.

    Returns:
      The validation loss and its gradient with respect to alpha, a tree like `alpha`.

    Raises:
      ValueError: If an optimizer is given without its state.

    Reference:
      Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, 2018 (arXiv 1806.09055),
      with the exact derivative in place of finite differences.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from sparsejax.contrib import search
      >>> train = lambda w, a: (w - a) ** 2 / 2  # a step of rate 0.1 gives w' = w - 0.1 (w - a)
      >>> validation = lambda w, a: w
      >>> sgd = optax.sgd(0.1)
      >>> w, a = jnp.array(1.0), jnp.array(3.0)
      >>> value, gradient = search.bilevel_gradient(train, validation, w, a, sgd, sgd.init(w))
      >>> round(float(value), 3), round(float(gradient), 3)
      (1.2, 0.1)
    """
    if optimizer is not None and opt_state is None:
        raise ValueError(
            "bilevel_gradient: opt_state must be the state of the optimizer; pass "
            "optimizer.init(params)."
        )

    def outer(alpha):
        if optimizer is None:
            return validation_loss(params, alpha)
        grads = jax.grad(train_loss)(params, alpha)
        updates, _ = optimizer.update(grads, opt_state, params)  # pyright: ignore
        return validation_loss(optax.apply_updates(params, updates), alpha)

    return jax.value_and_grad(outer)(alpha)
