"""Random pruning at initialisation on digits (2202.02643): width closes the gap to dense.

    python -m benchmarks random_pruning

Static random masks at 90 %, uniform and ERK, for three widths; beyond accuracy the calibration
error and the detection of images with shuffled pixels, where the paper's advantage of sparse
networks does not show on this small task.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

import sparsejax as sj
from benchmarks._digits import Method, cross_entropy, digits, logits, mlp, train
from benchmarks._report import save, table_of

SPARSITY = 0.9


def random_masks(plan, params):
    """Masks from a key that differs between seeds because the parameters do."""
    seed = jax.lax.bitcast_convert_type(params["layer_0"]["kernel"][0, 0], jnp.uint32)
    return plan.masks(sj.masks.random(params, key=jax.random.key(seed)))


def method(plan, steps):
    rate = optax.cosine_decay_schedule(0.1, steps)
    sgd = optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(rate, 0.9))
    if plan is None:
        return Method(sgd)
    # The entries that start at zero score lowest at the one update of the masks, at step 0.
    tx = optax.chain(sgd, sj.optim.prune(plan, every=steps))
    return Method(tx, start=lambda p: sj.masks.apply_masks(p, random_masks(plan, p)))


def evaluate(run, data):
    """Accuracy, calibration error and AUROC of shuffled images, per seed."""
    order = jax.random.permutation(jax.random.key(5), data.x_test.shape[1])
    shuffled = data.x_test[:, order]

    def one(params, labels):
        inside, outside = logits(params, data.x_test), logits(params, shuffled)
        error = sj.metrics.expected_calibration_error(jax.nn.softmax(inside), labels)
        confident = [sj.metrics.max_softmax_probability(x) for x in (inside, outside)]
        moved = sj.metrics.fgsm(lambda x: cross_entropy(params, x, labels), data.x_test, 8 / 255)
        attacked = jnp.mean(logits(params, moved).argmax(-1) == labels)
        return error, jnp.concatenate(confident), attacked

    error, confident, attacked = map(
        np.asarray, jax.jit(jax.vmap(one, in_axes=(0, None)))(run.params, data.y_test)
    )
    is_digit = np.repeat([1, 0], len(data.x_test))
    detect = np.array([roc_auc_score(is_digit, c) for c in confident])
    return error, detect, attacked


def main(quick: bool = False) -> None:
    steps, seeds = (80, 2) if quick else (800, 4)
    data, rows, accuracy = digits(), [], {}
    for width in (64,) if quick else (16, 64, 256):
        widths = (64, width, width, 10)
        params = mlp(widths, jax.random.key(0))
        plans = {
            "dense": None,
            "uniform": sj.plan(params, sj.Unstructured(SPARSITY), allocate=sj.masks.uniform),
            "ERK": sj.plan(params, sj.Unstructured(SPARSITY), allocate=sj.masks.erk),
        }
        for name, plan in plans.items():
            run = train(method(plan, steps), data, widths, steps=steps, seeds=seeds)
            if plan is not None:
                kept = [np.count_nonzero(run.params[f"layer_{i}"]["kernel"][0]) for i in range(3)]
                assert kept == [leaf.kept for leaf in plan.leaves]
            found = np.asarray(run.accuracy)
            accuracy[width, name] = found.mean()
            error, detect, attacked = evaluate(run, data)
            rows.append(
                [
                    f"{name}, H = {width}",
                    f"{found.mean():.4f}",
                    f"{found.std():.4f}",
                    f"{error.mean():.3f}",
                    f"{detect.mean():.3f}",
                    f"{attacked.mean():.4f}",
                ]
            )
    lead = accuracy[64, "ERK"] - accuracy[64, "uniform"]
    claims = [["ERK minus uniform at 64", f"{lead:.3f}", ">= 0.01", bool(lead >= 0.01)]]
    gap = {h: accuracy[h, "dense"] - accuracy[h, "ERK"] for h, name in accuracy if name == "ERK"}
    for small, large, goal in () if quick else ((16, 64, 3), (64, 256, 2)):
        ratio, met = gap[small] / gap[large], gap[small] > goal * gap[large]
        claims.append(
            [f"gap at {small} over gap at {large}", f"{ratio:.1f}", f"> {goal}", bool(met)]
        )
    save(
        "random-pruning",
        table_of(
            f"static random masks at 90 %, 64-H-H-10 on digits, {steps} steps, {seeds} seeds",
            ["network", "accuracy", "sd", "ECE", "AUROC shuffled", "FGSM 8/255"],
            rows,
        ),
        table_of("what the paper says of width and ratios", ["claim", "found", "goal"], claims),
        quick=quick,
        seed=0,
    )
