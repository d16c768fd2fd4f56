"""Densities, operations, fronts, tests and laws against numbers of the paper, SciPy and by hand."""

import jax
import numpy as np
import pytest
from scipy import stats

import sparsejax as sj
from sparsejax.contrib import sparse_attention as sparse


def qwen(layers, width, hidden, heads, key_heads):
    return sj.models.LlamaConfig(
        vocabulary=152_064, width=width, hidden=hidden, layers=layers, heads=heads,
        key_heads=key_heads, head_size=128,
    )  # fmt: skip


QWEN = {
    "7B": qwen(28, 3584, 18_944, 28, 4),
    "14B": qwen(48, 5120, 13_824, 40, 8),
    "32B": qwen(64, 5120, 27_648, 40, 8),
    "72B": qwen(80, 8192, 29_568, 64, 8),
}
# PFLOP to read 128k tokens, dense and at a sparsity of 0.95.
PREFILL = {"7B": (5.30, 2.03), "14B": (12.1, 4.09), "32B": (19.6, 8.95), "72B": (41.3, 19.9)}


def test_the_figures_of_the_cost_model():
    n = 131_072
    for name, (dense, sparsest) in PREFILL.items():
        for sparsity, want in ((0.0, dense), (0.95, sparsest)):
            got = sparse.decoder_flops(QWEN[name], n, sparsity).total / 1e15
            assert float(f"{got:.3g}") == pytest.approx(want, abs=0.0051 * want)
    short = {s: sparse.decoder_flops(QWEN["7B"], 16_384, s).total / 1e15 for s in (0.0, 0.95)}
    assert (round(short[0.0], 2), round(short[0.95], 2)) == (0.29, 0.23)
    # A larger model at .95 costs less than a smaller dense one where texts are long only.
    large = lambda n: sparse.decoder_flops(QWEN["14B"], n, 0.95).total  # noqa: E731
    small = lambda n: sparse.decoder_flops(QWEN["7B"], n).total  # noqa: E731
    assert large(131_072) < small(131_072) and large(16_384) > small(16_384)
    assert large(16_384) / 1e15 == pytest.approx(0.47, abs=0.01)


def test_operations_by_part():
    config = sj.models.LlamaConfig(
        vocabulary=11, width=6, hidden=10, layers=3, heads=4, key_heads=2, head_size=2
    )
    n = 7
    x, wq, wk = np.ones((n, 6)), np.ones((6, 8)), np.ones((6, 4))
    product = lambda a, b: 2 * a.shape[0] * a.shape[1] * b.shape[1]  # noqa: E731
    got = sparse.decoder_flops(config, n, 0.25)
    assert got.projections == 3 * (2 * product(x, wq) + 2 * product(x, wk))
    pairs = sum(i + 1 for i in range(n))
    assert got.attention == 3 * 4 * (2 * 2 + 2 * 2) * pairs * 0.75
    assert got.mlp == 3 * 3 * product(x, np.ones((6, 10)))
    assert got.head == product(x, np.ones((6, 11))) and got.indexing == 0
    assert got.total == got.projections + got.attention + got.mlp + got.head
    one = sparse.decoder_flops(config, n, decode=True)
    assert one.projections == got.projections / n and one.head == got.head / n
    assert one.attention == 3 * 4 * 8 * n
    indexing = {
        sparse.VerticalSlash(probe=3): 2 * 3 * n * 4 * 2,
        sparse.FlexPrefill(probe=99): 2 * n * n * 4 * 2,
        sparse.SnapKV(window=2): 2 * 2 * n * 4 * 2,
        sparse.BlockTopK(7): 2 * 1 * 4 * 2,
        sparse.Quest(14, 7): 4 * 1 * 4 * 2,
        sparse.SparseAttention(): 0,
    }
    for method, want in indexing.items():
        assert sparse.decoder_flops(config, n, method=method).indexing == 3 * want


def test_densities():
    q = jax.random.normal(jax.random.key(0), (50, 2, 4))
    stripes = sparse.VerticalSlash(3, 4, probe=8, sinks=1, local=2).select(q, q)
    mask = np.asarray(stripes.to_mask(50))
    np.testing.assert_allclose(
        sparse.pair_density(mask), np.tril(mask).sum((1, 2)) / (50 * 51 / 2), rtol=1e-6
    )
    assert sparse.pair_density(np.ones((9, 9), bool)) == 1
    blocks = stripes.tile_closure((8, 8))
    tiles = np.array([sum(blocks.to_block_mask(7)[h].sum(1)) for h in range(2)])
    np.testing.assert_allclose(sparse.computed_density(blocks, 50), tiles * 64 / 1275, rtol=1e-6)
    # The figure that the paper's code reports as 1 - sparsity is above 1 for short texts.
    whole = sj.kernels.KeyBlocks.from_mask(np.tri(2, dtype=bool), (8, 8))
    assert sparse.computed_density(whole, 16) > 1


