"""Sparse training and pruning compared: every method, two tasks, three sparsities, three seeds.

    python -m benchmarks training [--task digits] [--only NAME] [--steps N]

Digits, and a harder task of shipped data: from which of ten photographs of scikit-image is a patch
of 12 x 12 pixels, centred and scaled by itself? Training and test patches come from different
squares of 48 pixels. A ReLU network of two hidden layers of 256, with the same steps, rate, decay
and batches for every method; those that prune a trained network spend half of the steps on it.
Beside them a dense network of as many parameters, narrower.
"""

import math
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import skimage.data

import sparsejax as sj
from benchmarks._digits import Data, Method, cross_entropy, digits, logits, mlp, train
from benchmarks._report import save, table_of
from benchmarks.papers.random_pruning import random_masks
from sparsejax.contrib import search

HIDDEN, BATCH, SPARSITIES = 256, 64, (0.9, 0.95, 0.98)
ROUNDS = 10  # of training and pruning in which a lottery ticket is found
PHOTOGRAPHS = ("brick", "camera", "cell", "clock", "coins", "grass", "gravel", "moon", "page",
               "text")  # fmt: skip
# What sets the sparsity of the two methods that have no target, for each of SPARSITIES: chosen by
# hand on one seed, to come near; what is reached stands in the table.
STR_DECAY = {"digits": (0.075, 0.105, 0.125), "photographs": (0.04, 0.041, 0.042)}
SOFT_STRENGTH = {"digits": (5e-4, 7e-4, 1.2e-3), "photographs": (8e-4, 1.1e-3, 1.6e-3)}
SOFT_RATE = 100.0


