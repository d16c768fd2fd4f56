"""Learned masks, and a search for an architecture that is sparse, on digits (2207.06968).

    python -m benchmarks dass

A residual network 64 -> 32, two cells 32-128-32, -> 10, with every matrix at density k. First:
masks learned by scores against magnitude. Then a search over {skip, narrow, wide, linear} for the
two cells, once with the dense network and once with the pruned one, each choice trained and pruned
alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._digits import digits
from benchmarks._report import save, table_of
from sparsejax.contrib import search
from sparsejax.contrib.search import Stage

BATCH, HIDDEN = 50, 32
WIDTHS = {"narrow": 32, "wide": 128}
OPS = ("skip", "narrow", "wide", "linear")
DATA = digits()
# 500 for training, 500 for alpha, the rest of all 1,797 for the test.
X, Y = jnp.concatenate([DATA.x, DATA.x_test]), jnp.concatenate([DATA.y, DATA.y_test])
TRAIN, HELD, TEST = ({"x": X[a:b], "y": Y[a:b]} for a, b in ((0, 500), (500, 1000), (1000, 1797)))
WEIGHTS, SCORES = optax.sgd(0.05), optax.sgd(0.1)


def kernel(key, inputs, outputs):
    return {"kernel": jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5,
            "bias": jnp.zeros(outputs)}  # fmt: skip


def network(key, ops):
    """The parameters of the operations of each cell."""

    def operation(key, op):
        up, down = jax.random.split(key)
        if op in WIDTHS:
            return {"up": kernel(up, HIDDEN, WIDTHS[op]), "down": kernel(down, WIDTHS[op], HIDDEN)}
        return {"only": kernel(up, HIDDEN, HIDDEN)}

    first, last, *keys = jax.random.split(key, 2 + len(ops))
    cells = {
        f"cell_{c}": {op: operation(k, op) for op in names if op != "skip"}
        for c, (names, k) in enumerate(zip(ops, keys))
    }
    return {"first": kernel(first, 64, HIDDEN), **cells, "last": kernel(last, HIDDEN, 10)}


def apply(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def operate(cell, op, x):
    if op == "skip":
        return jnp.zeros_like(x)
    if op == "linear":
        return apply(cell[op]["only"], x)
    return apply(cell[op]["down"], jax.nn.relu(apply(cell[op]["up"], x)))


def logits(params, x, alpha=None, ops=(("wide",), ("wide",))):
    """Residual cells; with alpha each adds the mixture of its operations."""
    h = apply(params["first"], x)
    for c, names in enumerate(ops):
        weights = jnp.ones(1) if alpha is None else jax.nn.softmax(alpha[c])
        cell = params[f"cell_{c}"]
        h = h + sum(w * operate(cell, op, h) for w, op in zip(weights, names))
    return apply(params["last"], h)


def loss_of(ops):
    def loss(params, alpha, batch):
        found = logits(params, batch["x"], alpha, ops)
        return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()

    return loss


def accuracy(params, ops):
    return jnp.mean(logits(params, TEST["x"], None, ops).argmax(-1) == TEST["y"])


def ways(key, ops, plan, steps):
    """Test accuracies: dense, magnitude, learned scores, both fine-tuned, magnitude for longer."""
    k_init, k_dense, k_scores, k_tune = jax.random.split(key, 4)
    loss = lambda p, batch: loss_of(ops)(p, None, batch)  # noqa: E731

    def train(params, masks, times=1):
        return sj.recipes.train_masked(
            params, masks, loss, WEIGHTS, TRAIN, steps=times * steps, key=k_tune, batch_size=BATCH
        )

    dense = sj.recipes.train_masked(
        network(k_init, ops), None, loss, WEIGHTS, TRAIN, steps=steps, key=k_dense, batch_size=BATCH
    )
    masks = plan.masks(sj.masks.magnitude(dense))
    learned = search.score_prune(
        dense, loss, plan, TRAIN, key=k_scores, prune=Stage(steps, SCORES), batch_size=BATCH
    )
    params = [
        dense,
        sj.masks.apply_masks(dense, masks),
        learned.params,
        train(learned.params, learned.masks),
        train(dense, masks),
        train(dense, masks, times=2),
    ]
    return jnp.stack([accuracy(p, ops) for p in params])


def scores(density, ops, seeds, steps):
    plan = sj.plan(network(jax.random.key(0), ops), sj.Unstructured(1 - density))
    keys = jax.random.split(jax.random.key(0), seeds)
    return np.asarray(jax.jit(jax.vmap(lambda k: ways(k, ops, plan, steps)))(keys))


def search_for(key, density, steps):
    """The two operations that alpha prefers: of the dense network for density None."""
    k_init, k_alpha, k_run = jax.random.split(key, 3)
    ops = (OPS, OPS)
    params = network(k_init, ops)
    alpha = 1e-3 * jax.random.normal(k_alpha, (2, len(OPS)))
    plan = sj.plan(params, sj.Unstructured(0.0 if density is None else 1 - density))
    tuned = Stage(steps, WEIGHTS)
    found = search.dass(
        params, alpha, loss_of(ops), plan, TRAIN, HELD, key=k_run, pretrain=tuned,
        prune=Stage(steps, SCORES), finetune=tuned, batch_size=BATCH,
        alpha_optimizer=optax.chain(optax.add_decayed_weights(1e-3), optax.adam(1e-2, b1=0.5)),
    )  # fmt: skip
    return found.alpha


def main(quick: bool = False) -> None:
    seeds, steps, search_steps = (1, 50, 40) if quick else (3, 500, 400)
    wide = (("wide",), ("wide",))
    rows, claims, tuned = [], [], {}
    for density, margin in ((0.1, 2), (0.05, 15)):
        found = 100 * scores(density, wide, seeds, steps)
        mean, sd = found.mean(0), found.std(0)
        rows.append([f"{density:.2f}", *(f"{m:.1f} +- {s:.1f}" for m, s in zip(mean, sd))])
        lead = float(mean[3] - mean[4])
        claims.append([f"k = {density}: learned over magnitude, both fine-tuned for {steps} steps",
                       f"{lead:+.1f}", f">= {margin}", lead >= margin])  # fmt: skip
        lead = float(mean[3] - mean[5])
        claims.append([f"k = {density}: the same over magnitude with the steps of both stages",
                       f"{lead:+.1f}", "", True])  # fmt: skip
    for name, density in (("dense", None), ("pruned, k = 0.05", 0.05)):
        keys = jax.random.split(jax.random.key(3), seeds)
        find = jax.vmap(lambda k, d=density: search_for(k, d, search_steps))
        alphas = np.asarray(jax.jit(find)(keys))
        cells = [tuple((OPS[i],) for i in a.argmax(-1)) for a in alphas]
        reached = [100 * scores(0.05, cell, seeds, steps)[i, 3] for i, cell in enumerate(cells)]
        chosen = ", ".join("+".join(op for (op,) in cell) for cell in cells)
        tuned[name] = [name, chosen, f"{np.mean(reached):.1f} +- {np.std(reached):.1f}"]
    columns = ["k", "dense", "magnitude", "learned scores", "+ fine-tuning",
               "magnitude + fine-tuning", "magnitude + twice as long"]  # fmt: skip
    save(
        "dass",
        table_of(f"digits, 500 for training, {seeds} seeds, test accuracy", columns, rows),
        table_of("what the paper says", ["claim", "points", "goal"], claims),
        table_of("cells that the search finds, and their accuracy at k = 0.05",
                 ["loss that alpha sees", "cells of each seed", "accuracy"], list(tuned.values())),
        quick=quick, seed=(0, 3),
    )  # fmt: skip
