"""CETT against the published search in plain NumPy, CETT-PPL-p%, and the laws' published rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

RNG = np.random.default_rng(0)


def case(act, dead=False):
    z = RNG.normal(size=(40, 24))
    z = (np.maximum(z, 0) if act == "relu" else z / (1 + np.exp(-z))) * RNG.normal(size=(40, 24))
    w = RNG.normal(size=(24, 10)) * np.exp(RNG.normal(size=(24, 1)))
    if dead:
        w[5], z[7] = 0, 0
    return z.astype(np.float32), w.astype(np.float32)


def cett_by_hand(z, w, epsilon):
    errors = []
    for token in z.astype(np.float64):
        parts = token[:, None] * w
        small = np.linalg.norm(parts, axis=1) <= epsilon
        whole = np.linalg.norm(parts.sum(0))
        errors.append(np.linalg.norm(parts[small].sum(0)) / whole if whole else 0.0)
    return np.mean(errors)


@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("target", [0.0, 0.05, 0.2, 0.5])
def test_thresholds(act, dead, target):
    z, w = case(act, dead)
    norms = np.abs(z) * np.linalg.norm(w, axis=1)
    steps = np.linspace(norms.min(), np.quantile(norms, 0.99), 4096)
    left, right = 0, 4095
    while left < right:
        middle = (left + right) // 2
        if cett_by_hand(z, w, steps[middle]) > target:
            right = middle
        else:
            left = middle + 1
    want = steps[left - 1] if left else 0.0
    got = float(
        jax.jit(sparse.cett_threshold, static_argnames="candidates")(z, w, target, candidates=4096)
    )
    assert abs(got - want) <= 2 * (steps[1] - steps[0])
    np.testing.assert_allclose(sparse.cett(z, w, float(want)), cett_by_hand(z, w, want), atol=1e-4)
    for epsilon in (0.0, 0.3):
        kept = np.asarray(sparse.cett_mask(z, w, epsilon))
        by_norm = np.linalg.norm(w, axis=1)
        for t, i in np.ndindex(kept.shape):
            drop = abs(z[t, i]) < epsilon / by_norm[i] if by_norm[i] else epsilon > 0
            assert kept[t, i] == (not drop)


def test_perplexity_sparsity():
    config = sj.models.LlamaConfig(
        vocabulary=23, width=16, hidden=32, layers=2, heads=4, key_heads=2, head_size=4
    )
    model = sj.models.Llama(config, rngs=nnx.Rngs(0))
    # Text that the model itself likes, so that errors cost.
    model.head.kernel[...] *= 6
    ids = jnp.array(
        sj.models.generate(model, [[1], [5]], 24, temperature=1.0, key=jax.random.key(0))
    )
    found = sparse.perplexity_sparsity(model, [ids], 0.05, tol=1e-3)
    assert 1 <= found.perplexity_ratio < 1.05
    assert set(found.activation_ratio) == {"layers/0/mlp/down", "layers/1/mlp/down"}
    assert all(0 < ratio < 1 for ratio in found.activation_ratio.values())
    losses = [
        np.mean([sj.models.token_losses(m, row) for row in np.asarray(ids)])
        for m in (
            model,
            sj.nn.replace(model, {
                f"^{p}$": sparse.NeuronGate.at(
                    model.layers[int(p.split("/")[1])].mlp.down.kernel[...], tau
                )
                for p, tau in found.thresholds.items()
            }),
        )
    ]  # fmt: skip
    np.testing.assert_allclose(np.exp(losses[1] - losses[0]), found.perplexity_ratio, rtol=1e-3)
    with pytest.raises(ValueError, match="at least one batch"):
        sparse.perplexity_sparsity(model, [])


RELU = [
    (0.449, -3.05, 0.286, 0.0674), (0.683, -3.46, 0.0790, 0.0690), (1.01, -3.49, 7.97e-3, 0.0721),
    (1.33, -3.89, 9.03e-4, 0.0782), (1.53, -3.46, 1.56e-4, 0.0648),
]  # fmt: skip
SILU = [
    (0.479, 0.0, 0.102, 0.409), (0.844, 0.0, 0.208, 0.390), (1.03, 0.0, 0.420, 0.385),
    (0.995, 0.0, 0.562, 0.383), (0.967, 0.0, 0.538, 0.382),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, row", [("relu", row) for row in RELU] + [("silu", row) for row in SILU]
)
def test_published_laws_are_recovered(kind, row):
    law, tokens = sparse.ActivationLaw(kind, *row), np.linspace(8, 300, 60)
    ratios = sparse.activation_law(law, tokens)
    alpha, b, c, limit = row
    by_hand = np.exp(-c * tokens**alpha + b) if kind == "relu" else -c / tokens**alpha
    np.testing.assert_allclose(ratios, by_hand + limit, rtol=1e-12)
    fit = sparse.fit_activation_law(tokens, ratios, kind)
    np.testing.assert_allclose(fit[1:5], row, rtol=1e-3)
    assert fit.residual < 1e-12


def test_the_ill_conditioned_row_has_the_same_curve():
    law, tokens = (
        sparse.ActivationLaw("relu", 0.101, -0.0151, 3.20, 0.0614),
        np.linspace(8, 300, 60),
    )
    ratios = sparse.activation_law(law, tokens)
    fit = sparse.fit_activation_law(tokens, ratios, "relu")
    np.testing.assert_allclose(sparse.activation_law(fit, tokens), ratios, atol=1e-5)


def test_mistakes():
    for tokens, ratios, what in (
        (np.ones(4), np.ones(4), "at least five"),
        (np.zeros(9), np.ones(9), "tokens must be above 0"),
        (np.ones(9), 2 * np.ones(9), r"ratios must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=what):
            sparse.fit_activation_law(tokens, ratios, "relu")


def test_laws_refuse_what_they_do_not_describe():
    law = sparse.ActivationLaw("silu", 1.0, 0.0, 0.5, 0.4)
    for tokens in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="tokens must be above 0"):
            sparse.activation_law(law, tokens)
    with pytest.raises(ValueError, match="law.kind must be"):
        sparse.activation_law(law._replace(kind="gelu"), 1.0)
    with pytest.raises(ValueError, match="error.* is NaN"):
        sparse.greedy_allocation(lambda s: float("nan"), [1.0])
