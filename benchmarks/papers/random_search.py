"""Random search over sub-networks of nodes on digits (2403.08265): a neutral baseline.

    python -m benchmarks random_search

The best placed of 100 random node masks before training, one random node mask, and the dense
parent, each trained from the same first weights on the same batches, over ten paired trials.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._digits import cross_entropy, digits, logits, mlp
from benchmarks._report import save, table_of
from sparsejax.contrib import search

WIDTHS, BATCH = (64, 128, 128, 10), 50
SPARSITIES = (0.3, 0.5, 0.7, 0.9, 0.95)
DATA = digits()


def sample(key, params, sparsity):
    graph = sj.nn.surgery.channel_graph(params)
    return sj.nn.surgery.mask_channels(params, graph, search.random_nodes(graph, sparsity, key=key))


def first_loss(params, masks):
    del masks
    return cross_entropy(params, DATA.x, DATA.y)


def train(params, masks, key, epochs):
    """Test accuracy after each epoch of SGD, rate 0.05."""
    optimizer = optax.sgd(0.05)
    tx = optimizer if masks is None else optax.chain(optimizer, sj.optim.keep_masked(masks))
    samples = DATA.x.shape[0] // BATCH * BATCH

    def step(carry, rows):
        params, state = carry
        grads = jax.grad(cross_entropy)(params, DATA.x[rows], DATA.y[rows])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, DATA.x.shape[0])[:samples].reshape(-1, BATCH)
        carry, _ = jax.lax.scan(step, carry, order)
        return carry, jnp.mean(logits(carry[0], DATA.x_test).argmax(-1) == DATA.y_test)

    return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))[1]


def epochs_to(curves, level) -> float:
    """Mean number of epochs until a curve first meets its level; one more than all if never."""
    met = np.asarray(curves) >= level[:, None]
    never = met.shape[1] + 1
    return float(np.where(met.any(1), met.argmax(1) + 1, never).mean())


def edge_sparsity(sparsity: float) -> float:
    params = mlp(WIDTHS, jax.random.key(0))
    masks = sample(jax.random.key(1), params, sparsity)
    kernels = [masks[name]["kernel"] for name in masks]
    return 1 - sum(int(m.sum()) for m in kernels) / sum(m.size for m in kernels)


def main(quick: bool = False) -> None:
    epochs, trials = (4, 2) if quick else (40, 10)
    found = search.compare_random_search(
        lambda key: mlp(WIDTHS, key), sample, first_loss,
        functools.partial(train, epochs=epochs),
        key=jax.random.key(0), sparsities=SPARSITIES[1:2] if quick else SPARSITIES,
        trials=trials,
    )  # fmt: skip
    rows, claims = [], []
    level = 0.9 * np.asarray(found[0].dense)[:, -1]
    parent = np.asarray(found[0].dense)[:, -1].mean()
    for row in found:
        last = {n: np.asarray(x)[:, -1] for n, x in (("s", row.searched), ("r", row.random))}
        apart, p = row.difference, row.p_value
        rows.append([
            f"{row.sparsity:.2f}", f"{edge_sparsity(row.sparsity):.3f}",
            f"{row.losses.min(1).mean():.3f} / {row.losses.mean():.3f}",
            f"{last['s'].mean():.4f} +- {last['s'].std(ddof=1):.4f}",
            f"{last['r'].mean():.4f} +- {last['r'].std(ddof=1):.4f}",
            f"{apart:+.4f} ({p:.2f})",
            f"{epochs_to(row.searched, level):.1f} / {epochs_to(row.random, level):.1f}",
        ])  # fmt: skip
        if row.sparsity <= 0.7:
            claims.append([
                f"node sparsity {row.sparsity}: searched is no better than random",
                f"{apart:+.4f}, p {p:.2f}", "under 1 point, p > .01",
                bool(abs(apart) < 0.01 and p > 0.01),
            ])  # fmt: skip
        if row.sparsity == 0.5:
            loss = parent - last["s"].mean()
            claims.append(["node sparsity 0.5: loss against dense", f"{loss:.4f}", "< 0.015",
                           bool(loss < 0.015)])  # fmt: skip
    placed = [float(r.losses.min(1).mean() - r.losses.mean()) for r in found]
    claims.append(["loss of the searched mask before training, over the mean of the candidates",
                   f"{max(placed):+.3f}", "< 0", max(placed) < 0])  # fmt: skip
    columns = ["node sparsity", "weight sparsity", "first loss: best / mean", "searched", "random",
               "difference (paired p)", "epochs to 90 % of dense"]  # fmt: skip
    dense = np.asarray(found[0].dense)
    caption = (
        f"dense {dense[:, -1].mean():.4f} +- {dense[:, -1].std(ddof=1):.4f}, "
        f"{epochs_to(dense, level):.1f} epochs to 90 % of it; {epochs + 1} means never"
    )
    title = f"digits, {'-'.join(map(str, WIDTHS))}, best of 100 node masks, {trials} trials"
    save(
        "random-search",
        table_of(title, columns, rows, caption=caption),
        table_of("what the paper says", ["claim", "found", "goal"], claims),
        quick=quick,
        seed=0,
    )
