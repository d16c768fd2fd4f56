"""Sparse Wide: wider and sparser networks with as many weights, RigL and static masks, on digits.

    python -m benchmarks iso_flop

A 64-h-h-h-10 network (2303.11525 at a small size): all layers of the wider ones are sparse at the
one density that gives exactly the multiply-adds of the dense network of width 12.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib import iso_flop

WIDTHS = (12, 17, 24, 38)


def sizes_of(width):
    return [(64, width), (width, width), (width, width), (width, 10)]


def initial(key, width):
    sizes = sizes_of(width)
    return [
        {"kernel": jax.random.normal(k, s) * np.sqrt(2 / s[0]), "bias": jnp.zeros(s[1])}
        for k, s in zip(jax.random.split(key, len(sizes)), sizes)
    ]


def network(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def run(kind, width, sparsity, seed, data, steps):
    x, y, x_test, y_test = data
    keys = jax.random.split(jax.random.key(seed), 3)
    params = initial(keys[0], width)
    inner = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(optax.cosine_decay_schedule(0.05, steps), 0.9)
    )
    if sparsity > 0:
        plan = sj.plan(params, sj.Unstructured(sparsity), allocate=sj.masks.uniform)
        every = 50 if kind == "RigL" else steps + 1
        tx = sj.optim.rigl(inner, plan, key=keys[1], end=int(0.75 * steps), every=every)
    else:
        tx = inner
    state = tx.init(params)
    if sparsity > 0:
        params = sj.masks.apply_masks(params, sj.get_masks(state))

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (64,), 0, len(x))

        def loss(p):
            logits = network(p, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda c, k: jax.lax.scan(step, c, k)[0][0])
    params = train((params, state), jax.random.split(keys[2], steps))
    return float((network(params, x_test).argmax(-1) == y_test).mean())


def main(quick: bool = False) -> None:
    seeds, steps = (2, 150) if quick else (4, 1500)
    digits = load_digits()
    x = jnp.asarray(digits.data / 16 - 0.3, jnp.float32)
    data = x[:900], jnp.asarray(digits.target[:900]), x[900:], jnp.asarray(digits.target[900:])
    count = lambda width: sum(a * b for a, b in sizes_of(width))  # noqa: E731
    found, rows = {}, []
    for kind in ("RigL", "static"):
        for width in WIDTHS:
            s = iso_flop.match_flops(lambda s, w=width: (1 - s) * count(w), count(12), tol=1e-6)
            scores = [run(kind, width, s, seed, data, steps) for seed in range(seeds)]
            found[kind, width] = np.mean(scores), s
            accuracy = f"{100 * np.mean(scores):.2f} +- {100 * np.std(scores, ddof=1):.2f}"
            rows.append([kind, width, f"{s:.3f}", accuracy])
    gain = max(found["RigL", w][0] for w in WIDTHS[1:]) - found["RigL", 12][0]
    least = min(found["RigL", w][0] - found["static", w][0] for w in (24, 38))
    claims = [
        ["best Sparse Wide with RigL over dense, points (goal 1)", f"{100 * gain:.2f}",
         bool(gain >= 0.01)],
        ["RigL over static at s >= 0.59, points (goal 0)", f"{100 * least:.2f}", bool(least >= 0)],
    ]  # fmt: skip
    title = f"digits, {count(12)} weights, {seeds} seeds"
    save("iso-flop", table_of(title, ["masks", "width", "sparsity", "accuracy"], rows),
         table_of("claims", ["claim", "measured"], claims),
         quick=quick, seed=range(seeds))  # fmt: skip
