"""Every rule against plain NumPy: ties, zero columns, bfloat16, batches and lengths above 1."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

CONFIG = sj.models.LlamaConfig(
    vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4, eos=(3,)
)
IDS = jnp.array([[3, 5, 7, 11, 2, 8], [1, 0, 28, 4, 4, 9]])


@pytest.fixture(scope="module")
def model():
    model = sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))
    key = iter(jax.random.split(jax.random.key(1), 9))
    for layer in model.layers:
        for norm in (layer.attention_norm, layer.norm):
            norm.scale[...] = jax.random.uniform(next(key), (16,), minval=0.5, maxval=1.5)
    return model


def kept_by_hand(x, norms, sparsity, prefix=0.01):
    """The largest scores of each token, the lowest index first; the first tokens whole."""
    x = np.asarray(x, np.float32)
    scores = np.abs(x) * (1 if norms is None else np.asarray(norms, np.float32))
    n = x.shape[-1]
    k = int(n * (1 - sparsity) + 1e-9)
    mask = np.zeros(x.shape, bool)
    for at in np.ndindex(x.shape[:-1]):
        order = sorted(range(n), key=lambda i: (-scores[at][i], i))
        mask[at][order[:k]] = True
    tokens = x.shape[-2] if x.ndim > 1 else 1
    if tokens > 1:
        mask[..., : tokens - int((1 - prefix) * tokens + 1e-9), :] = True
    return mask


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 1, 12), (2, 7, 12), (3, 150, 12)])
@pytest.mark.parametrize("weighted", ["", None])
def test_top_k_gates(shape, dtype, weighted):
    rng = np.random.default_rng(0)
    # Few distinct values give ties.
    x = jnp.asarray(rng.integers(-3, 4, shape) / 4, dtype)
    layer = nnx.Linear(12, 5, rngs=nnx.Rngs(0), param_dtype=dtype, dtype=dtype)
    kernel = layer.kernel[...].at[3].set(0)
    layer.kernel[...] = kernel
    model = nnx.Sequential(layer)
    norms = np.sqrt((np.asarray(kernel, np.float64) ** 2).sum(1)) if weighted == "" else None
    for sparsity in (0.0, 0.25, 0.3, 0.5, 0.9, 1.0):
        gates = sparse.input_gates(model, sparsity, weighted=weighted)
        mask = kept_by_hand(x, norms, sparsity)
        np.testing.assert_array_equal(gates["^layers/0$"].kept(x), mask)
        got = sj.nn.replace(model, gates)(x)
        np.testing.assert_allclose(
            np.asarray(got, np.float32),
            np.asarray(layer(x * mask), np.float32),
            rtol=1e-5,
            atol=1e-6,
        )


def test_wina_is_optimal_for_orthogonal_rows():
    """Against all masks, for random kernels after the rotation."""
    rng, better = np.random.default_rng(0), []
    for _ in range(40):
        kernel, x = rng.normal(size=(9, 12)), rng.normal(size=9)
        rotation = np.linalg.svd(kernel.T)[2].T
        turned, x = rotation.T @ kernel, rotation.T @ x
        gram = turned @ turned.T
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-10)
        errors = {
            kept: np.linalg.norm(np.delete(x, kept) @ np.delete(turned, kept, 0))
            for kept in itertools.combinations(range(9), 4)
        }
        chosen = []
        for norms in (sparse.kernel_norms(jnp.asarray(turned)), None):
            scores = sparse.input_scores(jnp.asarray(x), norms)
            mask = sj.select.TopK(4)(scores)
            chosen.append(errors[tuple(np.flatnonzero(mask).tolist())])
        assert np.isclose(chosen[0], min(errors.values()), rtol=1e-4)
        better.append(chosen[0] / chosen[1])
    assert np.mean(better) < 0.9


def quantile_by_hand(samples, q):
    values, counts = np.unique(np.asarray(samples, np.float32), return_counts=True)
    total, before = np.cumsum(counts), 0
    for i, (v, c) in enumerate(zip(values, total)):
        if c >= q * total[-1]:
            if i == 0:
                return v
            return values[i - 1] + (q * total[-1] - before) / (c - before) * (v - values[i - 1])
        before = c
    return values[-1]


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_quantiles_of_batches(q):
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 9, 50) / 4, rng.normal(size=(7, 9)), np.zeros(3)]
    counts = None
    for batch in batches:
        counts = sparse.count_values(batch, counts)
    everything = np.concatenate([np.ravel(b) for b in batches])
    assert np.isclose(sparse.pooled_quantile(counts, q), quantile_by_hand(everything, q), atol=1e-6)
    few = None
    for _ in range(5):
        few = sparse.count_values(rng.normal(size=4000), few, limit=500)
    assert len(few.values) <= 500 and few.counts.sum() == 20_000
    exact = sparse.pooled_quantile(few, 0.5)
    assert abs(exact) < 0.05


def test_thresholds(model):
    batches = [IDS, IDS[:, ::-1]]
    gates = sparse.input_gates(model, 0.4, sparse.input_counts(model, batches), dense_prefix=0.0)
    path = "layers/1/mlp/down"
    scores = []
    for ids in batches:
        _, seen = sj.nn.record(model, f"{path}$", ids, reduce=lambda inputs, y: inputs[0])
        kernel = np.asarray(model.layers[1].mlp.down.kernel[...], np.float64)
        scores.append(np.abs(seen[path]) * np.sqrt((kernel**2).sum(1)))
    tau = quantile_by_hand(np.concatenate([s.ravel() for s in scores]), 0.4)
    gate = gates[f"^{path}$"]
    np.testing.assert_allclose(gate.selector.tau, tau, rtol=1e-5)
    kept = np.mean(np.concatenate([s.ravel() for s in scores]) > float(gate.selector.tau))
    assert abs(kept - 0.6) < 0.01
    assert (
        float(
            sparse.input_gates(model, 0.0, sparse.input_counts(model, batches))[
                f"^{path}$"
            ].selector.tau
        )
        == 0
    )


def test_cats(model):
    gates = sparse.activation_gates(model, 0.5)
    assert len(gates) == 2
    mlp, x = model.layers[0].mlp, jax.random.normal(jax.random.key(0), (2, 3, 16))
    y = np.asarray(sj.nn.replace(mlp, {"^gate$": gates["^layers/0/mlp/gate$"]})(x), np.float64)
    gate, up, down = (np.asarray(m.kernel[...], np.float64) for m in (mlp.gate, mlp.up, mlp.down))
    g = np.asarray(x, np.float64) @ gate
    u = g / (1 + np.exp(-g))
    kept = np.argsort(np.argsort(-np.abs(u), -1), -1) < 12
    np.testing.assert_allclose(y, (u * kept * (np.asarray(x, np.float64) @ up)) @ down, atol=1e-5)
    calibrated = sparse.activation_gates(model, 0.5, sparse.activation_counts(model, [IDS]))
    assert all(isinstance(g.selector, sj.select.Threshold) for g in calibrated.values())


def test_orthogonalize(model):
    rotated = sparse.orthogonalize(model)
    assert np.abs(rotated(IDS) - model(IDS)).max() < 1e-4
    for layer in rotated.layers:
        for linear in (layer.attention.key, layer.mlp.gate):
            rows = np.asarray(linear.kernel[...], np.float64)
            gram = rows @ rows.T
            assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-5 * gram.max()
    gates = sparse.input_gates(rotated, 0.5, weighted=r"(key|gate)$")
    assert sum(gate.norms is not None for gate in gates.values()) == 4
    assert sj.nn.replace(rotated, gates)(IDS).shape == (2, 6, 29)
    stack = sj.models.Llama(CONFIG, scan=True, rngs=nnx.Rngs(0))
    for refused in (sparse.orthogonalize, lambda m: sparse.input_gates(m, 0.5)):
        with pytest.raises(ValueError, match="scan=False"):
            refused(stack)


def test_greedy_allocation():
    w, target, step = [4.0, 2.0, 8.0], 0.5, 0.1
    cost = np.array([5.0, 1.0, 3.0])
    error = lambda s: float(cost @ np.asarray(s) ** 2)  # noqa: E731
    path = sparse.greedy_allocation(error, w, target=target, step=step)
    relative, s, rows = np.array(w) / 4, np.zeros(3), [np.zeros(3)]
    while relative @ s / relative.sum() < target - 1e-12:
        trials = [s + step / relative[p] * np.eye(3)[p] for p in range(3) if s[p] < 1]
        s = min(trials, key=error)
        rows.append(s)
    np.testing.assert_allclose(path.by_projection, rows)
    np.testing.assert_allclose(path.sparsity, np.array(rows) @ relative / relative.sum())
    np.testing.assert_allclose(path.error, [error(r) for r in rows])
    assert path.sparsity[-1] >= target
    nearest = np.abs(path.sparsity - 0.3).argmin()
    np.testing.assert_allclose(sparse.allocation_at(path, 0.3), np.minimum(rows[nearest], 1))


def test_block_sparsities(model):
    found = sparse.block_sparsities(model, [IDS], 0.4, step=0.2)
    assert len(found) == 14 and all(0 <= s <= 1 for s in found.values())
    sizes = {p: 16 * 16 for p in ("query", "out")} | {p: 16 * 8 for p in ("key", "value")}
    sizes |= {p: 16 * 24 for p in ("gate", "up", "down")}
    for i in range(2):
        own = {p.split("/")[-1]: s for p, s in found.items() if p.startswith(f"layers/{i}/")}
        mean = sum(sizes[p] * s for p, s in own.items()) / sum(sizes.values())
        assert abs(mean - 0.4) < 0.1
    assert len(sparse.input_gates(model, found)) == 14


def test_perplexity_generate_and_skipping(model):
    """Gates over dense and over skipping kernels write the same, for several prompts at once."""
    text = np.random.default_rng(0).integers(0, 29, 40)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for gates in (
        sparse.input_gates(model, 0.5),
        sparse.input_gates(
            model, 0.5, sparse.input_counts(model, [IDS], weighted=None), weighted=None
        ),
        sparse.activation_gates(model, 0.5),
    ):
        masked = sj.nn.replace(model, gates)
        fast = sj.nn.replace(sparse.skip_inputs(model), gates)
        dense, one, two = (sj.models.perplexity(m, text, window=16) for m in (model, masked, fast))
        assert abs(one - two) < 1e-3 * one and one != dense
        assert sj.models.generate(masked, prompts, 6) == sj.models.generate(fast, prompts, 6)
    rounded = sparse.skip_inputs(model, int8=True)
    assert 0 < np.abs(rounded(IDS) - model(IDS)).max() < 0.2
    assert not any(isinstance(m, sj.nn.SparseKernel) for _, m in nnx.iter_modules(model))


def test_mistakes(model):
    with pytest.raises(ValueError, match="where='nothing' matches no linear layer"):
        sparse.input_gates(model, 0.5, where="nothing")
    with pytest.raises(ValueError, match=r"sparsity.*1\.5"):
        sparse.input_gates(model, 1.5)
    with pytest.raises(ValueError, match="names layers/7, which is not"):
        sparse.input_gates(model, {"layers/7": 0.5})
    with pytest.raises(ValueError, match="at least one batch"):
        sparse.input_counts(model, [])
    counts = sparse.input_counts(model, [IDS], where="mlp")
    with pytest.raises(ValueError, match=r"counts has no .*input_counts\(model, batches\)"):
        sparse.input_gates(model, 0.5, counts)
    broken = nnx.clone(model)
    broken.layers[0].mlp.up.kernel[...] = jnp.full((16, 24), jnp.nan)
    with pytest.raises(ValueError, match="NaN at the layer layers/0/mlp/down"):
        sparse.input_counts(broken, [IDS])
    with pytest.raises(ValueError, match="counts is empty"):
        sparse.pooled_quantile(sparse.count_values(np.zeros(0)), 0.5)
    with pytest.raises(ValueError, match="sizes must be positive"):
        sparse.greedy_allocation(lambda s: 0.0, [1.0, 0.0])
