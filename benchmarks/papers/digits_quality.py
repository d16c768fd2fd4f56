"""What sparsity costs on digits: the methods of the quickstart over several seeds.

python -m benchmarks digits_quality
"""

import jax
import numpy as np
import optax

import sparsejax as sj
from benchmarks._digits import Method, digits, mlp, train
from benchmarks._report import save, table_of
from benchmarks.papers.random_pruning import random_masks

WIDTHS = (64, 256, 256, 10)


def main(quick: bool = False) -> None:
    steps, seeds = (150, 1) if quick else (1500, 5)
    data, params = digits(), mlp(WIDTHS, jax.random.key(0))
    rate = optax.cosine_decay_schedule(0.1, steps)
    sgd = optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(rate, 0.9))
    erk = sj.plan(params, sj.Unstructured(0.9), allocate=sj.masks.erk)
    together = sj.plan(params, sj.Unstructured(0.9), allocate=sj.masks.joint)
    nm = sj.plan(params, {"layer_[01]/kernel": sj.NM(2, 4)})
    ramp = optax.polynomial_schedule(
        0.0, 1.0, 3, transition_steps=steps * 8 // 15, transition_begin=steps // 15
    )

    def prune(plan):
        return Method(optax.chain(sgd, sj.optim.prune(plan, ramp, every=20)))

    methods = {
        "dense": (Method(sgd), None),
        "pruned 90 %, ERK": (prune(erk), 0.012),
        "pruned 90 %, global": (prune(together), None),
        "random 90 %, static, ERK": (
            Method(
                optax.chain(sgd, sj.optim.prune(erk, every=steps)),
                start=lambda p: sj.masks.apply_masks(p, random_masks(erk, p)),
            ),
            0.03,
        ),
        "2:4, SR-STE": (
            Method(
                optax.chain(sgd, sj.optim.track_masks(nm)),
                lambda p, s: sj.masks.straight_through(p, sj.get_masks(s), decay=2e-4),
            ),
            0.01,
        ),
        "2:4, pruned along a ramp": (prune(nm), 0.01),
    }
    rows, reference = [], None
    for name, (method, allowed) in methods.items():
        found = np.asarray(train(method, data, WIDTHS, steps=steps, seeds=seeds).accuracy)
        reference = found.mean() if reference is None else reference
        loss = reference - found.mean()
        goal = "" if allowed is None else f"<= {allowed:.3f}"
        rows.append(
            [
                name,
                f"{found.mean():.4f}",
                f"{found.std():.4f}",
                f"{loss:+.4f}",
                goal,
                allowed is None or bool(loss <= allowed),
            ]
        )
    columns = ["network", "accuracy", "sd", "loss against dense", "goal"]
    save(
        "digits-quality",
        table_of(f"digits, 64-256-256-10, {steps} steps, {seeds} seeds", columns, rows),
        quick=quick,
        seed=0,
    )
