"""The index that ranks fine-tuned generators."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ..._arguments import checked


@checked()
def vlhi(
    fid: ArrayLike | Sequence[float], clip: ArrayLike | Sequence[float]
) -> Float[np.ndarray, " methods"]:
    r"""Visual-linguistic harmony index: image quality and agreement with the text in one number.

    `(max FID - FID) / (max FID - min FID) + (CLIP - min CLIP) / (max CLIP - min CLIP)` over the
    methods compared, between 0 and 2, larger is better. A column of equal values counts 0.

    Args:
      fid: Frechet inception distance of each method, smaller is better.
      clip: CLIP score of each method, larger is better.

    Raises:
      ValueError: If the two are not vectors of one length, are empty, or are not finite.

    Reference:
      Hu et al., SaRA, 2024 (arXiv 2409.06633).

    Example:
      >>> from sparsejax.contrib.sara import vlhi
      >>> vlhi([30.0, 20.0, 40.0], [0.2, 0.3, 0.4]).tolist()
      [0.5, 1.5, 1.0]
    """
    distance, score = np.asarray(fid, np.float64), np.asarray(clip, np.float64)
    if distance.ndim != 1 or distance.shape != score.shape or not distance.size:
        raise ValueError(
            "vlhi: fid and clip must be vectors with a number for each method, got shapes "
            f"{distance.shape} and {score.shape}."
        )
    if not (np.isfinite(distance).all() and np.isfinite(score).all()):
        raise ValueError("vlhi: fid and clip must be finite.")
    return _share(-distance) + _share(score)


def _share(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
