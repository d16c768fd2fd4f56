"""Predicting embeddings with latents that serve few groups of features, on digits (2504.16140).

    python -m benchmarks jepa

Digits as 4 x 4 patches of 2 x 2 pixels; a transformer of width 32 predicts the embeddings of a
block of 2 x 2 patches from the other 12. Logistic regression on the mean token of the target
encoder, 1200 digits for training and 597 for testing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks._report import save, table_of
from sparsejax.contrib import jepa

TRAIN, WIDTH, GROUPS = 1200, 32, 8


def data_of_digits():
    images, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = jnp.asarray(images[order].reshape(-1, 8, 8, 1) / 8 - 1, jnp.float32)
    return jepa.patches_of(images, 2), y[order]


def networks(seed: int):
    encoder = jepa.PatchEncoder(16, 4, WIDTH, 1, 4, rngs=nnx.Rngs(seed))
    predictor = jepa.Predictor(16, WIDTH, WIDTH, GROUPS, 1, 4, rngs=nnx.Rngs(100 + seed))
    return encoder, predictor


def trained(seed: int, strength: float, steps: int) -> jepa.SparseJEPA:
    patches, _ = data_of_digits()
    return jepa.train_jepa(
        *networks(seed), patches[:TRAIN], grid=(4, 4), block=(2, 2), steps=steps, strength=strength,
        momentum=0.99, chunk=100, key=jax.random.key(seed),
    )  # fmt: skip


def probe(encoder) -> tuple[float, float, float]:
    """Test accuracies of logistic regression on features, plain and standardised; their std."""
    patches, y = data_of_digits()
    x = np.asarray(jepa.features(encoder, patches), np.float64)

    def accuracy(x):
        fitted = LogisticRegression(max_iter=5000).fit(x[:TRAIN], y[:TRAIN])
        return fitted.score(x[TRAIN:], y[TRAIN:])

    scaled = StandardScaler().fit(x[:TRAIN]).transform(x)
    return accuracy(x), accuracy(scaled), float(x.std(0).mean())


def dependence(found: jepa.SparseJEPA) -> tuple[float, float]:
    """Multi-information of the features of the target encoder, single and in the groups."""
    patches, _ = data_of_digits()
    x = jepa.features(found.target, patches)
    # A normalised token has a constant sum: a small ridge makes the covariance definite.
    covariance = jnp.cov(x.T)
    covariance += 1e-3 * jnp.trace(covariance) / WIDTH * jnp.eye(WIDTH)
    labels = jnp.arange(WIDTH) // (WIDTH // GROUPS)
    return tuple(float(jepa.multi_information(covariance, g)) for g in (None, labels))


def numbers_of(run: jepa.SparseJEPA) -> tuple[float, ...]:
    """A row of the table: probes, loss, sparsity of the output layer, multi-information."""
    kernel = run.predictor.output.kernel[...]
    used = float(jepa.groups_per_latent(kernel).mean())
    sparsity = float(jepa.row_sparsity(kernel))
    return *probe(run.target), float(run.losses[-1]), sparsity, used, *dependence(run)


def main(quick: bool = False) -> None:
    seeds, steps, strengths = (1, 200, (0.0, 0.3)) if quick else (3, 600, (0.0, 0.1, 0.3, 1.0))
    random = [probe(networks(seed)[0]) for seed in range(seeds)]
    base = np.mean(random, 0)
    rows = [["random encoder", *(f"{v:.3f}" for v in base), "", "", "", "", ""]]
    mean = {}
    for strength in strengths:
        runs = [trained(seed, strength, steps) for seed in range(seeds)]
        mean[strength] = found = np.mean([numbers_of(run) for run in runs], 0)
        rows.append([f"strength {strength:g}", *(f"{v:.3f}" for v in found[:6]),
                     *(f"{v:.1f}" for v in found[6:])])  # fmt: skip
    plain, sparse = mean[0.0], mean[0.3]
    zeros = {strength: 100 * found[4] for strength, found in mean.items()}
    gains = [100 * (found[0] - base[0]) for found in (plain, sparse)]
    ahead = 100 * (sparse[0] - plain[0])
    claims = [
        ["points of the probe above a random encoder, strengths 0 and 0.3 (goal 8)",
         " and ".join(f"{g:.1f}" for g in gains), bool(min(gains) >= 8)],
        ["points of strength 0.3 above 0 (goal at least -2)", f"{ahead:+.1f}", bool(ahead >= -2)],
        ["zero rows at 0 and 0.3, % (goals: none, some)",
         f"{zeros[0.0]:.1f} and {zeros[0.3]:.1f}", bool(zeros[0.0] == 0 < zeros[0.3])],
    ]  # fmt: skip
    if 1.0 in zeros:
        claims.append(["zero rows at 1, % (goal: more than 50)", f"{zeros[1.0]:.1f}",
                       bool(zeros[1.0] > 50)])  # fmt: skip
    columns = ["encoder", "probe", "standardised", "std", "loss", "zero rows", "groups a latent",
               "multi-information", "of groups"]  # fmt: skip
    save(
        "jepa",
        table_of(f"digits, {steps} steps, {seeds} seeds", columns, rows),
        table_of("claims", ["claim", "measured"], claims),
        quick=quick, seed=range(seeds),
    )  # fmt: skip
