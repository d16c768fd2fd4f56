"""Sparse model soups on digits with a quarter of the labels wrong (2306.16788).

    python -m benchmarks soups [--repeats 20]

Against their candidates, iterative pruning (IMP), IMP with five times the epochs, and the average
of three independent runs, whose masks differ. Paired repeats: one seed serves a whole row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._digits import cross_entropy, logits, mlp
from benchmarks._report import save, table_of

GOALS, PHASES, COPIES = (0.8, 0.9, 0.95), 3, 5
WIDTHS, BATCH = (64, 256, 128, 10), 54
EPOCH = 540 // BATCH
DENSE, RETRAIN = 40 * EPOCH, 15 * EPOCH
HISTORY = np.asarray(optax.linear_schedule(0.1, 0.0, DENSE)(np.arange(DENSE)))


def split(seed):
    """540 digits to train on, a quarter of their labels drawn at random; 1,197 clean to test."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    noisy = y[:540].copy()
    wrong = rng.permutation(540)[:135]
    noisy[wrong] = rng.integers(0, 10, 135)
    return {"x": jnp.asarray(x[:540]), "y": jnp.asarray(noisy)}, jnp.asarray(x[540:]), y[540:]


def trainer(schedule, steps):
    """`train(params, masks, key, data)`, compiled once for all masks and data."""
    sgd = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(schedule, 0.9, nesterov=True))

    @jax.jit
    def train(params, masks, key, data):
        return sj.recipes.train_masked(
            params, masks, lambda p, b: cross_entropy(p, b["x"], b["y"]), sgd, data,
            steps=steps, key=key, batch_size=BATCH,
        )  # fmt: skip

    return train


DENSE_TRAIN = trainer(optax.linear_schedule(0.1, 0.0, DENSE), DENSE)
SHORT, LONG = (
    trainer(sj.recipes.retraining_schedule("llr", n, HISTORY), n)
    for n in (RETRAIN, COPIES * RETRAIN)
)


def repeat(seed, goals):
    """Test accuracies of one seed: goal -> name -> number."""
    data, x_test, y_test = split(seed)
    key = jax.random.key(seed)
    forward = jax.jit(lambda p: logits(p, x_test).argmax(-1))
    accuracy = lambda p: float(np.mean(np.asarray(forward(p)) == y_test))  # noqa: E731
    init = mlp(WIDTHS, key)
    dense = DENSE_TRAIN(init, None, key, data)
    short = lambda p, masks, key: SHORT(p, masks, key, data)  # noqa: E731
    long = lambda p, masks, key: LONG(p, masks, key, data)  # noqa: E731
    found = {}
    for goal in goals:
        plan = sj.plan(init, sj.Unstructured(goal), allocate=sj.masks.joint)
        imp = lambda train, k, plan=plan: sj.recipes.iterative_prune(  # noqa: E731
            dense, train, plan, key=jax.random.key(1000 * seed + k), rounds=PHASES,
            rewind="none", trained=True,
        ).params  # fmt: skip
        runs = [imp(short, k) for k in range(3)]
        soup = sj.recipes.sparse_model_soup(
            dense, short, plan, key=jax.random.key(7000 + seed), phases=PHASES, copies=COPIES
        )
        average = sj.recipes.uniform_soup(runs)
        again = sj.masks.apply_masks(average, plan.masks(sj.masks.magnitude(average)))
        own = [accuracy(c) for c in soup.extra["candidates"]]
        zeros = sum(int((soup.params[n]["kernel"] == 0).sum()) for n in soup.params)
        assert zeros == sum(leaf.zeros for leaf in plan.leaves)  # to the weight
        found[goal] = {
            "IMP": accuracy(runs[0]),
            "IMP, 5x epochs": accuracy(imp(long, 0)),
            "mean candidate": float(np.mean(own)),
            "soup": accuracy(soup.params),
            "average of 3 IMP": accuracy(average),
            "its sparsity": sparsity(average),
            "pruned again": accuracy(again),
        }
    return accuracy(dense), found


def sparsity(params):
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    return float(sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels))


def main(quick: bool = False, repeats: int = 20) -> None:
    repeats, goals = (min(repeats, 2), GOALS[:1]) if quick else (repeats, GOALS)
    runs = [repeat(seed, goals) for seed in range(repeats)]
    dense = np.mean([d for d, _ in runs])
    names = list(runs[0][1][goals[0]])
    rows = []
    for goal in goals:
        cells = [f"{goal}"]
        for name in names:
            x = np.array([found[goal][name] for _, found in runs])
            cells.append(f"{x.mean():.4f} +- {x.std(ddof=1) / np.sqrt(len(x)):.4f}")
        rows.append(cells)

    def gain(over):
        # A repeat is the unit: its goals share one dense network.
        d = np.array([np.mean([f[g]["soup"] - f[g][over] for g in goals]) for _, f in runs])
        return d.mean(), d.std(ddof=1) / np.sqrt(len(d))

    claims = []
    for over in ("mean candidate", "IMP", "IMP, 5x epochs"):
        mean, error = gain(over)
        claims.append([f"soup minus {over}", f"{mean:+.4f} +- {error:.4f}", "> 0", bool(mean > 0)])
    loss = [max(f[g]["its sparsity"] - g for _, f in runs) for g in goals]
    claims.append(
        ["sparsity of the average of 3 IMP minus goal, largest", f"{max(loss):+.4f}", "< 0",
         bool(max(loss) < 0)]
    )  # fmt: skip
    save(
        "soups",
        table_of(
            f"{'-'.join(map(str, WIDTHS))} on digits, 25 % wrong labels, {repeats} repeats",
            ["sparsity", *names],
            rows,
            f"test accuracy, mean and standard error; dense {dense:.4f}; m = 5, K = 3",
        ),
        table_of("paired, pooled over the sparsities", ["claim", "found", "goal"], claims),
        quick=quick,
        seed=range(repeats),
    )
