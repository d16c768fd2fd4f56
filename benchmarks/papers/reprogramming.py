"""Lottery tickets of digits put to another task (2308.14969): linear probes and visual prompts.

    python -m benchmarks reprogramming [--repeats 3]

The network reads digits enlarged to 16 x 16; the task is five noisy 8 x 8 glyphs with a learned
border. Accuracy and calibration error along the sparsity of the ticket.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._digits import cross_entropy, logits, mlp
from benchmarks._report import save, table_of
from sparsejax.contrib import reprogramming

WIDTHS, NOISE = (256, 256, 128, 10), 0.35
MAPPINGS = {"ILM": "iterative", "FLM": "frequency", "RLM": "random"}


def upstream(seed):
    """Digits, each pixel repeated to 2 x 2."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x = np.kron((x[order] / 16).reshape(-1, 8, 8), np.ones((1, 2, 2)))
    x, y = jnp.asarray(x.reshape(len(y), 256), jnp.float32), jnp.asarray(y[order])
    return {"x": x[:1000], "y": y[:1000]}, {"x": x[1000:], "y": y[1000:]}


def glyphs(key, samples):
    """A bar, a plank, a cross, a frame and a slash, in noise."""
    grid = np.zeros((5, 8, 8), np.float32)
    grid[0, :, 3:5] = grid[1, 3:5, :] = 1
    grid[2, :, 3:5] = grid[2, 3:5, :] = 1
    grid[3, 1:7, 1:7], grid[3, 2:6, 2:6] = 1, 0
    grid[4][np.arange(8), np.arange(8)[::-1]] = 1
    y = jnp.arange(samples) % 5
    noise = NOISE * jax.random.normal(key, (samples, 8, 8))
    return jnp.clip(jnp.asarray(grid)[y] + noise, 0, 1)[..., None], y


@jax.jit
def fit(params, masks, key, data):
    return sj.recipes.train_masked(
        params, masks, lambda p, b: cross_entropy(p, b["x"], b["y"]), optax.sgd(0.05, 0.9), data,
        steps=600, key=key,
    )  # fmt: skip


def features(params, x):
    for i in range(len(params) - 1):
        layer = params[f"layer_{i}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x


def score(found, y):
    p = jax.nn.softmax(found)
    error = sj.metrics.expected_calibration_error(p, y)
    return float(jnp.mean(found.argmax(-1) == y)), float(error)


def repeat(seed, tickets, epochs):
    """(sparsity, what, shots) -> accuracy and calibration error."""
    key = jax.random.key(seed)
    data, test = upstream(seed)
    init = mlp(WIDTHS, key)
    train = lambda p, m, k: fit(p, m, k, data)  # noqa: E731
    networks = {0.0: train(init, None, key)}
    for s in tickets:
        plan = sj.plan(init, sj.Unstructured(s), allocate=sj.masks.joint)
        networks[s] = sj.recipes.iterative_prune(init, train, plan, key=key, rounds=4).params
    x_test, y_test = glyphs(jax.random.fold_in(key, 1), 1000)
    x_all, y_all = glyphs(jax.random.fold_in(key, 2), 500)
    found = {}
    for s, params in networks.items():
        found[s, "upstream", 0] = score(logits(params, test["x"]), test["y"])
        network = lambda x, p=params: logits(p, x.reshape(x.shape[0], -1))  # noqa: E731
        big = lambda x: jax.image.resize(x, (x.shape[0], 16, 16, 1), "nearest").reshape(-1, 256)  # noqa: E731
        for shots in (10, 100):
            rows = reprogramming.few_shot(y_all, shots, key=jax.random.fold_in(key, 3))
            x, y = x_all[rows], y_all[rows]
            steps = epochs * max(len(y) // 128, 1)
            h = features(params, big(x))
            head = reprogramming.linear_probe(h, y, classes=5, steps=steps, key=key)
            tested = features(params, big(x_test)) @ head["kernel"] + head["bias"]
            found[s, "LP", shots] = score(tested, y_test)
            for name, mapping in MAPPINGS.items():
                prompt = reprogramming.visual_prompt(
                    network, x, y, size=(16, 16), classes=5, key=key, mapping=mapping,
                    optimizer=optax.adam(0.05), epochs=epochs,
                )  # fmt: skip
                found[s, name, shots] = score(prompt.logits(network, x_test), y_test)
    return found


def main(quick: bool = False, repeats: int = 3) -> None:
    tickets, epochs = ((0.98,), 5) if quick else ((0.8, 0.95, 0.98), 40)
    repeats = min(repeats, 1) if quick else repeats
    runs = [repeat(seed, tickets, epochs) for seed in range(repeats)]
    mean = {case: np.mean([run[case] for run in runs], axis=0) for case in runs[0]}
    columns = [("upstream", 0), *((n, k) for n in ("LP", *MAPPINGS) for k in (10, 100))]
    levels = (0.0, *tickets)
    rows = [[f"{s:g}", *("{:.3f} / {:.3f}".format(*mean[s, n, k]) for n, k in columns)]
            for s in levels]  # fmt: skip
    fall = lambda n, k: 1 - mean[0.98, n, k][0] / mean[0.0, n, k][0]  # noqa: E731
    over = min(
        mean[s, "ILM", 100][0] - max(mean[s, n, 100][0] for n in ("FLM", "RLM")) for s in levels
    )
    probe = min(mean[s, "LP", k][0] - mean[s, "ILM", k][0] for s in levels for k in (10, 100))
    ece = [mean[s, "upstream", 0][1] for s in levels]
    more = fall("ILM", 100) >= 1.5 * fall("LP", 100)  # a product: the probe may lose nothing
    claims = [
        ["ILM over FLM and RLM, 100 shots, smallest", f"{over:+.3f}", "> 0", bool(over > 0)],
        ["LP over ILM, smallest", f"{probe:+.3f}", "> 0", bool(probe > 0)],
        ["relative loss to .98, ILM and LP, 100 shots",
         f"{fall('ILM', 100):.3f}, {fall('LP', 100):.3f}", "1.5 times", bool(more)],
        ["upstream calibration error", ", ".join(f"{e:.3f}" for e in ece), "grows",
         bool(np.all(np.diff(ece) > 0))],
    ]  # fmt: skip
    save(
        "reprogramming",
        table_of(
            f"accuracy / calibration error, {epochs} epochs, {repeats} repeats, chance 0.2",
            ["sparsity", *(f"{n} {k}" if k else n for n, k in columns)],
            rows,
            "LP linear probe; ILM, FLM, RLM visual prompts; 10 and 100 shots a class",
        ),
        table_of(
            "what the paper says, and expected of this task", ["claim", "found", "goal"], claims
        ),
        quick=quick,
        seed=range(repeats),
    )
