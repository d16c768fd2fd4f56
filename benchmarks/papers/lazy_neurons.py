"""Sparse activations that emerge by training, and top-k networks under noise.

    python -m benchmarks lazy_neurons

The share of active neurons of a ReLU language model of characters over training, and networks of
which each sample keeps k of 256 neurons, on scikit-learn's digits with wrong labels (2210.06313):
accuracy, calibration error, accuracy under the noise of ImageNet-C.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from benchmarks._report import save, table_of
from benchmarks.papers._char_lm import text, trained, windows
from sparsejax.contrib import activation_sparsity as gated

WIDTH, HIDDEN, BATCH = 32, 256, 128
KEPT = (256, 32, 8)


class Network(nnx.Module):
    """Two residual blocks of a LayerNorm and a top-k network."""

    def __init__(self, k: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.blocks = nnx.List([gated.TopKMLP(WIDTH, HIDDEN, k, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        return self.last(x)


def digits() -> tuple[Any, Any, Any, Any]:
    """Training and test images in [0, 1] with their labels, in a fixed random order."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    return x[:1200], y[:1200], x[1200:], y[1200:]


def fitted(k: int, noise: float, seed: int, steps: int) -> Any:
    """A trained network; wrong labels are drawn once."""
    x, y, _, _ = digits()
    y = gated.label_noise(y, noise, 10, key=jax.random.key(100 + seed))
    graphdef, params = nnx.split(Network(k, nnx.Rngs(seed)))
    tx = optax.adamw(3e-3)

    @jax.jit
    def run(params, keys):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(x))
            of = lambda p: optax.softmax_cross_entropy_with_integer_labels(  # noqa: E731
                nnx.merge(graphdef, p)(x[rows]), y[rows]
            ).mean()
            updates, state = tx.update(jax.grad(of)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    return nnx.merge(graphdef, run(params, jax.random.split(jax.random.key(seed), steps)))


@nnx.jit
def probabilities(model: Any, x: Any) -> Any:
    """Predicted by a network."""
    return jax.nn.softmax(model(x))


def measured(k: int, noise: float, seeds: int, steps: int) -> dict[str, float]:
    """Means over seeds of accuracy, calibration, noisy accuracies and active neurons."""
    _, _, x, y = digits()
    found = []
    for seed in range(seeds):
        model = fitted(k, noise, seed, steps)
        tested = gated.robustness(partial(probabilities, model), x, y, key=jax.random.key(seed))
        active = gated.neuron_activity(model, [x], where=r"blocks/\d/first$")
        share = np.mean([a.nonzero_fraction for a in active.values()])
        found.append({**tested._asdict(), "active": share})
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def emergence(quick: bool) -> list[float]:
    """The mean share of gates above 0 at the snapshots of the ReLU language model."""
    ids = windows(text().validation, 16 if quick else 64)[:, :-1]
    return [
        float(np.mean([a.nonzero_fraction for a in gated.neuron_activity(m, [ids]).values()]))
        for m in trained("relu", quick).values()
    ]


def claims(shares: list[float], found: dict[Any, Any]) -> list[list[Any]]:
    """The orders that must come out."""
    falls = all(b <= a + 0.01 for a, b in zip(shares, shares[1:]))
    rows = [
        ["the share of active neurons falls over training", f"{shares[0]:.1%} to {shares[-1]:.1%}",
         falls],
        ["it ends below 40 %", f"{shares[-1]:.1%}", shares[-1] < 0.4],
    ]  # fmt: skip
    for noise in sorted({noise for noise, _ in found} - {0.0}):
        dense, sparse = found[noise, 256], found[noise, 32]
        gain = sparse["accuracy"] - dense["accuracy"]
        rows.append([f"{noise:.0%} noise: accuracy, k = 32 over dense", f"{gain:+.3f}", gain > 0])
        drop = dense["calibration_error"] - sparse["calibration_error"]
        rows.append(
            [f"{noise:.0%} noise: calibration error, dense over k = 32", f"{drop:+.3f}", drop > 0]
        )
    return [[name, value, bool(holds)] for name, value, holds in rows]


def main(quick: bool = False) -> None:
    seeds, steps = (1, 200) if quick else (2, 800)
    shares = emergence(quick)
    noises = (0.0, 0.4) if quick else (0.0, 0.4, 0.8)
    found = {(n, k): measured(k, n, seeds, steps) for n in noises for k in KEPT}
    names = list(found[noises[0], 256])
    rows = [
        [f"{noise:.0%}", k, *(f"{x[name]:.3f}" for name in names)]
        for (noise, k), x in found.items()
    ]
    columns = ["label noise", "k", "accuracy", "Gaussian", "impulse", "shot", "ECE", "active"]
    first = table_of(
        "Share of gates above 0 at the snapshots of training", ["model", "shares"],
        [["ReLU language model, initial first", " ".join(f"{s:.1%}" for s in shares)]],
    )  # fmt: skip
    second = table_of(
        f"Digits, k of 256 neurons, {seeds} seeds", columns, rows,
        "Noise of the inputs: mean of five severities; active: gates above 0 before top-k.",
    )  # fmt: skip
    third = table_of("Claims", ["claim", "measured"], claims(shares, found))
    save("lazy-neurons", first, second, third, quick=quick, seed=range(seeds))