def test_pareto_front():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, value = rng.integers(0, 5, (2, 12)).astype(float)
        want = [
            not any(
                cost[j] <= cost[i] and value[j] >= value[i]
                and (cost[j] < cost[i] or value[j] > value[i])
                for j in range(12)
            )
            for i in range(12)
        ]  # fmt: skip
        assert sparse.pareto_front(cost, value).tolist() == want
    with pytest.raises(ValueError, match="cost and value"):
        sparse.pareto_front([1.0, 2.0], [1.0])


def test_isoflops():
    """Accuracies by the size alone: at 128k the larger and sparser model wins at equal cost."""
    size = {"7B": 0.5, "14B": 0.7}
    rows = sparse.isoflops(
        {name: QWEN[name] for name in size}, [16_384, 131_072], [0.0, 0.95],
        lambda model, length, sparsity: size[model] - 0.05 * sparsity,
    )  # fmt: skip
    best = {
        n: {(r.model, r.sparsity) for r in rows if r.best and r.length == n}
        for n in (16_384, 131_072)
    }
    assert ("7B", 0.0) in best[16_384] and ("7B", 0.0) not in best[131_072]
    assert len(rows) == 8 and [r.flops for r in rows[:4]] == sorted(r.flops for r in rows[:4])


def test_tolerable_sparsity():
    rng = np.random.default_rng(0)
    dense = (rng.random(100) < 0.8).astype(float)
    wrong = lambda share: np.where(rng.random(100) < share, 0.0, dense)  # noqa: E731
    scores = {0.5: wrong(0.01), 0.9: wrong(0.02), 0.95: wrong(0.3)}
    got = sparse.tolerable_sparsity(dense, scores)
    for sparsity, values in scores.items():
        want = stats.ttest_rel(dense, values, alternative="greater").pvalue
        assert got.p[sparsity] == pytest.approx(want)
        assert got.drop[sparsity] == pytest.approx(dense.mean() - values.mean())
    assert got.sparsity == 0.9 and got.p[0.95] < 0.05
    same = sparse.tolerable_sparsity(dense, {0.5: dense, 0.9: dense - 0.1})
    assert same.sparsity == 0.5 and same.p == {0.5: 1.0, 0.9: 0.0}
    assert sparse.tolerable_sparsity(dense, {0.9: dense - 1}).sparsity == 0
    with pytest.raises(ValueError, match=r"sparse\[0.5\]"):
        sparse.tolerable_sparsity(dense, {0.5: dense[:9]})


def test_scaling_law():
    grid = np.meshgrid([7.0, 14, 32, 72], [16.0, 32, 64], [1.0, 2, 10])
    N, L, C = (x.ravel() for x in grid)
    rng = np.random.default_rng(0)
    odds = -2 - 0.4 * np.log(N) + 0.6 * np.log(L) + 0.3 * np.log(C) + 0.1 * rng.normal(size=len(N))
    law = sparse.fit_scaling_law(N, L, C, 1 / (1 + np.exp(odds)))
    X = np.stack([np.ones(len(N)), np.log(N), np.log(L), np.log(C)], 1)
    beta = np.linalg.solve(X.T @ X, X.T @ odds)  # the normal equations
    np.testing.assert_allclose([law.offset, law.size, law.length, law.compression], beta, rtol=1e-6)
    assert law.residual == pytest.approx(np.sqrt(np.mean((odds - X @ beta) ** 2)))
    np.testing.assert_allclose(law.accuracy(N, L, C), 1 / (1 + np.exp(X @ beta)))
    errors = []
    for value in (16.0, 32.0, 64.0):
        rest = value != L
        b = np.linalg.solve(X[rest].T @ X[rest], X[rest].T @ odds[rest])
        errors.append(odds[~rest] - X[~rest] @ b)
    assert law.held_out["length"] == pytest.approx(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    two = sparse.fit_scaling_law(*(x[C < 10] for x in (N, L, C)), 1 / (1 + np.exp(odds[C < 10])))
    assert np.isnan(two.held_out["compression"]) and np.isfinite(two.compression)
    for bad in (dict(accuracy=np.ones(len(N))), dict(compression=0.5 * C), dict(size=N * 0 + 7)):
        given = {"size": N, "length": L, "compression": C, "accuracy": np.full(len(N), 0.5)} | bad
        with pytest.raises(ValueError, match=next(iter(bad))):
            sparse.fit_scaling_law(**given)
