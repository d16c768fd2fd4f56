"""A synthetic scene: smooth spectra, blurred regions, noise, and some ruined channels."""

import numpy as np
from scipy.ndimage import uniform_filter


def scene(seed, outliers, channels=120, k=4, side=30, bad=12):
    """Pixels (channels, side^2), spectra, shares, and which channels are clean."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, 1, channels)[:, None]
    spectra = np.zeros((channels, k))
    for _ in range(4):
        centre, width, height = (
            rng.uniform(0, 1, k),
            rng.uniform(0.05, 0.2, k),
            rng.uniform(0.2, 1, k),
        )
        spectra += height * np.exp(-((at - centre) ** 2) / (2 * width**2))
    spectra /= spectra.max()
    regions = rng.integers(0, k, (side // 5, side // 5)).repeat(5, 0).repeat(5, 1)
    shares = np.stack([uniform_filter((regions == i).astype(float), 7) for i in range(k)])
    shares = shares.reshape(k, -1)
    shares[:, shares.max(0) > 0.8] = 1 / k
    clean = spectra @ shares
    noise = np.sqrt((clean**2).mean() / 10**3)
    pixels = clean + noise * rng.normal(size=clean.shape)
    ruined = rng.choice(channels, bad, replace=False)
    pixels[ruined] += rng.uniform(0, outliers, (bad, pixels.shape[1]))
    good = np.ones(channels, bool)
    good[ruined] = False
    return np.maximum(pixels, 0).astype(np.float32), spectra, shares, good
