"""Gradients through a training step, for bi-level problems."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..._arguments import checked


@checked(train_loss="train_loss(params, alpha)", validation_loss="validation_loss(params, alpha)")
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
      ValueError: If an optimizer is given without its state, or with the state of another.

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

    if optimizer is not None:
        _check_state(optimizer, opt_state, params)

    def outer(alpha):
        if optimizer is None:
            return validation_loss(params, alpha)
        grads = jax.grad(train_loss)(params, alpha)
        step = lambda grads: optimizer.update(grads, opt_state, params)[0]  # noqa: E731  # pyright: ignore
        updates = _with_value(step(jax.tree.map(_nonzero, grads)), step(grads))
        return validation_loss(optax.apply_updates(params, updates), alpha)

    return jax.value_and_grad(outer)(alpha)


def _check_state(optimizer: Any, opt_state: Any, params: PyTree) -> None:
    """Raises unless the state is one of this optimizer and these parameters."""
    wanted = jax.eval_shape(optimizer.init, params)
    same = jax.tree.structure(opt_state) == jax.tree.structure(wanted)
    shapes = [jax.tree.map(jnp.shape, x) for x in (opt_state, wanted)] if same else [0, 1]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"bilevel_gradient: opt_state={opt_state!r:.80} is not a state of this optimizer for "
            "these params; pass optimizer.init(params)."
        )


def _nonzero(g: Array) -> Array:
    """A gradient without exact zeros, at which the root of a second moment has no derivative."""
    tiny = float(jnp.finfo(g.dtype).tiny) ** 0.32  # neither its square nor 1 / cube leaves floats
    return g + jnp.where(g == 0, jnp.asarray(tiny, g.dtype), jnp.zeros_like(g))


def _with_value(tree: PyTree, value: PyTree) -> PyTree:
    """The derivatives of a tree of updates with the values of another one."""
    fix = lambda u, v: u + jax.lax.stop_gradient(v - u)  # noqa: E731
    return jax.tree.map(fix, tree, value)
