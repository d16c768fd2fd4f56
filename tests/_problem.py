"""A small problem that all recipes are tested on: digits of two dimensions, so to speak."""

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj


def mlp(key, widths=(8, 16, 4)):
    keys = jax.random.split(key, len(widths))
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5,
            "bias": jnp.zeros(n),
        }
        for i, (k, m, n) in enumerate(zip(keys, widths, widths[1:]))
    }


def logits(params, x):
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def blobs(key, samples=128, classes=4, features=8, noise=1.0):
    """Gaussian clouds around random centres."""
    centres = 2 * jax.random.normal(jax.random.key(99), (classes, features))
    y = jnp.arange(samples) % classes
    return {"x": centres[y] + noise * jax.random.normal(key, (samples, features)), "y": y}


def loss(params, batch):
    found = logits(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()


def accuracy(params, data):
    return jnp.mean(logits(params, data["x"]).argmax(-1) == data["y"])


PARAMS = mlp(jax.random.key(0))
DATA = blobs(jax.random.key(1))
TEST = blobs(jax.random.key(2))
STEPS = 20


@jax.jit
def train(params, masks, key):
    return sj.recipes.train_masked(
        params, masks, loss, optax.sgd(0.1, 0.9), DATA, steps=STEPS, key=key, batch_size=32
    )


def same(a, b):
    """Equality of trees, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
