"""What the experiments on scikit-learn's digits share: data, network, one scanned training run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Data(NamedTuple):
    """Pixels / 16 minus their mean, 70 % for training, stratified."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


class Method(NamedTuple):
    """An optimizer, and how the loss sees the parameters: `view(params, opt_state)`."""

    tx: optax.GradientTransformation
    view: Callable[[Any, Any], Any] = lambda params, opt_state: params
    start: Callable[[Any], Any] = lambda params: params


class Result(NamedTuple):
    """What a run leaves: parameters, optimizer state, test accuracy, what `watch` recorded."""

    params: Any
    opt_state: Any
    accuracy: jax.Array
    history: Any


def digits(split_seed: int = 0) -> Data:
    """The digits, split."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.3, stratify=y, random_state=split_seed
    )
    mean = x.mean(0)
    return Data(*map(jnp.asarray, (x - mean, y, x_test - mean, y_test)))


def mlp(widths: tuple[int, ...], key: jax.Array) -> dict:
    """Parameters of a ReLU network, He initialisation: `layer_i/kernel`, `layer_i/bias`."""
    keys = jax.random.split(key, len(widths))
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(keys[i], (m, n)) * np.sqrt(2 / m),
            "bias": jnp.zeros(n),
        }
        for i, (m, n) in enumerate(zip(widths, widths[1:]))
    }


def logits(params: dict, x: jax.Array) -> jax.Array:
    """The network."""
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def cross_entropy(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def train(
    method: Method,
    data: Data,
    widths: tuple[int, ...],
    *,
    steps: int,
    seeds: int,
    batch: int = 64,
    watch: Callable[..., Any] = lambda old, new, grads: None,
    side_by_side: bool = True,
) -> Result:
    """Trains `seeds` networks; everything has a leading axis of seeds.

    Side by side, what a step does only now and then (`lax.cond`) is computed at every step; one
    after the other, only when it is due.
    """

    def one(key):
        key_init, key_data = jax.random.split(key)
        params = method.start(mlp(widths, key_init))

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (batch,), 0, data.x.shape[0])
            grads = jax.grad(
                lambda p: cross_entropy(method.view(p, state), data.x[rows], data.y[rows])
            )(params)
            updates, new = method.tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), new), watch(state, new, grads)

        start = (params, method.tx.init(params))
        (params, state), history = jax.lax.scan(step, start, jax.random.split(key_data, steps))
        predicted = logits(method.view(params, state), data.x_test).argmax(-1)
        return Result(params, state, jnp.mean(predicted == data.y_test), history)

    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(jax.vmap(one) if side_by_side else lambda keys: jax.lax.map(one, keys))(keys)
