"""Essential sparsity of a pre-trained network on digits (2306.03805).

    python -m benchmarks essential_sparsity

A trunk 64-256-256 learns to fill in missing pixels; then the smallest weights are removed in one
shot and the rest is fine-tuned, with a new head, on three tasks. The drop points differ by task.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._digits import logits, mlp
from benchmarks._report import save, table_of

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TRUNK = {"layer_[01]/kernel": sj.Unstructured(0.5)}
TASKS = {
    "10-way": (10, lambda y: y),
    "parity": (2, lambda y: y % 2),
    "digit >= 5": (2, lambda y: y // 5),
}


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def pretrain(x, steps):
    """Reconstruction of all pixels from a random 60 % of them."""

    def loss(p, batch):
        key = jax.random.fold_in(jax.random.key(5), batch["i"][0])
        seen = jax.random.bernoulli(key, 0.6, batch["x"].shape)
        return jnp.mean((logits(p, batch["x"] * seen) - batch["x"]) ** 2)

    # Rows are repeated so that a row is hidden in another way each time.
    many = {"x": jnp.tile(x, (64, 1)), "i": jnp.arange(64 * len(x))}
    run = jax.jit(
        lambda p: sj.recipes.train_masked(
            p,
            None,
            loss,
            optax.adamw(1e-3, weight_decay=1e-2),
            many,
            steps=steps,
            key=jax.random.key(1),
        )  # fmt: skip
    )
    return run(mlp((64, 256, 256, 64), jax.random.key(0)))


def task(trunk, classes, data, test, steps):
    """Parameters with a head, and how they are fine-tuned and scored."""

    def head(key):
        return mlp((256, classes), key)["layer_0"]

    def loss(p, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(p, batch["x"]), batch["y"]
        ).mean()

    @jax.jit
    def finetune(params, masks, key):
        rate = optax.linear_schedule(2e-4, 0.0, steps)
        return sj.recipes.train_masked(
            params | {"layer_2": head(key)}, masks, loss, optax.adamw(rate), data,
            steps=steps, key=key,
        )  # fmt: skip

    @jax.jit
    def evaluate(params):
        return jnp.mean(logits(params, test["x"]).argmax(-1) == test["y"])

    start = {name: trunk[name] for name in ("layer_0", "layer_1")}
    return start | {"layer_2": head(jax.random.key(0))}, finetune, evaluate


def main(quick: bool = False) -> None:
    pretrain_steps, steps, seeds = (100, 20, 1) if quick else (3000, 300, 3)
    x, y, x_test, y_test = digits()
    trunk = pretrain(x, pretrain_steps)
    rows, essential, scores, at_90, falls = [], {}, {}, {}, {}
    by_layer, left = {}, {}
    for name, (classes, label) in TASKS.items():
        data, test = {"x": x, "y": label(y)}, {"x": x_test, "y": label(y_test)}
        params, finetune, evaluate = task(trunk, classes, data, test, steps)
        options = dict(rules=TRUNK, finetune=finetune, seeds=seeds, key=jax.random.key(2))
        sweep = sj.recipes.sparsity_sweep(params, evaluate, sparsities=GRID, **options)
        chance = sj.recipes.sparsity_sweep(
            params, evaluate, sparsities=[0.9], **options,
            score=lambda p: sj.masks.random(p, key=jax.random.key(9)),
        )  # fmt: skip
        each, each_chance = (
            sj.recipes.sparsity_sweep(
                params, evaluate, sparsities=[0.9], joint=False, score=score, **options
            )
            for score in (None, lambda p: sj.masks.random(p, key=jax.random.key(9)))
        )
        by_layer[name] = np.mean(each.extra["scores"][0]) - np.mean(each_chance.extra["scores"][0])
        left[name] = max(sweep.extra["leaf_sparsity"][9].values())
        mean = np.asarray(sweep.extra["scores"]).mean(1)
        essential[name] = sj.metrics.essential_sparsity(GRID, mean)
        scores[name] = mean
        at_90[name] = mean[9] - np.mean(chance.extra["scores"][0])
        falls[name] = ((mean[9] - mean[10]) / 0.05) / ((mean[0] - mean[5]) / 0.5)
        rows.append(
            [name, *(f"{m:.3f}" for m in mean), f"{np.mean(chance.extra['scores'][0]):.3f}"]
        )
        rows[-1] += [f"{essential[name]:g}", f"{GRID[sj.metrics.knee(GRID, mean)]:g}"]
        if name == "10-way":
            kept = tuple(range(7, 0, -1))
            nm = sj.recipes.sparsity_sweep(
                params, evaluate, patterns=[sj.NM(n, 8) for n in kept], **options
            )
    differ = len(set(essential.values())) > 1
    claims = [
        ["drop points differ by task", ", ".join(f"{e:g}" for e in essential.values()), "differ",
         differ],
        ["magnitude over random at 0.9, smallest", f"{min(at_90.values()):.3f}", "> 0",
         bool(min(at_90.values()) > 0)],
        ["the same with 0.9 in each layer, smallest", f"{min(by_layer.values()):.3f}", "> 0",
         bool(min(by_layer.values()) > 0)],
        ["sparsity of the sparser layer, chosen together at 0.9", f"{max(left.values()):.3f}", ""],
        ["slope .9 to .95 over slope below .5, smallest", f"{min(falls.values()):.1f}", ">= 3",
         bool(min(falls.values()) >= 3)],
    ]  # fmt: skip
    save(
        "essential-sparsity",
        table_of(
            f"accuracy after one-shot pruning and {steps} steps, {seeds} seeds",
            ["task", *(f"{s:g}" for s in GRID), "random .9", "essential", "knee"],
            rows,
            "essential: largest sparsity before the first drop of more than one point",
        ),
        table_of(
            "N:8 along the inputs, 10-way",
            ["kept of 8", *map(str, kept)],
            [["accuracy", *(f"{np.mean(s):.3f}" for s in nm.extra["scores"])]],
        ),
        table_of("what the paper says", ["claim", "found", "goal"], claims),
        quick=quick,
        seed=range(3),
    )
