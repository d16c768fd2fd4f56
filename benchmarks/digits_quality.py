"""What sparsity costs on digits: the methods of the quickstart over several seeds.

python benchmarks/digits_quality.py
"""

import jax
import numpy as np
import optax
from _digits import Method, digits, mlp, train
from _timing import save, table_of
from random_pruning import random_masks

import sparsejax as sj

WIDTHS, STEPS, SEEDS = (64, 256, 256, 10), 1500, 5


def main() -> None:
    data, params = digits(), mlp(WIDTHS, jax.random.key(0))
    rate = optax.cosine_decay_schedule(0.1, STEPS)
    sgd = optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(rate, 0.9))
    erk = sj.plan(params, sj.Unstructured(0.9), allocate=sj.masks.erk)
    together = sj.plan(params, sj.Unstructured(0.9), allocate=sj.masks.global_)
    nm = sj.plan(params, {"layer_[01]/kernel": sj.NM(2, 4)})
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, transition_steps=800, transition_begin=100)

    def prune(plan):
        return Method(optax.chain(sgd, sj.optim.prune(plan, ramp, every=20)))

    methods = {
        "dense": (Method(sgd), None),
        "pruned 90 %, ERK": (prune(erk), 0.012),
        "pruned 90 %, global": (prune(together), None),
        "random 90 %, static, ERK": (
            Method(
                optax.chain(sgd, sj.optim.prune(erk, every=STEPS)),
                start=lambda p: sj.masks.apply_masks(p, random_masks(erk, p)),
            ),
            0.03,
        ),
        "2:4, SR-STE": (
            Method(
                optax.chain(sgd, sj.optim.track_masks(nm)),
                lambda p, s: sj.masks.straight_through(p, s[-1].masks, decay=2e-4),
            ),
            0.01,
        ),
        "2:4, pruned along a ramp": (prune(nm), 0.01),
    }
    rows, reference = [], None
    for name, (method, allowed) in methods.items():
        found = np.asarray(train(method, data, WIDTHS, steps=STEPS, seeds=SEEDS).accuracy)
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
        table_of(f"digits, 64-256-256-10, {STEPS} steps, {SEEDS} seeds", columns, rows),
    )


if __name__ == "__main__":
    main()
