"""A small language model of characters that several experiments share, and its training.

Llama layers (rotary positions) of width 96 on the help texts of Python, `pydoc_data.topics`: two
layers, four heads, gated networks of 256 neurons, an untied head. A training runs once: snapshots
are kept in .jax_cache, under a name that depends on this file, on the versions and on the training.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import sparsejax as sj

CACHE = pathlib.Path(__file__).parents[2] / ".jax_cache"
WIDTH, HIDDEN, LENGTH, BLOCK = 96, 256, 64, 50


class Text(NamedTuple):
    """Ids of characters, and the characters."""

    train: np.ndarray
    validation: np.ndarray
    characters: str


@functools.cache
def text() -> Text:
    """The first nine tenths of the help texts in the order of their names, and the rest."""
    whole = "\n".join(topics[name] for name in sorted(topics))
    characters = "".join(sorted(set(whole)))
    table = {c: i for i, c in enumerate(characters)}
    ids = np.array([table[c] for c in whole], np.int32)
    cut = int(0.9 * len(ids))
    return Text(ids[:cut], ids[cut:], characters)


def windows(ids: np.ndarray, rows: int) -> jax.Array:
    """Rows of 65 characters, evenly over a text: 64 inputs, and the targets one behind."""
    starts = np.linspace(0, len(ids) - LENGTH - 1, rows).astype(int)
    return jnp.asarray(ids[starts[:, None] + np.arange(LENGTH + 1)])


class Gated(nnx.Module):
    """The gated network of a layer with a choice of activation."""

    def __init__(self, mlp: Any, activation: Callable[[Any], Any]):
        self.gate, self.up, self.down, self.activation = mlp.gate, mlp.up, mlp.down, activation

    def __call__(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def language_model(mlp: Callable[[Any, nnx.Rngs], Any] = lambda old, rngs: old, seed: int = 0):
    """The model; `mlp(old, rngs)` may give other feed-forward networks."""
    config = sj.models.LlamaConfig(
        vocabulary=len(text().characters), width=WIDTH, hidden=HIDDEN, layers=2, heads=4,
        key_heads=4, head_size=WIDTH // 4,
    )  # fmt: skip
    rngs = nnx.Rngs(seed)
    model = sj.models.Llama(config, rngs=rngs)
    for layer in model.layers:
        layer.mlp = mlp(layer.mlp, rngs)
    return model


def cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean loss of the characters behind the first."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), ids[:, 1:]
    ).mean()


def language_loss(model: Any, ids: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """The loss of one batch of windows."""
    return cross_entropy(model(ids[:, :-1]), ids), state


@nnx.jit
def mean_loss(model: Any, ids: jax.Array) -> jax.Array:
    """The mean loss over windows."""
    return cross_entropy(model(ids[:, :-1]), ids)


def train(
    model: Any,
    steps: int,
    *,
    rows: int = 32,
    seed: int = 0,
    loss: Callable[..., Any] = language_loss,
    state: Any = (),
    snapshots: tuple[int, ...] = (),
    tx: optax.GradientTransformation | None = None,
) -> tuple[dict[int, Any], Any]:
    """Trained copies by step, the last included, and the last state of the loss."""
    graphdef, params = nnx.split(model)
    ids = jnp.asarray(text().train)
    tx = tx or optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    def step(carry, key):
        params, opt_state, state = carry
        starts = jax.random.randint(key, (rows, 1), 0, len(ids) - LENGTH)
        batch = ids[starts + jnp.arange(LENGTH + 1)]
        of = lambda p: loss(nnx.merge(graphdef, p), batch, state)  # noqa: E731
        (_, state), grads = jax.value_and_grad(of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    keys = jax.random.split(jax.random.key(seed), steps)
    carry, found = (params, tx.init(params), state), {}
    for end in range(BLOCK, steps + 1, BLOCK):
        carry = run(carry, keys[end - BLOCK : end])
        if end in snapshots or end == steps:
            found[end] = nnx.merge(graphdef, carry[0], copy=True)
    return found, carry[2]


def kept(name: str, model: Any, steps: int, **how: Any) -> dict[int, Any]:
    """`train` with its snapshots in files, which the next call reads."""
    about = f"{jax.__version__} {steps} {how.get('snapshots')} {name}".encode()
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes() + about).hexdigest()[:12]
    at = lambda step: CACHE / f"char-lm-{name}-{digest}-{step}.safetensors"  # noqa: E731
    wanted = sorted({*how.get("snapshots", ()), steps})
    if all(at(step).exists() for step in wanted):
        return {step: sj.load(at(step), model) for step in wanted}
    found, _ = train(model, steps, **how)
    CACHE.mkdir(exist_ok=True)
    for step, trained in found.items():
        sj.save(at(step), trained)
    return found


def trained(activation: str, quick: bool = False) -> dict[int, Any]:
    """The model with gates of "relu" or "silu", by step; step 0 is the initial one."""
    functions = {"relu": jax.nn.relu, "silu": jax.nn.silu}
    model = language_model(lambda old, rngs: Gated(old, functions[activation]))
    steps = (50, 100) if quick else (100, 200, 400, 800, 1200)
    return {0: model} | kept(activation, model, steps[-1], snapshots=steps)
