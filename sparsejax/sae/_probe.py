"""Sparse probes: how well a few latents predict a label."""

import numpy as np
from jaxtyping import Array, Shaped

from .._arguments import check_not_nan, checked
from ..solve import lasso_host


@checked(k="[1, inf)", strength="(0, inf)")
def sparse_probe(
    features: Shaped[Array | np.ndarray, "n h"],
    labels: Shaped[Array | np.ndarray, " n"],
    k: int,
    *,
    held_out: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
    strength: float = 1e-3,
) -> tuple[np.ndarray, float]:
    r"""Logistic regression on the k latents whose means differ most between two classes.

    Args:
      features: Features of samples.
      labels: Classes 0 and 1, or booleans.
      k: Number of latents.
      held_out: Features and labels on which the accuracy is measured; None for the training data.
      strength: Of the l1 penalty on the standardised features.

    Returns:
      The latents, the largest difference first, and the accuracy.

    Raises:
      ValueError: If there are not two classes, k is larger than h, or `held_out` does not fit.

    Reference:
      Gurnee et al., Finding Neurons in a Haystack, 2023 (arXiv 2305.01610).

    Example:
      >>> import numpy as np, sparsejax as sj
      >>> f = np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [2.0, 2.0]])
      >>> latents, accuracy = sj.sae.sparse_probe(f, np.array([0, 0, 1, 1]), 1)
      >>> latents.tolist(), accuracy
      ([0], 1.0)
    """
    check_not_nan("sparse_probe", features=features)
    f, y = np.asarray(features, np.float32), np.asarray(labels)
    if set(np.unique(y).tolist()) != {0, 1}:
        raise ValueError("sparse_probe: labels must be of two classes, 0 and 1.")
    tested, truth = (f, y) if held_out is None else map(np.asarray, held_out)
    check_not_nan("sparse_probe", held_out=tested)
    fits = tested.shape == (*truth.shape, f.shape[1])
    if not fits or not set(np.unique(truth).tolist()) <= {0, 1}:
        raise ValueError(
            f"sparse_probe: held_out must be features (n, {f.shape[1]}) and n labels 0 and 1, got "
            f"the shapes {tested.shape} and {truth.shape}."
        )
    if not truth.size:
        raise ValueError("sparse_probe: held_out must have at least one sample, got none.")
    if k > f.shape[1]:
        raise ValueError(f"sparse_probe: k must be at most {f.shape[1]} latents, got {k}.")
    y = y.astype(bool)
    gap = np.abs(f[y].mean(0) - f[~y].mean(0))
    latents = np.argsort(-gap, kind="stable")[:k]
    mean, deviation = f[:, latents].mean(0), f[:, latents].std(0)
    deviation = np.where(deviation > 0, deviation, 1)

    def design(f):
        return (f[:, latents] - mean) / deviation

    found = lasso_host(design(f), np.where(y, 1.0, -1.0), strength, loss="logistic", intercept=True)
    guess = design(tested) @ np.asarray(found.value) + found.stats["intercept"] > 0
    return latents, float(np.mean(guess == truth))
