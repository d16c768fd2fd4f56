"""Norm-aware linear attention: entropy against the norm of queries, time, pixels of digits.

    python -m benchmarks linear_attention

Entropy (2506.21137): 50 directions of a query with norms 0.05 to 2 against 256 keys of size 32.
Time: one head of size 32, forward, best of several. Digits: 8 x 8 images as 64 tokens of one pixel,
two layers of width 32; all maps work there, so that it only tests the layer.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

from benchmarks._report import save, table_of
from sparsejax.contrib.linear_attention import (
    NormAwareAttention,
    attention_entropy,
    linear_attention,
    linear_attention_weights,
    norm_aware,
)

MAPS = {
    "ReLU": lambda q, k: (jax.nn.relu(q), jax.nn.relu(k)),
    "split": partial(norm_aware, map="split"),
    "cos": partial(norm_aware, map="cos"),
}


def entropies(kind, q, keys):
    """Entropy by norm and direction."""
    if kind == "softmax":
        return attention_entropy(jax.nn.softmax(q @ keys.T / np.sqrt(keys.shape[1]), -1))
    fq, fk = MAPS[kind](q, keys)
    rows = fq.reshape(-1, 1, fq.shape[-1])
    weights = linear_attention_weights(rows, fk[:, None], eps=0.0)[0]
    return attention_entropy(weights).reshape(q.shape[:-1])


def entropy_table():
    rng = np.random.default_rng(0)
    keys = jnp.asarray(rng.normal(size=(256, 32)), jnp.float32)
    directions = rng.normal(size=(50, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = np.linspace(0.05, 2, 20)
    q = jnp.asarray(norms[:, None, None] * directions, jnp.float32)
    rows, drops, monotone = [], {}, {}
    for kind in ("softmax", *MAPS):
        found = np.asarray(entropies(kind, q, keys), np.float64)
        found = np.where(np.ptp(found, axis=0) < 1e-5, found[:1], found)  # rounding
        constant = np.ptp(found, axis=0) == 0
        order = [
            0.0 if c else float(np.asarray(spearmanr(norms, e))[0])
            for c, e in zip(constant, found.T)
        ]
        monotone[kind] = int((np.diff(found, axis=0) < 0).all(0).sum())
        drops[kind] = float((found[0] - found[-1]).mean())
        rows.append(
            [kind, f"{np.mean(order):.2f}", f"{drops[kind]:.3f}", f"{monotone[kind]} of 50"]
        )
    ok = monotone["split"] == monotone["cos"] == 50 and drops["ReLU"] == 0
    claim = ["entropy falls with the norm for all directions, and not at all with ReLU", ok]
    columns = ["weights", "rank correlation", "drop in nats", "directions that fall"]
    return table_of("entropy of attention against the norm of the query", columns, rows), claim


def seconds(f, *args, repeats):
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def exponent(lengths, times):
    return float(np.polyfit(np.log(lengths), np.log(times), 1)[0])


def time_table(lengths, repeats):
    def linear(causal, q, k, v):
        fq, fk = norm_aware(q, k)
        return linear_attention(fq, fk, v, causal=causal)

    forms = {
        "softmax": jax.nn.dot_product_attention,
        "norm-aware": partial(linear, False),
        "norm-aware, causal": partial(linear, True),
    }
    times = {name: [] for name in forms}
    for n in lengths:
        args = jax.random.normal(jax.random.key(0), (3, 1, n, 1, 32))
        for name, form in forms.items():
            times[name].append(seconds(jax.jit(form), *args, repeats=repeats))
    rates = {name: exponent(lengths, found) for name, found in times.items()}
    rows = [
        [name, *(f"{1e3 * t:.1f}" for t in found), f"{rates[name]:.2f}"]
        for name, found in times.items()
    ]
    claims = [
        [f"exponent of linear attention {rates['norm-aware']:.2f} (goal 1.2)",
         rates["norm-aware"] <= 1.2],
        [f"exponent of causal linear attention {rates['norm-aware, causal']:.2f} (goal 1.2)",
         rates["norm-aware, causal"] <= 1.2],
        [f"exponent of softmax {rates['softmax']:.2f} (at least 1.7)", rates["softmax"] >= 1.7],
    ]  # fmt: skip
    columns = ["attention", *(f"n = {n}" for n in lengths), "exponent"]
    return table_of("milliseconds of one head of size 32", columns, rows), claims


class Pixels(nnx.Module):
    """Two layers of attention over 64 pixels, of which only the form of attention differs."""

    def __init__(self, kind, rngs):
        self.kind = kind
        self.embed = nnx.Linear(1, 32, rngs=rngs)
        self.place = nnx.Param(0.5 * jax.random.normal(rngs.params(), (64, 32)))
        self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(4)])
        if kind in ("split", "cos"):
            parts = [NormAwareAttention(32, 2, map=kind, rngs=rngs) for _ in range(2)]
        else:
            parts = [nnx.Linear(32, 96, use_bias=False, rngs=rngs) for _ in range(2)]
        self.parts = nnx.List(parts)
        self.up = nnx.List([nnx.Linear(32, 64, rngs=rngs) for _ in range(2)])
        self.down = nnx.List([nnx.Linear(64, 32, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def attend(self, part, x):
        if self.kind in ("split", "cos"):
            return part(x)
        q, k, v = (y.reshape(*x.shape[:2], 2, 16) for y in jnp.split(part(x), 3, -1))
        if self.kind == "softmax":
            y = jax.nn.dot_product_attention(q, k, v)
        else:
            y = linear_attention(jax.nn.relu(q), jax.nn.relu(k), v)
        return y.reshape(x.shape)

    def __call__(self, images):
        x = self.embed(images[..., None]) + self.place[...]
        for i in range(2):
            x = x + self.attend(self.parts[i], self.norms[2 * i](x))
            x = x + self.down[i](jax.nn.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(x.mean(1))


def accuracy(kind, seed, steps):
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    order = jax.random.permutation(jax.random.key(100 + seed), len(x))
    test, train = order[:360], order[360:]
    model = Pixels(kind, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rows):
        def loss(model):
            found = optax.softmax_cross_entropy_with_integer_labels(model(x[rows]), y[rows])
            return found.mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for i in range(steps):
        rows = jax.random.choice(jax.random.key(1000 * seed + i), train, (64,))
        step(model, optimizer, rows)
    return float(jnp.mean(nnx.jit(lambda m: m(x[test]))(model).argmax(-1) == y[test]))


def digits_table(seeds, steps):
    found = {kind: [accuracy(kind, s, steps) for s in range(seeds)] for kind in ("softmax", *MAPS)}
    rows = [[kind, *(f"{a:.3f}" for a in values)] for kind, values in found.items()]
    columns = ["attention", *(f"seed {s}" for s in range(seeds))]
    least = min(min(found["split"]), min(found["cos"]))
    claim = [f"norm-aware layers learn the digits: at least {least:.3f} (goal 0.94)", least >= 0.94]
    return table_of(f"accuracy on digits as 64 tokens, {steps} steps", columns, rows), claim


def main(quick: bool = False) -> None:
    lengths = (512, 1024, 2048) if quick else (1024, 2048, 4096, 8192, 16384)
    seeds, steps = (1, 30) if quick else (2, 300)
    entropy, first = entropy_table()
    speed, others = time_table(lengths, 3 if quick else 5)
    digits, last = digits_table(seeds, steps)
    claims = table_of("claims", ["claim"], [first, *others, last])
    save("linear-attention", entropy, speed, digits, claims, quick=quick, seed=range(seeds))