def photographs(size: int = 12, square: int = 48, seed: int = 0) -> Data:
    """Patches by photograph, of the squares of a chequerboard: white for training, black held."""
    rng, sets = np.random.default_rng(seed), ([], [])
    for label, name in enumerate(PHOTOGRAPHS):
        image = getattr(skimage.data, name)().astype(np.float32)
        for colour, count in ((0, 300), (1, 150)):
            found = []
            while len(found) < count:
                i, j = (rng.integers(0, side - size) for side in image.shape)
                # A patch lies in one square.
                if i % square + size > square or j % square + size > square:
                    continue
                if (i // square + j // square) % 2 != colour:
                    continue
                patch = image[i : i + size, j : j + size].ravel()
                found.append((patch - patch.mean()) / (patch.std() + 1))
            sets[colour].append((np.stack(found), np.full(count, label)))
    arrays = [np.concatenate(x) for half in sets for x in zip(*half)]
    return Data(*map(jnp.asarray, arrays))


def small_width(widths, sparsity: float) -> int:
    """Hidden width of a dense network with at most as many weights as the sparse one keeps."""
    inputs, hidden, _, outputs = widths
    kept = (1 - sparsity) * (inputs * hidden + hidden**2 + hidden * outputs)
    ends = inputs + outputs
    return max(1, math.floor((-ends + math.sqrt(ends**2 + 4 * kept)) / 2))


class Task:
    """Data, widths and the optimizer; and what the methods are made of."""

    def __init__(self, name: str, data: Data, steps: int):
        self.name, self.data, self.steps = name, data, steps
        self.widths = (data.x.shape[1], HIDDEN, HIDDEN, 10)
        self.params = mlp(self.widths, jax.random.key(0))
        self.batch = {"x": data.x, "y": data.y}

    def sgd(self, steps=None, start=0):
        rate = optax.cosine_decay_schedule(0.1, steps or self.steps)
        later = lambda count: rate(count + start)  # noqa: E731
        return optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(later, 0.9))

    def plan(self, sparsity, allocate=sj.masks.erk, pattern=sj.Unstructured):
        return sj.plan(self.params, pattern(sparsity), allocate=allocate)

    def loss(self, params, batch):
        return cross_entropy(params, batch["x"], batch["y"])

    def pretrained(self, params):
        """Half of the steps, dense; the order of the samples comes from the parameters."""
        return sj.recipes.train_masked(
            params, None, self.loss, self.sgd(self.steps // 2), self.batch, steps=self.steps // 2,
            key=key_of(params), batch_size=BATCH,
        )  # fmt: skip

    def grams(self, params):
        """What each kernel multiplies, over 512 samples."""
        x, found = self.data.x[:512], {}
        for i in range(len(params)):
            layer = params[f"layer_{i}"]
            found[f"layer_{i}"] = {"kernel": x.T @ x}
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return found

    def held(self, plan, start, steps=None):
        """Sparse from the start: entries that are 0 there score lowest at the one selection."""
        steps = steps or self.steps
        return Method(optax.chain(self.sgd(steps), sj.optim.prune(plan, every=steps)), start=start)


def key_of(params):
    """A key that differs between seeds because the parameters do."""
    seed = jax.lax.bitcast_convert_type(params["layer_0"]["kernel"][0, 0], jnp.uint32)
    return jax.random.key(seed)


def before(t: Task, s: float) -> dict:
    """Masks chosen before training."""
    erk, uniform = t.plan(s), t.plan(s, sj.masks.uniform)
    together = t.plan(s, sj.masks.joint)
    some = slice(0, 256)

    def few(params):
        return cross_entropy(params, t.data.x[some], t.data.y[some])

    def cooled(params):
        found = logits(params, t.data.x[some]) / 200
        return optax.softmax_cross_entropy_with_integer_labels(found, t.data.y[some]).mean()

    def output(params):
        return logits(params, jnp.ones((1, t.widths[0])))

    def masked(masks_of):
        return lambda p: sj.masks.apply_masks(p, masks_of(p))

    def searched(p):
        draw = lambda key: erk.masks(sj.masks.random(p, key=key))  # noqa: E731
        loss = lambda p, masks: few(p)  # noqa: E731
        return search.random_search(p, loss, draw, key=key_of(p)).masks

    synflow = lambda p: sj.masks.iterative(  # noqa: E731
        lambda q: sj.masks.synflow(q, output), together, p
    )
    snip = lambda p: together.masks(sj.masks.saliency(p, jax.grad(few)(p)))  # noqa: E731
    grasp = lambda p: together.masks(sj.masks.grasp(p, cooled))  # noqa: E731
    return {
        "random, uniform": t.held(uniform, masked(partial(random_masks, uniform))),
        "random, ERK": t.held(erk, masked(partial(random_masks, erk))),
        "best of 100 random, ERK": t.held(erk, masked(searched)),
        "SNIP": t.held(together, masked(snip)),
        "GraSP": t.held(together, masked(grasp)),
        "SynFlow": t.held(together, masked(synflow)),
    }


def during(t: Task, s: float) -> dict:
    """Masks that change in training."""
    erk, together = t.plan(s), t.plan(s, sj.masks.joint)
    wider = t.plan(1 - 2 * (1 - s))
    ramp = optax.polynomial_schedule(
        0.0, 1.0, 3, transition_steps=t.steps * 6 // 10, transition_begin=t.steps // 10
    )
    every, key = t.steps // 40, jax.random.key(1)
    dynamic = dict(end=t.steps * 3 // 4, every=every)
    seen = lambda p, state: sj.masks.straight_through(p, sj.get_masks(state))  # noqa: E731

    def prune(plan):
        return Method(optax.chain(t.sgd(), sj.optim.prune(plan, ramp, every=every)))

    def str_start(p):
        logit = {n: {"kernel": jnp.asarray(-5.0)} for n in p}
        return {"weights": p, "logits": logit}

    def learned(p, state):
        return sj.nn.learned_threshold(p["weights"], p["logits"])

    decay = STR_DECAY[t.name][SPARSITIES.index(s)]
    wide = optax.add_decayed_weights(decay, mask={"weights": False, "logits": True})
    half = t.steps * 55 // 100
    return {
        "gradual, uniform": prune(t.plan(s, sj.masks.uniform)),
        "gradual, ERK": prune(erk),
        "gradual, global": prune(together),
        "straight-through, ERK": Method(optax.chain(t.sgd(), sj.optim.track_masks(erk)), seen),
        "SET": Method(sj.optim.sparse_evolution(t.sgd(), erk, key=key, **dynamic)),
        "RigL": Method(sj.optim.rigl(t.sgd(), erk, key=key, **dynamic)),
        "Top-KAST": Method(sj.optim.top_kast(t.sgd(), erk, wider, every=every), seen),
        "AC/DC": Method(sj.optim.acdc(t.sgd(), together, sj.optim.acdc_phases(t.steps))),
        "ISS-P": Method(
            optax.chain(
                t.sgd(), sj.optim.iterative_shrinkage(together, prune_steps=half, every=every)
            )
        ),
        "STR": Method(optax.chain(wide, t.sgd()), learned, str_start),
    }


def after(t: Task, s: float) -> dict:
    """Half of the steps dense, then pruned and trained on for the other half."""
    uniform, together = t.plan(s, sj.masks.uniform), t.plan(s, sj.masks.joint)
    fan_in = sj.plan(t.params, sj.patterns.FanIn(s))
    half, quarter = t.steps // 2, t.steps // 4
    seen = lambda p, state: sj.masks.straight_through(p, sj.get_masks(state))  # noqa: E731
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, transition_steps=half * 6 // 10)
    rising = optax.linear_schedule(0.0, 0.1, half * 6 // 10)

    def magnitude(p):
        p = t.pretrained(p)
        return sj.masks.apply_masks(p, together.masks(sj.masks.magnitude(p)))

    def wanda(p):
        p = t.pretrained(p)
        return sj.masks.apply_masks(p, fan_in.masks(sj.masks.wanda(p, t.grams(p), fan_in)))

    def sparsegpt(p):
        p = t.pretrained(p)
        return sj.recipes.sparsegpt(p, t.grams(p), uniform)[0]

    def scores(p):
        stage = search.Stage(quarter, optax.sgd(0.1))
        return search.score_prune(
            t.pretrained(p), t.loss, uniform, t.batch, key=key_of(p), prune=stage, batch_size=BATCH
        ).params

    none = optax.set_to_zero()
    strength = SOFT_STRENGTH[t.name][SPARSITIES.index(s)]
    soft = sj.optim.soft_movement(
        uniform, rising, strength=optax.linear_schedule(0.0, strength, half // 4),
        learning_rate=SOFT_RATE,
    )  # fmt: skip
    return {
        "magnitude, global, no training after": (1, Method(none, start=magnitude)),
        "SparseGPT, no training after": (1, Method(none, start=sparsegpt)),
        "magnitude, global": (half, t.held(together, magnitude, half)),
        "Wanda": (half, t.held(fan_in, wanda, half)),
        "SparseGPT": (half, t.held(uniform, sparsegpt, half)),
        "movement": (
            half,
            Method(optax.chain(sj.optim.movement(together, ramp), t.sgd(half)), seen, t.pretrained),
        ),
        "soft movement": (half, Method(optax.chain(soft, t.sgd(half)), seen, t.pretrained)),
        "learned scores": (quarter, t.held(uniform, scores, quarter)),
    }


def methods(t: Task, s: float) -> dict:
    """(steps, widths, method) by name; of lottery tickets the step of rewinding is the method."""
    small = (t.widths[0], *2 * (small_width(t.widths, s),), t.widths[-1])
    found = {"dense": (t.steps, t.widths, Method(t.sgd())),
             "small and dense": (t.steps, small, Method(t.sgd()))}  # fmt: skip
    for group, make in (("before", before), ("during", during)):
        found |= {f"{group}: {n}": (t.steps, t.widths, m) for n, m in make(t, s).items()}
    found |= {f"after: {n}": (k, t.widths, m) for n, (k, m) in after(t, s).items()}
    # Of each, the step to which survivors are rewound.
    return found | {
        "tickets: rewound to the start": (t.steps, t.widths, 0),
        "tickets: rewound to 5 % of the steps": (t.steps, t.widths, t.steps // 20),
    }


def tickets(t: Task, s: float, rewind_step: int, seeds: int) -> tuple[list, list]:
    """Accuracies and parameters of lottery tickets after `ROUNDS` rounds, each trained anew."""
    plan = t.plan(s, sj.masks.joint)
    fit = jax.jit(
        lambda params, masks, key, start, stop: sj.recipes.train_masked(
            params, masks, t.loss, t.sgd(start=start), t.batch, steps=stop, key=key,
            batch_size=BATCH, start=start,
        ),
        static_argnums=(3, 4),
    )  # fmt: skip
    found = [
        sj.recipes.iterative_prune(
            mlp(t.widths, key), lambda p, m, k, start=0, stop=t.steps: fit(p, m, k, start, stop),
            plan, key=key_data, rounds=ROUNDS, rewind_step=rewind_step,
        ).params
        for key, key_data in map(jax.random.split, jax.random.split(jax.random.key(0), seeds))
    ]  # fmt: skip
    x, y = t.data.x_test, t.data.y_test
    return [float((logits(p, x).argmax(-1) == y).mean()) for p in found], found


def zeros_of(params) -> float:
    """Fraction of zeros in the kernels."""
    kernels = [layer["kernel"] for layer in params.values()]
    return sum(float((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)


def compare(name: str, data: Data, steps: int, only: str, seeds: int, sparsities: tuple):
    task, cells = Task(name, data, steps), {}
    for s in sparsities:
        for label, (count, widths, method) in methods(task, s).items():
            if only not in label:
                continue
            if label == "dense" and s != sparsities[0]:
                cells[label].append("")
                continue
            start = time.perf_counter()
            if isinstance(method, int):
                accuracy, seen = tickets(task, s, method, seeds)
                zeros = np.mean([zeros_of(params) for params in seen])
            else:
                run = train(method, data, widths, steps=count, seeds=seeds, batch=BATCH,
                            side_by_side=False)  # fmt: skip
                accuracy = run.accuracy
                zeros = zeros_of(jax.jit(jax.vmap(method.view))(run.params, run.opt_state))
            found = 100 * np.asarray(accuracy)
            cell = f"{found.mean():.1f} +- {found.std(ddof=1):.1f}"
            if label != "dense" and "small" not in label and abs(zeros - s) > 0.003:
                cell += f" (at {100 * zeros:.1f} %)"
            cells.setdefault(label, []).append(cell)
            print(f"{name} {s} {label}: {cell}, {time.perf_counter() - start:.1f} s", flush=True)
    columns = ["method", *(f"{100 * s:.0f} %" for s in sparsities)]
    widths = [small_width(task.widths, s) for s in sparsities]
    return table_of(
        f"{name}: test accuracy (%), {'-'.join(map(str, task.widths))}, {steps} steps, "
        f"{seeds} seeds",
        columns,
        [[label, *row] for label, row in cells.items()],
        caption=f"small and dense: hidden layers of {', '.join(map(str, widths))}",
    )


def main(quick: bool = False, task: str = "", only: str = "", steps: int = 800) -> None:
    """Methods whose name contains `only`; a part of the tables is not kept."""
    seeds, sparsities = (2, SPARSITIES[:1]) if quick else (3, SPARSITIES)
    if quick:
        task, only, steps = task or "digits", only or "during", min(steps, 80)
    tasks = {"digits": digits, "photographs": photographs}
    if task and task not in tasks:
        raise ValueError(f"task: one of {', '.join(tasks)}, not {task!r}")
    tables = [
        compare(name, make(), steps, only, seeds, sparsities)
        for name, make in tasks.items()
        if task in ("", name)
    ]
    save("training", *tables, quick=quick or bool(task or only), seed=0)
