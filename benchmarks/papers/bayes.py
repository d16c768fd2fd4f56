"""Sparse subspace variational inference against fixed random supports, on digits (2402.11025).

    python -m benchmarks bayes

A Bayesian MLP 64-100-100-10 with Gaussian weights: at each density the support moves (SSVI) or is
random and fixed; dense is plain variational inference. Means of seeds of test accuracy, negative
log-likelihood and expected calibration error of 16 posterior samples.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib import bayes

TRAIN, WIDTHS = 900, (64, 100, 100, 10)


class Network(nnx.Module):
    """A ReLU network of Bayesian layers."""

    def __init__(self, density: float, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2 / density, "fan_in", "normal")
        self.layers = nnx.List(
            bayes.BayesLinear(m, n, kernel_init=init, rngs=rngs) for m, n in zip(WIDTHS, WIDTHS[1:])
        )

    def __call__(self, x, key=None):
        for i, layer in enumerate(self.layers):
            x = jax.nn.relu(x) if i else x
            x = layer(x, None if key is None else jax.random.fold_in(key, i))
        return x


def data_of_digits(seed: int):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    return {"x": x[:TRAIN], "y": y[:TRAIN]}, (x[TRAIN:], y[TRAIN:])


def nll(model, batch, key):
    found = model(batch["x"], key)
    return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()


def trained(seed, density, steps, every=50, **more):
    """Accuracy, NLL and ECE on the test samples."""
    data, (x, y) = data_of_digits(seed)
    model = Network(density, nnx.Rngs(seed))
    plan = sj.plan(model, {r"mu$": sj.Unstructured(1 - density)})
    model = bayes.train_ssvi(
        model, plan, nll, optax.adam(optax.cosine_decay_schedule(3e-3, steps)), data, steps=steps,
        batch_size=64, every=every, key=jax.random.key(seed), **more,
    )  # fmt: skip
    live = sum(int((layer.kernel.std() > 0).sum()) for layer in model.layers)
    p = bayes.predict(model, x, samples=16, key=jax.random.key(100 + seed))
    p = np.asarray(p, np.float64)
    accuracy = np.mean(p.argmax(-1) == np.asarray(y))
    ece = float(sj.metrics.expected_calibration_error(p.astype(np.float32), y))
    return accuracy, log_loss(y, p / p.sum(-1, keepdims=True), labels=np.arange(10)), ece, live


def configurations(densities):
    found = {"dense": partial(trained, density=1.0)}
    for density in densities:
        label = f"{density:.0%}"
        found[f"SSVI {label}"] = partial(trained, density=density)
        found[f"random fixed {label}"] = partial(trained, density=density, drop_fraction=0.0)
    found["SSVI 5%, e_abs"] = partial(trained, density=0.05, criterion=bayes.e_abs)
    return found


def main(quick: bool = False) -> None:
    seeds, steps, densities = (1, 300, (0.05,)) if quick else (3, 2000, (0.1, 0.05, 0.02))
    mean = {
        name: np.mean([run(seed, steps=steps) for seed in range(seeds)], 0)
        for name, run in configurations(densities).items()
    }
    rows = [[name, f"{a:.3f}", f"{n:.3f}", f"{e:.3f}", f"{live:.0f}"]
            for name, (a, n, e, live) in mean.items()]  # fmt: skip
    dense, moving, fixed = (mean[name] for name in ("dense", "SSVI 5%", "random fixed 5%"))
    lost, won = 100 * (dense[0] - moving[0]), 100 * (moving[0] - fixed[0])
    claims = [
        ["points below dense at 5 % (goal: at most 4)", f"{lost:.1f}", bool(lost <= 4)],
        ["points above a fixed support at 5 % (goal: at least 7)", f"{won:.1f}", bool(won >= 7)],
        ["NLL over that of a fixed support at 5 % (goal: at most 0.5)",
         f"{moving[1] / fixed[1]:.2f}", bool(moving[1] <= 0.5 * fixed[1])],
    ]  # fmt: skip
    save(
        "bayes",
        table_of(f"digits, {TRAIN} for training, {steps} steps, {seeds} seeds",
                 ["posterior", "accuracy", "NLL", "ECE", "live weights"], rows),
        table_of("claims", ["claim", "measured"], claims),
        quick=quick, seed=range(seeds),
    )  # fmt: skip
