"""N:M training on digits: STE, SR-STE (2102.04010), MdGf and SdGf (2402.04744), mask stability.

    python -m benchmarks nm_training

The settings are those of the two papers' small experiments: 1:16 with momentum, 1:32 with Adam.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import sparsejax as sj
from benchmarks._digits import Data, Method, digits, mlp, train
from benchmarks._report import save, table_of

# What the claims compare; `--quick` trains no other.
COMPARED = ("STE", "SR-STE 2e-4", "MdGf exponential, scaled")


def chosen(rows: dict[str, Method], quick: bool) -> dict[str, Method]:
    return {name: row for name, row in rows.items() if name in COMPARED or not quick}


def flips(old, new, grads):
    """Mask positions that change in this step."""
    del grads
    pairs = zip(jax.tree.leaves(sj.get_masks(old)), jax.tree.leaves(sj.get_masks(new)))
    return sum(jnp.sum(a != b) for a, b in pairs)


def noise(old, new, grads):
    """Variance of |gradient| over the entries of a layer, averaged over the sparse layers."""
    del old, new
    return jnp.mean(jnp.stack([jnp.var(jnp.abs(grads[f"layer_{i}"]["kernel"])) for i in (0, 1)]))


def through(pruned_gradient="full", **options):
    """The view of a loss through the masks (and their scale) in the optimizer state."""

    def view(params, state):
        tracked = state[-1]
        return sj.masks.straight_through(
            params, sj.get_masks(tracked), pruned_scale=tracked.pruned_scale,
            pruned_gradient=pruned_gradient, **options,
        )  # fmt: skip

    return view


def sr_ste_table(data: Data, seeds: int, steps: int, quick: bool) -> list[Table]:
    widths = (64, 256, 256, 10)
    plan = sj.plan(mlp(widths, jax.random.key(0)), {r"layer_[01]/kernel": sj.NM(1, 16)})
    weights = 64 * 256 + 256 * 256
    rate = optax.cosine_decay_schedule(0.1, steps)
    sgd = optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(rate, 0.9))
    tracked = optax.chain(sgd, sj.optim.track_masks(plan))
    fixed = optax.chain(sgd, sj.optim.prune(plan, every=steps))
    rows = {
        "dense": Method(sgd),
        "fixed mask of the start": Method(
            fixed,
            start=lambda p: sj.masks.apply_masks(p, plan.masks(sj.masks.magnitude(p))),
        ),
        "STE": Method(tracked, through()),
        "SR-STE 2e-4": Method(tracked, through(decay=2e-4)),
        "SR-STE 2e-3": Method(tracked, through(decay=2e-3)),
    }
    cells_of, found = [], {}
    for name, method in chosen(rows, quick).items():
        watch = flips if name.startswith(("STE", "SR")) else (lambda *_: 0)
        run = train(method, data, widths, steps=steps, seeds=seeds, watch=watch)
        accuracy = np.asarray(run.accuracy)
        cells = [name, f"{accuracy.mean():.4f}", f"{accuracy.std():.4f}"]
        if watch is flips:
            history = np.asarray(run.history) / weights
            pruned = jax.vmap(lambda p: plan.masks(sj.masks.magnitude(p)))(run.params)
            squares = [
                np.asarray(jnp.where(pruned[k]["kernel"], jnp.nan, run.params[k]["kernel"])) ** 2
                for k in ("layer_0", "layer_1")
            ]
            rms = np.sqrt(np.nanmean(np.concatenate([s.ravel() for s in squares])))
            total, last = history.sum(1).mean(), history[:, -300:].sum(1).mean()
            cells += [f"{total:.3f}", f"{last:.5f}", f"{rms:.4f}"]
            found[name] = accuracy.mean(), total, last
        cells_of.append(cells + [""] * (6 - len(cells)))
    ste, sr = found["STE"], found["SR-STE 2e-4"]
    claims = [
        [
            "SAD of SR-STE over STE",
            f"{sr[1] / ste[1]:.2f}",
            "<= 0.65",
            bool(sr[1] <= 0.65 * ste[1]),
        ],
        ["in the last 300 steps", f"{sr[2] / ste[2]:.3f}", "<= 0.25", bool(sr[2] <= 0.25 * ste[2])],
        [
            "accuracy minus STE",
            f"{sr[0] - ste[0]:+.4f}",
            ">= -0.003",
            bool(sr[0] - ste[0] >= -0.003),
        ],
    ]
    columns = ["estimator", "accuracy", "sd", "flips / weight", "last 300", "rms of pruned"]
    title = f"1:16 on digits, 64-256-256-10, {steps} steps, {seeds} seeds"
    return [table_of(title, columns, cells_of), claims_table("SR-STE", claims)]


def mask_decay_table(data: Data, seeds: int, steps: int, quick: bool) -> list[Table]:
    widths, dense, fine = (64, 128, 128, 10), 60, 120
    params = mlp(widths, jax.random.key(0))
    where = r"layer_[01]/kernel"
    plan = sj.plan(params, {where: sj.NM(1, 32)})
    stages = sj.patterns.nm_stages("stepwise", 1, 32)
    staged = sj.plan(params, {where: stages})
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    after = optax.join_schedules(
        [optax.constant_schedule(0.0), optax.constant_schedule(1.0)], [dense]
    )
    steps_to_decay = 0.75 * (steps - dense)
    beta = {
        "exponential": np.log(1e3) / steps_to_decay,
        "linear": 1 / steps_to_decay,
    }

    def decayed(kind, how):
        scale = sj.optim.mask_decay_schedule(kind, beta[kind], begin=dense, end=steps - fine)
        tx = optax.chain(adam, sj.optim.track_masks(plan, after, pruned_scale=scale))
        return Method(tx, through(pruned_gradient=how))

    masked_from_dense = optax.chain(adam, sj.optim.track_masks(plan, after))
    fraction = sj.optim.stage_schedule(len(stages.patterns), steps, dense=dense, fine_tune=fine)
    rows = {
        "dense": Method(adam),
        "STE": Method(masked_from_dense, through()),
        "SR-STE 2e-4": Method(masked_from_dense, through(decay=2e-4)),
        "MdGf exponential, scaled": decayed("exponential", "scaled"),
        "MdGf exponential, full": decayed("exponential", "full"),
        "MdGf linear, scaled": decayed("linear", "scaled"),
        "MdGf linear, full": decayed("linear", "full"),
        "SdGf stepwise": Method(
            optax.chain(adam, sj.optim.track_masks(staged, fraction)), through()
        ),
        "hard mask, kept weights only": Method(
            masked_from_dense,
            lambda p, s: sj.masks.apply_masks(p, sj.get_masks(s)),
        ),
    }
    cells, found = [], {}
    for name, method in chosen(rows, quick).items():
        run = train(method, data, widths, steps=steps, seeds=seeds, watch=noise)
        accuracy = np.asarray(run.accuracy)
        variance = np.asarray(run.history)[:, dense:].mean() * 1e6
        found[name] = accuracy.mean(), variance
        cells.append([name, f"{accuracy.mean():.4f}", f"{accuracy.std():.4f}", f"{variance:.2f}"])
    sr, md = found["SR-STE 2e-4"], found["MdGf exponential, scaled"]
    claims = [
        [
            "gradient variance over SR-STE",
            f"{md[1] / sr[1]:.3f}",
            "<= 0.25",
            bool(md[1] <= sr[1] / 4),
        ],
        [
            "accuracy minus SR-STE",
            f"{md[0] - sr[0]:+.4f}",
            ">= -0.003",
            bool(md[0] - sr[0] >= -0.003),
        ],
    ]
    columns = ["method", "accuracy", "sd", "variance of |gradient| (1e-6)"]
    title = f"1:32 on digits, 64-128-128-10, {steps} steps, {seeds} seeds"
    return [table_of(title, columns, cells), claims_table("MdGf, exponential and scaled", claims)]


def claims_table(title, claims):
    return table_of(f"{title}: what must come out", ["claim", "found", "goal"], claims)


def main(quick: bool = False) -> None:
    first = sr_ste_table(digits(), *((1, 800) if quick else (3, 1500)), quick)
    second = mask_decay_table(digits(), *((1, 800) if quick else (4, 1200)), quick)
    save("nm-training", *first, *second, quick=quick, seed=0)
