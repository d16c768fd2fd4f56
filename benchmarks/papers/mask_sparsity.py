"""Channels pruned by the scales of their norms: network slimming against MaskSparsity, on digits.

    python -m benchmarks mask_sparsity

A 64-96-96-10 network with batch norms. The channels to prune, 70 % of each layer, are those of
smallest scale after a run with the penalty on all scales (2201.06776 calls it global). MaskSparsity
starts again from the baseline with the penalty on these only.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._digits import digits
from benchmarks._report import save, table_of

STRENGTH, LAYERS = 1e-2, ("first", "second")


def initial(key):
    sizes = {"first": (64, 96), "second": (96, 96), "head": (96, 10)}
    params = {
        name: {"kernel": jax.random.normal(k, size) * np.sqrt(2 / size[0])}
        for (name, size), k in zip(sizes.items(), jax.random.split(key, 3))
    }
    for name in LAYERS:
        params[name] |= {"scale": jnp.ones(96), "shift": jnp.zeros(96)}
    params["head"]["bias"] = jnp.zeros(10)
    return params


def network(params, x, reference=None, keep=None):
    """Norms by the statistics of x, or of a reference that goes through the same layers."""
    both = x if reference is None else jnp.concatenate([reference, x])
    known = slice(None) if reference is None else slice(len(reference))
    for name in LAYERS:
        layer = params[name]
        both = both @ layer["kernel"]
        mean, var = both[known].mean(0), both[known].var(0)
        both = (both - mean) / jnp.sqrt(var + 1e-5) * layer["scale"] + layer["shift"]
        both = jax.nn.relu(both)
        if keep is not None:
            both = both * keep[name]["scale"]
    out = both @ params["head"]["kernel"] + params["head"]["bias"]
    return out if reference is None else out[len(reference) :]


def train(params, data, steps, rate, key, penalty=None, keep=None, pruned=None):
    schedule = optax.cosine_decay_schedule(rate, steps)
    tx = optax.sgd(schedule, 0.9)
    if penalty is not None:
        tx = optax.chain(sj.optim.add_penalty({"scale$": penalty}, keep), tx)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (64,), 0, len(data.x))

        def loss(p):
            logits = network(p, data.x[rows], keep=pruned)
            return optax.softmax_cross_entropy_with_integer_labels(logits, data.y[rows]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda c, k: jax.lax.scan(step, c, k)[0][0])
    return run((params, tx.init(params)), jax.random.split(key, steps))


def accuracy(params, data, keep=None) -> float:
    found = network(params, data.x_test, data.x, keep).argmax(-1)
    return float((found == data.y_test).mean())


def one_seed(seed: int):
    data, keys = digits(), jax.random.split(jax.random.key(seed), 6)
    start = train(initial(keys[0]), data, 250, 0.1, keys[1])
    penalty = sj.prox.l1(STRENGTH)
    slim = train(start, data, 600, 0.05, keys[2], penalty)

    def channels(params):
        plan = sj.plan(params, {"scale$": sj.Unstructured(0.7)})
        return plan.masks(sj.masks.magnitude(params))

    keep = channels(slim)
    masked = train(start, data, 600, 0.05, keys[3], penalty, keep)
    rows = {}
    for name, params, mask in (
        ("baseline", start, channels(start)),
        ("slimming", slim, keep),
        ("MaskSparsity", masked, keep),
    ):
        tuned = train(params, data, 100, 0.01, keys[4], pruned=mask)
        scales = [(np.abs(params[n]["scale"]), np.asarray(mask[n]["scale"])) for n in LAYERS]
        rows[name] = [
            accuracy(params, data),
            accuracy(params, data, mask),
            accuracy(tuned, data, mask),
            max(s[~m].max() for s, m in scales),
            np.mean([s[m].mean() for s, m in scales]),
        ]
    return rows


def main(quick: bool = False) -> None:
    seeds = 1 if quick else 3
    found = [one_seed(seed) for seed in range(seeds)]
    mean = {name: np.mean([f[name] for f in found], 0) for name in found[0]}
    rows = [[name, *(f"{x:.4f}" for x in values)] for name, values in mean.items()]
    columns = ["method", "before", "after pruning", "after fine-tuning", "max pruned scale",
               "mean kept scale"]  # fmt: skip
    drop = {name: values[0] - values[1] for name, values in mean.items()}
    more = mean["MaskSparsity"][4] / mean["slimming"][4]
    claims = [
        ["loss at pruning (goal 0.01)", f"{drop['MaskSparsity']:.4f}",
         bool(drop["MaskSparsity"] <= 0.01)],
        ["loss of slimming over it (goal 5)",
         f"{drop['slimming']:.3f} / {drop['MaskSparsity']:.3f}",
         bool(drop["slimming"] >= 5 * drop["MaskSparsity"])],
        ["kept scale over that of slimming (goal 2)", f"{more:.2f}", bool(more > 2)],
    ]  # fmt: skip
    title = f"digits, 70 % of the channels removed, {seeds} seeds"
    save("mask-sparsity", table_of(title, columns, rows),
         table_of("claims", ["claim", "measured"], claims),
         quick=quick, seed=range(seeds))  # fmt: skip
