"""Group sparsity on digits and on channel-first images (1911.09723, 2310.19509).

    python -m benchmarks sparse_convnets

The accuracy of 64-256-256-10 pruned along the cubic schedule in blocks of several shapes; of the
dense network pruned at once in groups of outputs, with and without the rearrangement of channels;
and the time of a 1x1 convolution with such kernels.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._digits import cross_entropy, logits, mlp
from benchmarks._report import save, table_of

BATCH = 50
LAYERS = [
    ("x", "input", ()),
    ("layer_0", "dense", ("x",)),
    ("layer_1", "dense", ("layer_0",)),
    ("layer_2", "dense", ("layer_1",)),
]
HIDDEN = r"layer_[01]/kernel$"
# Named as in the paper: outputs x inputs.
SHAPES = {"1x1": (1, 1), "2x1": (1, 2), "1x2": (2, 1), "4x1": (1, 4), "2x2": (2, 2), "1x4": (4, 1),
          "8x1": (1, 8)}  # fmt: skip


def data():
    """400 digits train, the other 1397 test, pixels / 16."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    return x[:400], y[:400], x[400:], y[400:]


@functools.partial(jax.jit, static_argnames=("plan", "steps"))
def train(keys, sets, plan, steps):
    """Parameters and test accuracy of each seed; plan None trains dense."""
    x, y, x_test, y_test = sets
    tx = optax.adamw(2e-3)
    if plan is not None:
        ramp = optax.polynomial_schedule(0, 1, 3, transition_begin=200, transition_steps=800)
        tx = optax.chain(tx, sj.optim.prune(plan, ramp, every=25, begin=200, end=1000))

    def one(key):
        params = mlp((64, 256, 256, 10), key)

        def step(carry, key):
            params, state = carry
            rows = jax.random.choice(key, len(y), (BATCH,), replace=False)
            updates, state = tx.update(
                jax.grad(cross_entropy)(params, x[rows], y[rows]), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        start = (params, tx.init(params))
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return params, accuracy(params, x_test, y_test)

    return jax.lax.map(one, keys)


@jax.jit
def accuracy(params, x, y):
    return jnp.mean(logits(params, x).argmax(-1) == y)


def planned(pattern):
    return sj.plan(jax.eval_shape(lambda: mlp((64, 256, 256, 10), jax.random.key(0))),
                   {HIDDEN: pattern})  # fmt: skip


def shown(scores) -> str:
    return f"{100 * np.mean(scores):.1f} +- {100 * np.std(scores):.1f}"


def block_shapes(keys, sets, dense, steps, names):
    rows = [["dense", "0", shown(dense)]]
    for sparsity, among in ((0.9, names), (0.97, ("1x1", "4x1"))):
        for name in among:
            _, scores = train(keys, sets, planned(sj.Block(SHAPES[name], sparsity)), steps)
            rows.append([name, str(sparsity), shown(scores)])
            print(rows[-1], flush=True)
    caption = f"{len(keys)} seeds, 400 training digits, {steps} steps of AdamW, batch {BATCH}."
    return table_of("Blocks (outputs x inputs)", ["block", "sparsity", "accuracy"], rows, caption)


def one_shot(networks, sets, sizes):
    rows = []
    for n in sizes:
        for sparsity in (0.5, 0.8):
            plan = planned(sj.Block((1, n), sparsity))
            for method in ("l1", "greedy"):
                rows.append([n, sparsity, method, *one_shot_cells(networks, sets, plan, method)])
                print(rows[-1], flush=True)
    columns = ["n", "sparsity", "order", "accuracy: as trained", "rearranged",
               "kept magnitude: as trained", "rearranged", "predictions changed"]  # fmt: skip
    return table_of("Groups of n outputs, pruned at once", columns, rows)


def one_shot_cells(networks, sets, plan, method):
    _, _, x, y = sets
    cells = []
    for i in range(len(networks["layer_0"]["bias"])):
        params = jax.tree.map(operator.itemgetter(i), networks)
        graph = sj.nn.surgery.channel_graph(params, LAYERS)
        found = sj.nn.surgery.rearrange(params, graph, plan, method=method)
        prune = lambda p: sj.masks.apply_masks(p, plan.masks(sj.masks.magnitude(p)))  # noqa: E731
        change = logits(params, x).argmax(-1) != logits(found.model, x).argmax(-1)
        cells.append([
            accuracy(prune(params), x, y), accuracy(prune(found.model), x, y),
            found.before, found.after, change.sum(),
        ])  # fmt: skip
    *means, changed = np.mean(np.array(cells, float), 0)
    return [*(f"{m:.3f}" for m in means), f"{changed:g}"]


def speed(sizes, rounds):
    rows = []
    for channels, size in sizes:
        x = jax.random.normal(jax.random.key(0), (channels, *size))
        for density in (0.3, 0.1):
            calls, w = {}, jax.random.normal(jax.random.key(1), (channels, channels))
            multiply = jax.jit(sj.kernels.pointwise)
            calls["dense"] = functools.partial(multiply, x, w)
            for b in (1, 2, 4, 16, 32):
                mask = sj.masks.topk(jnp.abs(w), sj.Block((1, b), 1 - density, balanced=True))
                stored = sj.formats.BlockArray.fromdense(w, (1, b), mask=mask)
                calls[str(b)] = functools.partial(multiply, x, stored)
            best = sj.kernels.measure(calls, rounds, seconds=0.05)
            ratios = [f"{best['dense'] / best[str(b)]:.2f}x" for b in (1, 2, 4, 16, 32)]
            rows.append([f"{channels}, {size[0] * size[1]}", f"{density:.0%}", *ratios])
            print(rows[-1], flush=True)
    columns = ["channels, pixels", "kept", *(f"{b} outputs" for b in (1, 2, 4, 16, 32))]
    caption = "Dense time over sparse time of sj.kernels.pointwise, one image, two shared cores."
    return table_of("1x1 convolution, channel first: speed over dense", columns, rows, caption)


def main(quick: bool = False) -> None:
    seeds, steps = (1, 1000) if quick else (5, 1500)
    names, groups_of = (("1x1", "4x1"), (4,)) if quick else (SHAPES, (4, 16))
    sizes = (512, (12, 16)), (256, (24, 32))
    sets, keys = data(), jax.random.split(jax.random.key(0), seeds)
    timed = speed(sizes[:1], 2) if quick else speed(sizes, 5)
    networks, dense = train(keys, sets, None, steps)
    groups = one_shot(networks, sets, groups_of)
    blocks = block_shapes(keys, sets, dense, steps, names)
    save("sparse-convnets", blocks, groups, timed, quick=quick, seed=0)
