"""Activations against plain NumPy: ties, k above the positives, zero rows, bfloat16, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import sae
from sparsejax.sae._activation import jump, step

from . import _oracle as oracle

RNG = np.random.default_rng(0)
# Few distinct values: ties in every row, zeros, a row of zeros, one without positive entries.
TIED = RNG.integers(-3, 4, (9, 12)) / 2
TIED[3], TIED[4] = 0, -1
ROWS = RNG.normal(size=(12, 5))
X = RNG.normal(size=(9, 5))
CONTEXT = sae.Context(jnp.asarray(X, jnp.float32), {"W_dec": jnp.asarray(ROWS, jnp.float32)})
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def array(x, dtype=jnp.float32):
    return jnp.asarray(x, dtype)


def check(found, wanted, dtype=jnp.float32):
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, tolerance, tolerance)
    np.testing.assert_array_equal(np.asarray(found) == 0, wanted == 0)


@DTYPES
@pytest.mark.parametrize("k", [1, 3, 12])
def test_top_k(k, dtype):
    check(sae.TopK(k)(array(TIED, dtype)), oracle.top_k(TIED, k), dtype)
    wanted = oracle.top_k(TIED, k, np.abs(TIED), lambda z: z)
    check(sae.AbsTopK(k)(array(TIED, dtype)), wanted, dtype)


def test_top_k_of_other_shapes_and_of_nan():
    z = array(TIED).reshape(3, 3, 12)
    check(sae.TopK(2)(z), oracle.top_k(TIED, 2).reshape(3, 3, 12))
    check(sae.TopK(1)(array([1.0, 2.0])), np.array([0.0, 2.0]))
    np.testing.assert_array_equal(sae.TopK(1)(array([jnp.nan, 2.0, 1.0])), [jnp.nan, 2.0, 0.0])


@DTYPES
@pytest.mark.parametrize("k", [0.3, 1, 2.5, 12])
def test_batch_top_k(k, dtype):
    check(sae.BatchTopK(k)(array(TIED, dtype)), oracle.batch_top_k(TIED, k), dtype)
    jitted = jax.jit(lambda k: sae.BatchTopK(k)(array(TIED)))
    check(jitted(jnp.float32(k)), oracle.batch_top_k(TIED, k))


@pytest.mark.parametrize("k", [0.1, 0.7, 1.3])
def test_fractional_k_of_many_tokens(k):
    z = array(np.abs(RNG.normal(size=(10, 8))))
    assert int((sae.BatchTopK(k)(z) > 0).sum()) == int(np.floor(k * 10 + 1e-9))


@pytest.mark.parametrize("normalize", ["mean", "none"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_gradient_top_k(beta, normalize):
    grad = RNG.normal(size=(9, 5))
    grad[0] = 0
    a = np.abs(grad @ ROWS.T)
    if normalize == "mean":
        mean = a.mean(1, keepdims=True)
        a = np.divide(a, mean, where=mean > 0, out=np.zeros_like(a))
    context = CONTEXT._replace(grad=array(grad))
    found = sae.GradientTopK(3, beta, normalize)(array(TIED), context)
    wanted = oracle.top_k(TIED, 3, TIED * (1 + beta * a))
    check(found, wanted)
    if beta == 0:
        check(found, oracle.top_k(TIED, 3))
    with pytest.raises(ValueError, match="grad must be"):
        sae.GradientTopK(3)(array(TIED), CONTEXT)


def test_top_afa():
    z = RNG.normal(size=(9, 12))
    z[3], z[4] = 0, -1
    check(sae.TopAFA()(array(z), CONTEXT), oracle.top_afa(z, X, ROWS))
    # Ties among equal contributions: the smallest k, the lowest index.
    ones = sae.Context(array([[2.0, 0.0]]), {"W_dec": array([[1.0, 0.0]] * 6)})
    assert sae.TopAFA()(jnp.ones((1, 6)), ones).tolist() == [[1, 1, 1, 1, 0, 0]]
    zero = ones._replace(x=array([[0.0, 0.0]]))
    assert sae.TopAFA()(jnp.ones((1, 6)), zero).tolist() == [[1, 0, 0, 0, 0, 0]]
    # All latents are kept if their norm is too small.
    far = ones._replace(x=array([[9.0, 0.0]]))
    assert sae.TopAFA()(jnp.ones((1, 6)), far).sum() == 6


def test_top_afa_with_a_capacity():
    few = sae.TopAFA(most=2)
    context = sae.Context(array([[1.0, 0.0], [9.0, 0.0]]), {"W_dec": array([[1.0, 0.0]] * 6)})
    z = jnp.ones((2, 6))
    assert few.reached(z, context).tolist() == [True, False]
    assert few(z, context).sum(-1).tolist() == [1, 2]


@pytest.mark.parametrize(
    "steps, residual, stop", [(1, 0, False), (4, 0, False), (6, 0.7, False), (6, 0, True)]
)
def test_matching_pursuit(steps, residual, stop):
    rows = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    x = X.copy()
    x[2] = 0
    context = sae.Context(array(x), {"W_dec": array(rows)})
    found = sae.MatchingPursuit(steps, residual, stop)(array(x @ rows.T), context)
    check(found, oracle.pursuit(x, rows, steps, residual, stop))


SPARSE = {
    "top_k": sae.TopK(3),
    "abs_top_k": sae.AbsTopK(3),
    "gradient_top_k": sae.GradientTopK(3, 2.0),
    "top_afa": sae.TopAFA(most=5),
    "matching_pursuit": sae.MatchingPursuit(3),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("rescale", [False, True])
def test_sparse_codes_have_the_features_and_gradients_of_dense_ones(name, rescale):
    whole, few = (sae.SAE(SPARSE[name], sparse=s, rescale=rescale) for s in (False, True))
    params = whole.init(5, 20, key=jax.random.key(0), decoder_norm=0.7)
    params["W_dec"] = params["W_dec"] * jnp.linspace(0.5, 1.5, 20)[:, None]
    grad = jax.random.normal(jax.random.key(1), (9, 5))
    x, weights = array(X), jax.random.normal(jax.random.key(2), (9, 5))
    np.testing.assert_allclose(
        whole.encode(params, x, grad), few.encode(params, x, grad), rtol=1e-5, atol=1e-6
    )

    def loss(sae, params):
        return jnp.sum(sae(params, x, grad) * weights)

    one, other = (jax.grad(loss, argnums=1)(s, params) for s in (whole, few))
    for path in params:
        np.testing.assert_allclose(one[path], other[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_codes_decode_to_the_reconstruction():
    autoencoder = sae.SAE(sae.TopK(3))
    params = autoencoder.init(5, 20, key=jax.random.key(0))
    indices, values = autoencoder.codes(params, array(X))
    assert indices.shape == (9, 3)
    found = sae.decode(indices, values, params["W_dec"]) + params["b_dec"]
    np.testing.assert_allclose(found, autoencoder(params, array(X)), atol=1e-5)
    with pytest.raises(ValueError, match="capacity"):
        sae.SAE(sae.ReLU()).codes(params, array(X))


@DTYPES
def test_decode_and_its_gradients(dtype):
    indices = np.array([[0, 2, 2], [3, 3, 1]])
    values, rows = RNG.normal(size=(2, 3)), RNG.normal(size=(4, 5))
    weights = RNG.normal(size=(2, 5))
    found = sae.decode(jnp.asarray(indices), array(values, dtype), array(rows, dtype))
    tolerance = 1e-5 if dtype == jnp.float32 else 5e-2
    np.testing.assert_allclose(
        np.asarray(found, float), np.einsum("nk,nkd->nd", values, rows[indices]), atol=tolerance
    )

    def loss(values, rows):
        return jnp.sum(sae.decode(jnp.asarray(indices), values, rows) * array(weights))

    one, other = jax.grad(loss, argnums=(0, 1))(array(values, dtype), array(rows, dtype))
    np.testing.assert_allclose(
        np.asarray(one, float), np.einsum("nd,nkd->nk", weights, rows[indices]), atol=tolerance
    )
    wanted = np.zeros((4, 5))
    for n, j in np.ndindex(2, 3):
        wanted[indices[n, j]] += values[n, j] * weights[n]
    np.testing.assert_allclose(np.asarray(other, float), wanted, atol=2 * tolerance)


def test_second_derivatives_of_sparse_products():
    indices = jnp.array([[0, 2], [1, 1]])
    rows, values = jax.random.normal(jax.random.key(0), (3, 4)), jnp.ones((2, 2))
    dense = lambda v, w: jnp.einsum("nk,nkd->nd", v, w[indices])  # noqa: E731
    for argnum in (0, 1):
        one, other = (
            jax.jacrev(jax.grad(lambda v, w: jnp.sum(f(v, w) ** 3), argnum), 1)(values, rows)  # noqa: B023
            for f in (lambda v, w: sae.decode(indices, v, w), dense)
        )
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


Z = np.array([[-0.2, 0.99, 1.01, 1.0, 3.0, 0.4]])
THETA = np.array([0.5, 1.0, 1.0, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("input_gradient", [False, True])
def test_jump_relu_and_its_gradients(input_gradient):
    bandwidth = np.float32(0.3)
    z, theta = array(Z), array(THETA)
    context = sae.Context(None, {"threshold": theta})
    activation = sae.JumpReLU(bandwidth, input_gradient=input_gradient)
    above, near = Z > THETA, np.abs(Z - THETA) < bandwidth / 2
    np.testing.assert_allclose(activation(z, context), np.where(above, Z, 0), rtol=1e-6)
    np.testing.assert_array_equal(activation.firing(z, z, context), above)
    weights = np.arange(1.0, 7.0)

    def grads(f):
        call = lambda z, t: jnp.sum(f(z, t, jnp.float32(bandwidth), input_gradient) * weights)  # noqa: E731
        return jax.grad(call, argnums=(0, 1))(z, theta)

    of_z, of_theta = grads(jump)
    wanted = -THETA / bandwidth * near[0] * weights
    np.testing.assert_allclose(of_theta, wanted, rtol=1e-5)
    np.testing.assert_allclose(of_z[0], above[0] * weights - input_gradient * wanted, rtol=1e-5)
    of_z, of_theta = grads(step)
    np.testing.assert_allclose(of_theta, -1.0 * near[0] * weights / bandwidth, rtol=1e-5)
    np.testing.assert_allclose(of_z[0], input_gradient * near[0] * weights / bandwidth, rtol=1e-5)


def test_second_derivatives_of_jump_relu_are_those_of_the_rule():
    """The gradient in theta is `-(theta/e) K`, of which the derivative in theta is `-K/e`."""
    z, theta, e = jnp.array([1.05]), jnp.array([1.0]), jnp.float32(0.3)

    def energy(theta):
        return jnp.sum(jump(z, theta, e, False))

    assert jnp.allclose(jax.grad(lambda t: jax.grad(energy)(t).sum())(theta), -1 / e)
    for forward in (jax.jacfwd(jax.grad(energy)), jax.jacfwd(energy)):
        with pytest.raises(TypeError, match="forward-mode"):
            forward(theta)


def test_thresholds_of_bfloat16_models_are_float32():
    params = sae.SAE(sae.JumpReLU()).init(4, 8, key=jax.random.key(0), dtype=jnp.bfloat16)
    assert params["threshold"].dtype == jnp.float32 and params["W_enc"].dtype == jnp.bfloat16
    f = sae.SAE(sae.JumpReLU()).encode(params, jnp.ones((2, 4), jnp.bfloat16))
    assert f.dtype == jnp.bfloat16


def test_gated():
    p = {name: RNG.normal(size=12) for name in ("b_gate", "b_mag", "r_mag")}
    z = RNG.normal(size=(9, 12))
    context = sae.Context(None, {name: array(x) for name, x in p.items()})
    found = sae.Gated()(array(z), context)
    wanted = np.where(z + p["b_gate"] > 0, np.maximum(z * np.exp(p["r_mag"]) + p["b_mag"], 0), 0)
    check(found, wanted)
    gate = sae.Gated().gate(array(z), context)
    np.testing.assert_allclose(gate, np.maximum(z + p["b_gate"], 0), atol=1e-6)


def test_many_values_of_k_compile_once_and_vmap():
    params = sae.SAE(sae.TopK(4)).init(5, 20, key=jax.random.key(0))
    encode = lambda k: sae.SAE(sae.TopK(k, most=4), sparse=True).encode(params, array(X))  # noqa: E731
    together = jax.vmap(encode)(jnp.array([1, 2, 4]))
    for k, f in zip((1, 2, 4), together):
        alone = sae.SAE(sae.TopK(k)).encode(params, array(X))
        np.testing.assert_allclose(f, alone, atol=1e-6)


def test_annealed_k():
    activation = sae.TopK(2, anneal=10)
    assert activation.capacity is None
    z, state = jnp.arange(1.0, 13.0), sae.SAE(activation).state({"W_dec": jnp.ones((12, 1))})
    for at, k in ((0, 12), (5, 7), (10, 2), (99, 2)):
        now = sae.Context(None, {}, None, state._replace(step=jnp.asarray(at)))
        assert int((activation(z, now) > 0).sum()) == k
    assert int((activation(z) > 0).sum()) == 2


def square(d):
    return {"W_enc": jnp.eye(d), "W_dec": jnp.eye(d), "b_dec": jnp.zeros(d)}


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: sae.TopK(0), "TopK: k"),
        (lambda: sae.TopK(5, most=4), "TopK: most"),
        (lambda: sae.AbsTopK("a"), "AbsTopK: k"),
        (lambda: sae.GradientTopK(1, -1.0), "GradientTopK: beta"),
        (lambda: sae.GradientTopK(1, normalize="sum"), "normalize"),
        (lambda: sae.BatchTopK(0), "BatchTopK: k"),
        (lambda: sae.BatchTopK(float("nan")), "BatchTopK: k"),
        (lambda: sae.JumpReLU(0), "JumpReLU: bandwidth"),
        (lambda: sae.MatchingPursuit(0), "MatchingPursuit: steps"),
        (lambda: sae.TopAFA(most=0), "TopAFA: most"),
        (lambda: sae.SAE(sae.ReLU(), normalize="unit"), "normalize"),
        (lambda: sae.SAE(sae.ReLU(), constraint=3), "constraint"),
        (lambda: sae.SAE(sae.ReLU()).init(4, 8, key=jax.random.key(0), output=2), "transcoder"),
        (lambda: sae.SAE(sae.ReLU(), center=True, transcoder=True), "center=True"),
        (lambda: sae.SAE(sae.Gated()).encode(square(5), array(X)), "b_gate"),
        (lambda: sae.SAE(sae.ReLU()).encode(square(4), array(X)), "x must have the width 4"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, wrong):
    with pytest.raises((ValueError, TypeError), match=wrong):
        make()


def test_a_custom_activation_works_everywhere():
    @sj.register
    @__import__("dataclasses").dataclass(frozen=True)
    class Square(sae.Activation):
        scale: object = 1.0

        def __call__(self, z, context=None):
            return self.scale * jnp.maximum(z, 0) ** 2

    found = sae.SAE(Square(2.0), losses=(sae.L1(0.1),))
    params = found.init(5, 20, key=jax.random.key(0))
    done = sae.train(found, params, array(X), steps=2, key=jax.random.key(0), batch_size=4)
    assert jnp.isfinite(done.state.loss)


@pytest.mark.parametrize(
    "activation",
    [sae.ReLU(), sae.TopK(2), sae.AbsTopK(2), sae.BatchTopK(1), sae.JumpReLU(), sae.Gated(),
     sae.TopAFA(2), sae.MatchingPursuit(2)],
)  # fmt: skip
def test_no_selection_hides_nan(activation):
    """Of a token, or of one latent; other tokens are those without it."""
    model = sae.SAE(activation)
    params = model.init(3, 6, key=jax.random.key(0))
    x = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 1.0]])
    lost = jax.jit(lambda x: model.decode(params, model.encode(params, x)))(x.at[0, 0].set(jnp.nan))
    assert np.isnan(lost[0]).all() and np.isfinite(lost[1]).all()
    found = model.run(params, x.at[0, 0].set(jnp.nan))  # by sparse codes where there are some
    assert np.isnan(found.residual[0]).all() and np.isfinite(found.residual[1]).all()
    name = "W_enc" if "W_enc" in params else "W_dec"
    damaged = params | {name: params[name].at[0, 0].set(jnp.nan)}
    assert np.isnan(model.encode(damaged, x)).any()
