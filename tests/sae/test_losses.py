"""Losses against their formulas in NumPy, and the traps of the auxiliary ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import sae

from . import _oracle as oracle

N, D, H = 6, 4, 10
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
pytestmark = pytest.mark.whole


def params_of(activation, seed=0, **more):
    found = sae.SAE(activation, **more).init(D, H, key=jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(found)))
    return {k: x + 0.3 * jax.random.normal(next(keys), x.shape) for k, x in found.items()}


def parts(params):
    """Parameters and the values of a ReLU pass in float64."""
    p = {k: np.asarray(x, np.float64) for k, x in params.items()}
    xc = X - p["b_dec"]
    z = xc @ p["W_enc"] + p.get("b_enc", 0)
    f = np.maximum(z, 0)
    return p, z, f, f @ p["W_dec"] + p["b_dec"], np.linalg.norm(p["W_dec"], axis=1)


def value(activation, loss, params, state=None, x=X, **more):
    """The loss by itself: the reconstruction is replaced."""
    found = sae.SAE(activation, reconstruction=loss, **more)
    return found.loss(params, jnp.asarray(x), found.state(params) if state is None else state)[0]


def test_reconstructions():
    params = params_of(sae.ReLU())
    *_, guess, _ = parts(params)
    total = np.mean(np.sum((X - guess) ** 2, 1))
    spread = np.mean(np.sum((X - X.mean(0)) ** 2, 1))
    for scale, wanted in {"sum": total, "mean": total / D, "fvu": total / spread}.items():
        np.testing.assert_allclose(
            value(sae.ReLU(), sae.Reconstruction(scale), params), wanted, rtol=1e-5
        )
    assert value(sae.ReLU(), sae.Reconstruction("fvu"), params, x=np.ones((3, D))) == 0


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_l1(p):
    params = params_of(sae.ReLU())
    _, _, f, _, norms = parts(params)
    for by_norm in (True, False):
        found = value(sae.ReLU(), sae.L1(0.3, decoder_norm=by_norm, p=p), params)
        wanted = 0.3 * np.mean(np.sum((f * (norms if by_norm else 1)) ** p, 1))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    grads = jax.grad(lambda params: value(sae.ReLU(), sae.L1(0.3, p=p), params))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_gradients_of_a_relu_autoencoder_against_differences():
    params = params_of(sae.ReLU())
    found = sae.SAE(sae.ReLU(), losses=(sae.L1(0.3),))
    grads = jax.grad(lambda p: found.loss(p, jnp.asarray(X), found.state(p))[0])(params)

    def loss(name, value):
        p = {k: np.asarray(x, np.float64) for k, x in params.items()} | {name: value}
        f = np.maximum((X - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
        error = np.mean(np.sum((f @ p["W_dec"] + p["b_dec"] - X) ** 2, 1))
        return error + 0.3 * np.mean(f @ np.linalg.norm(p["W_dec"], axis=1))

    for name, g in grads.items():
        wanted = oracle.numeric_gradient(lambda v: loss(name, v), params[name])  # noqa: B023
        np.testing.assert_allclose(g, wanted, rtol=1e-3, atol=1e-3, err_msg=name)


def test_warm_up():
    params = params_of(sae.ReLU())
    loss, found = sae.L1(0.3, warmup=10), sae.SAE(sae.ReLU())
    state = found.state(params)
    whole = value(sae.ReLU(), sae.L1(0.3), params)
    for at, share in ((0, 0.1), (4, 0.5), (9, 1), (99, 1)):
        now = value(sae.ReLU(), loss, params, state._replace(step=jnp.asarray(at)))
        np.testing.assert_allclose(now, share * whole, rtol=1e-5)


@pytest.mark.parametrize("kind", ["step", "tanh"])
def test_l0(kind):
    params = params_of(sae.JumpReLU())
    params["threshold"] = jnp.full(H, 0.4)
    _, z, _, _, norms = parts(params)
    active = z > 0.4
    smooth = np.tanh(4 * z * active * norms)
    count = np.mean(np.sum(active if kind == "step" else smooth, 1))
    np.testing.assert_allclose(
        value(sae.JumpReLU(), sae.L0(0.2, kind), params), 0.2 * count, rtol=1e-5
    )
    found = value(sae.JumpReLU(), sae.TargetL0(2.0, 3.0), params)
    np.testing.assert_allclose(found, 3 * (np.mean(active.sum(1)) / 2 - 1) ** 2, rtol=1e-5)


def test_pre_activation_loss_reaches_dead_latents_only():
    params = params_of(sae.JumpReLU())
    params["threshold"] = jnp.full(H, 0.4)
    _, z, _, _, norms = parts(params)
    found = sae.SAE(sae.JumpReLU())
    dead = np.arange(H) < 3
    state = found.state(params)._replace(silent=jnp.where(dead, 9, 0))
    wanted = 0.5 * np.mean(np.sum(np.maximum(0.4 - z, 0) * norms * dead, 1))
    loss = sae.PreActivation(0.5, dead_after=9)
    np.testing.assert_allclose(value(sae.JumpReLU(), loss, params, state), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="threshold"):
        value(sae.ReLU(), loss, params_of(sae.ReLU()))


def test_norm_matching():
    params = params_of(sae.ReLU())
    _, _, f, _, _ = parts(params)
    wanted = 0.1 * np.mean((np.linalg.norm(f, axis=1) - np.linalg.norm(X, axis=1)) ** 2)
    np.testing.assert_allclose(value(sae.ReLU(), sae.NormMatching(0.1), params), wanted, rtol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, params)
    grads = jax.grad(lambda p: value(sae.ReLU(), sae.NormMatching(0.1), p))(zero)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("sparse", [False, True])
def test_nested(sparse):
    params = params_of(sae.TopK(4))
    p, z, _, _, _ = parts(params)
    f = oracle.top_k(z, 4)
    sizes, weights = (2, 5, H), (1.0, 0.5, 2.0)
    wanted = sum(
        w * np.mean(np.sum((X - f[:, :m] @ p["W_dec"][:m] - p["b_dec"]) ** 2, 1))
        for m, w in zip(sizes, weights)
    )
    for given in (sizes, sizes[:2]):
        found = value(sae.TopK(4), sae.Nested(given, weights), params, sparse=sparse)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for bad in ((), (5, 2), (0, 2), "ab"):
        with pytest.raises((ValueError, TypeError), match="sizes"):
            sae.Nested(bad)
    with pytest.raises(ValueError, match="at most 10"):
        value(sae.TopK(4), sae.Nested((99,)), params)


def aux_by_hand(z, guess, p, dead, k, normalize):
    scores = np.where(dead, z, -np.inf)
    a = oracle.top_k(z, min(k, int(dead.sum())), scores)
    error = X - guess
    total = np.mean(np.sum((a @ p["W_dec"] - error) ** 2, 1))
    spread = np.mean(np.sum((error - error.mean(0)) ** 2, 1))
    return {"variance": total / spread, "mean": total / D, "none": total}[normalize] / 32


@pytest.mark.parametrize("normalize", ["variance", "mean", "none"])
@pytest.mark.parametrize("k, count", [(2, 5), (8, 3), (None, 4)])
def test_aux_k(k, count, normalize):
    params = params_of(sae.TopK(2))
    p, z, _, _, _ = parts(params)
    guess = oracle.top_k(z, 2) @ p["W_dec"] + p["b_dec"]
    dead = np.arange(H) >= H - count
    state = sae.SAE(sae.TopK(2)).state(params)._replace(silent=jnp.where(dead, 7, 0))
    loss = sae.AuxK(k, dead_after=7, normalize=normalize)
    wanted = aux_by_hand(z, guess, p, dead, k or D // 2, normalize)
    np.testing.assert_allclose(value(sae.TopK(2), loss, params, state), wanted, rtol=1e-5)
    assert value(sae.TopK(2), sae.AuxK(k, dead_after=8), params, state) == 0


def test_aux_k_has_no_bias_and_no_gradient_to_the_residual():
    """Gradients are 0 in b_dec but through z, and in all live latents."""
    found = sae.SAE(sae.TopK(2), reconstruction=sae.AuxK(dead_after=7), center=False)
    params = params_of(sae.TopK(2))
    dead = jnp.arange(H) >= 6
    state = found.state(params)._replace(silent=jnp.where(dead, 7, 0))
    grads = jax.grad(lambda p: found.loss(p, jnp.asarray(X), state)[0])(params)
    assert not np.any(grads["b_dec"])
    assert not np.any(grads["W_dec"][:6]) and not np.any(grads["W_enc"][:, :6])
    assert np.any(grads["W_dec"][6:]) and np.any(grads["W_enc"][:, 6:])
    # With a perfect reconstruction the variance is 0, and so is the loss.
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert found.loss(zeros, jnp.zeros((3, D)), state)[0] == 0


def test_gated_losses():
    params = params_of(sae.Gated())
    p = {k: np.asarray(x, np.float64) for k, x in params.items()}
    pi = np.maximum((X - p["b_dec"]) @ p["W_enc"] + p["b_gate"], 0)
    wanted = np.mean(np.sum((X - pi @ p["W_dec"] - p["b_dec"]) ** 2, 1))
    np.testing.assert_allclose(value(sae.Gated(), sae.GateAuxiliary(), params), wanted, rtol=1e-5)
    l1 = 0.2 * np.mean(pi @ np.linalg.norm(p["W_dec"], axis=1))
    np.testing.assert_allclose(value(sae.Gated(), sae.L1(0.2), params), l1, rtol=1e-5)
    for frozen in (True, False):
        loss = sae.GateAuxiliary(frozen=frozen)
        grads = jax.grad(lambda p: value(sae.Gated(), loss, p))(params)  # noqa: B023
        assert np.any(grads["W_dec"]) != frozen and np.any(grads["b_gate"])
        assert not np.any(grads["r_mag"]) and not np.any(grads["b_mag"])
    with pytest.raises(ValueError, match="use Gated"):
        value(sae.ReLU(), sae.GateAuxiliary(), params_of(sae.ReLU()))


def test_annealed_p_is_continuous_and_follows_its_schedule():
    """By hand: at each change the coefficient makes the mean losses of the window equal."""
    loss = sae.AnnealedP(0.5, steps=12, begin=2, end=0.5, changes=5, window=3)
    found = sae.SAE(sae.ReLU(), losses=(loss,))
    params = params_of(sae.ReLU())
    state = found.state(params)
    rng = np.random.default_rng(1)
    coefficient, now, following, level = 0.5, [], [], 0
    p = {k: np.asarray(x, np.float64) for k, x in params.items()}
    for step in range(16):
        x = rng.normal(size=(N, D)).astype(np.float32)
        f = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
        power = lambda q: np.mean(np.sum(np.where(f > 0, f, 0) ** q * (f > 0), 1))  # noqa: B023, E731
        exponent = 1 - 0.5 * level / 5
        error = np.mean(np.sum((f @ p["W_dec"] + p["b_dec"] - x) ** 2, 1))
        total, state = found.loss(params, jnp.asarray(x), state)
        np.testing.assert_allclose(total, error + coefficient * power(exponent), rtol=1e-4)
        now, following = (
            [power(exponent), *now][:3],
            [power(1 - 0.5 * (level + 1) / 5), *following][:3],
        )
        after = int(np.clip((step + 1 - 2) * 5 // 10, 0, 5))
        if after > level:
            coefficient *= np.mean(now) / np.mean(following)
            level, now, following = after, [], []
    assert level == 5


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: sae.L1(-1.0), "L1: strength"), (lambda: sae.L1(1.0, p=0.0), "L1: p"),
        (lambda: sae.L0(float("nan")), "L0: strength"), (lambda: sae.L0(1.0, "hard"), "kind"),
        (lambda: sae.TargetL0(0), "TargetL0: target"), (lambda: sae.AuxK(0), "AuxK: k"),
        (lambda: sae.AuxK(normalize="std"), "normalize"),
        (lambda: sae.Reconstruction("std"), "scale"),
        (lambda: sae.NormMatching("a"), "NormMatching: strength"),
        (lambda: sae.AnnealedP(1.0, steps=0), "AnnealedP: steps"),
        (lambda: sae.GateAuxiliary(-1), "GateAuxiliary: strength"),
        (lambda: sae.PreActivation(-1), "PreActivation: strength"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, wrong):
    with pytest.raises((ValueError, TypeError), match=wrong):
        make()
