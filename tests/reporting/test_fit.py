"""The strictest pattern, and the chance of an accident by counting all masks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax.reporting import fit_pattern


def random_mask(shape, sparsity, seed=0):
    size = math.prod(shape)
    order = np.random.default_rng(seed).permutation(size)
    return (order >= round(size * sparsity)).reshape(shape)


def nm_mask(shape, n, m, axis=0):
    """n of every m along an axis, by sorting."""
    scores = np.moveaxis(np.random.default_rng(3).random(shape), axis, -1)
    groups = scores.reshape(*scores.shape[:-1], -1, m)
    kept = groups.argsort(-1).argsort(-1) < n
    return np.moveaxis(kept.reshape(scores.shape), -1, axis)


def block_mask(b):
    return np.kron(random_mask((128 // b, 64 // b), 0.5), np.ones((b, b), bool))


MADE = {
    "1:4": nm_mask((128, 64), 1, 4),
    "2:4": nm_mask((128, 64), 2, 4),
    "1:8": nm_mask((128, 64), 1, 8),
    "2:8": nm_mask((128, 64), 2, 8),
    "4:8": nm_mask((128, 64), 4, 8),
    "8:16": nm_mask((128, 64), 8, 16),
    "block 16x16": block_mask(16),
    "block 4x4": block_mask(4),
    "channel": np.ones((128, 64), bool) & random_mask((64,), 0.5),
    "unstructured": random_mask((128, 64), 0.5),
    "dense": np.ones((128, 64), bool),
}


@pytest.mark.parametrize("name", MADE)
def test_made_masks_are_recognised(name):
    found = fit_pattern(MADE[name])
    assert found.name == name
    assert found.chance == 1.0 if name in ("dense", "unstructured") else found.chance < 1e-6


@pytest.mark.parametrize("p", [sj.NM(2, 4), sj.Block((16, 16), 0.5), sj.Channel(0.5)])
def test_masks_of_the_library_are_recognised(p):
    found = fit_pattern(sj.masks.topk(jax.random.uniform(jax.random.key(3), (128, 64)), p))
    assert found.name in ("2:4", "block 16x16", "channel") and found.chance < 1e-6
    if isinstance(p, sj.NM):
        assert found.pattern == p


def test_the_contraction_axis_decides():
    mask = nm_mask((64, 48), 2, 4, axis=1)
    assert fit_pattern(mask).name == "unstructured"
    assert fit_pattern(mask, axis=1).name == "2:4" and fit_pattern(mask, axis=1).pattern.axis == 1


def test_convolutions_and_stacked_kernels():
    assert fit_pattern(nm_mask((3, 3, 16, 8), 2, 4, axis=2)).name == "2:4"
    mask = nm_mask((3, 32, 16), 2, 4, axis=1)
    assert fit_pattern(mask, stacked=1).name == "2:4"
    assert fit_pattern(mask).name == "unstructured"  # 3-D: the contraction is not known
    channels = np.stack([np.ones((32, 16), bool) & random_mask((16,), 0.5, i) for i in range(3)])
    assert fit_pattern(channels, stacked=1).name == "channel"


def test_rows_and_columns_together_are_channels():
    rows, columns = np.arange(12) % 3 != 0, np.arange(8) % 2 == 0
    assert fit_pattern(np.outer(rows, columns)).name == "channel"
    assert fit_pattern(np.zeros((4, 4), bool)).name == "channel"


def test_a_sparse_random_mask_fits_by_accident():
    fitted = fit_pattern(random_mask((32, 32), 0.9))
    assert fitted.name in ("2:4", "4:8") and fitted.chance > 0.1
    large = fit_pattern(random_mask((256, 256), 0.5))
    assert large.name == "unstructured"


def fits(mask, name):
    """Whether a mask fits, in so many words."""
    if name == "channel":
        return np.array_equal(mask, np.outer(mask.any(1), mask.any(0)))
    if name.startswith("block"):
        tiles = [mask[i : i + 4, j : j + 4] for i in range(0, 8, 4) for j in range(0, 8, 4)]
        return all(t.all() or not t.any() for t in tiles)
    n, m = map(int, name.split(":"))
    groups = [mask[i : i + m, j] for i in range(0, len(mask), m) for j in range(mask.shape[1])]
    return all(g.sum() <= n for g in groups)


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("name", ["1:4", "2:4", "2:8", "channel"])
def test_chance_by_counting_all_masks(name, kept):
    from sparsejax.reporting import _fit

    shape = (8, 2)
    hits = 0
    for chosen in itertools.combinations(range(16), kept):
        mask = np.isin(np.arange(16), chosen).reshape(shape)
        hits += fits(mask, name)
    if name == "channel":
        example = np.arange(16).reshape(shape) < kept
        log = _fit._log_channel_chance(example)
    else:
        n, m = map(int, name.split(":"))
        if kept > 16 // m * n:
            return
        log = _fit._log_nm_chance(16, kept, n, m)
    np.testing.assert_allclose(math.exp(log), hits / math.comb(16, kept), rtol=1e-6)


def test_chance_of_blocks():
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = mask[4:, 4:] = True
    found = fit_pattern(mask)
    assert found.name == "block 4x4"
    np.testing.assert_allclose(found.chance, math.comb(4, 2) / math.comb(64, 32), rtol=1e-6)


def test_large_masks_use_the_limit_theorem(monkeypatch):
    from sparsejax.reporting import _fit

    for kept in (100, 400, 700):
        exact = _fit._log_nm_chance(4096, kept, 2, 4)
        monkeypatch.setattr(_fit, "_EXACT_UP_TO", 0)
        np.testing.assert_allclose(_fit._log_nm_chance(4096, kept, 2, 4), exact, atol=1e-3)
        monkeypatch.undo()


def test_a_simulation_agrees():
    from sparsejax.reporting import _fit

    masks = [random_mask((32, 16), 0.9, seed) for seed in range(2000)]
    rate = np.mean([_fit.largest_group(m[None], 4) <= 2 for m in masks])
    expected = math.exp(_fit._log_nm_chance(512, 51, 2, 4))
    assert 0.2 < expected < 0.9
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


def test_vectors_and_jax_masks():
    assert fit_pattern(jnp.array([True, False])).chance == 1.0
    assert fit_pattern(jnp.array([True, True])).name == "dense"
