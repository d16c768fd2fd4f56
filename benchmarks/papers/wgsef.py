"""WGSEF on digits (2212.12921): the number of hidden neurons is fixed beforehand.

    python -m benchmarks wgsef

Full-batch proximal gradient on the first layer of 64-64-10, a neuron (its incoming weights and
bias) being one group, against no penalty and group lasso; then all but the 16 strongest neurons
are cut.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._digits import cross_entropy, logits
from benchmarks._report import save, table_of

K = 16
NEURONS = jnp.arange(64)
LABELS = {"layer_0/kernel": jnp.broadcast_to(NEURONS, (64, 64)), "layer_0/bias": NEURONS}


def data():
    """The first 1200 digits train, the other 597 test, pixels / 16."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    return x[:1200], y[:1200], x[1200:], y[1200:]


def start(key):
    keys = jax.random.split(key, 2)
    shapes = ((64, 64), (64, 10))
    return {
        f"layer_{i}": {"kernel": 0.2 * jax.random.normal(k, s), "bias": jnp.zeros(s[1])}
        for i, (k, s) in enumerate(zip(keys, shapes))
    }


def norms(params):
    layer = params["layer_0"]
    return jnp.sqrt(jnp.sum(layer["kernel"] ** 2, 0) + layer["bias"] ** 2)


def cut(params):
    """Only the k strongest neurons."""
    kept = sj.masks.topk(norms(params), sj.Unstructured(1 - K / 64))
    masks = {"layer_0": {"kernel": jnp.broadcast_to(kept, (64, 64)), "bias": kept}}
    return sj.masks.apply_masks(params, masks)


def run(penalty, key, x, y, x_test, y_test, steps):
    tx = optax.sgd(0.2, 0.9)
    if penalty is not None:
        tx = sj.optim.proximal_sgd(0.2, penalty, momentum=0.9)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(cross_entropy)(params, x, y), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = start(key)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    score = lambda p: jnp.mean(logits(p, x_test).argmax(-1) == y_test)  # noqa: E731
    return jnp.sum(norms(params) > 0), score(params), score(cut(params))


def main(quick: bool = False) -> None:
    steps, seeds = (100, 1) if quick else (600, 2)
    sets = data()
    groups = {"groups": LABELS, "num_groups": 64}
    methods = {"none": None}
    methods |= {
        f"group lasso {strength}": sj.prox.group_lasso(strength, weights=jnp.ones(64), **groups)
        for strength in (0.002, 0.005, 0.01)
    }
    methods |= {
        f"WGSEF k = 16, {strength}": sj.prox.wgsef(K, strength=strength, **groups)
        for strength in (0.01, 0.03, 0.1, 0.3)
    }
    rows, losses, live = [], {}, {}
    one = functools.partial(run, steps=steps)
    both = jax.jit(jax.vmap(one, in_axes=(None, 0, None, None, None, None)))
    keys = jax.random.split(jax.random.key(0), seeds)
    for name, penalty in methods.items():
        alive, full, after = map(np.asarray, both(penalty, keys, *sets))
        losses[name], live[name] = (full - after).max(), alive.max()
        rows.append(
            [
                name,
                ", ".join(map(str, alive)),
                ", ".join(f"{v:.3f}" for v in full),
                ", ".join(f"{v:.3f}" for v in after),
            ]
        )
    chosen = "WGSEF k = 16, 0.1"
    claims = [
        ["live neurons at 0.1", str(live[chosen]), "<= 20", bool(live[chosen] <= 20)],
        ["loss by the cut at 0.1", f"{losses[chosen]:.3f}", "< 0.01", bool(losses[chosen] < 0.01)],
        ["loss by the cut without", f"{losses['none']:.3f}", "> 0.15", bool(losses["none"] > 0.15)],
    ]
    save(
        "wgsef",
        table_of(
            f"64-64-10 on digits, {steps} steps, {seeds} seeds",
            ["penalty", "live neurons", "accuracy", "after the cut to 16"],
            rows,
        ),
        table_of("what must come out", ["claim", "found", "goal"], claims),
        quick=quick,
        seed=0,
    )
