"""Compressed models agree with masked ones, whatever the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import sparsejax as sj
from sparsejax._tree import pure


def masked(model, plan):
    copy = nnx.clone(model)
    params = pure(model)
    nnx.update(copy, sj.masks.apply_masks(params, plan.masks(sj.masks.magnitude(params))))
    return copy


def is_compressed(model, name):
    for part in name.split("/"):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return isinstance(model.kernel, sj.nn.SparseKernel)


class Block(nnx.Module):
    """One of each layer that can be compressed, and two that cannot."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(
            num_heads=4, in_features=16, decode=False, rngs=rngs
        )
        self.general = nnx.LinearGeneral((4, 4), (2, 8), axis=(1, 3), rngs=rngs)
        self.einsum = nnx.Einsum("bta,ahc->bhtc", (16, 2, 8), (2, 8), rngs=rngs)
        self.cell = nnx.GRUCell(16, 16, rngs=rngs)
        self.conv = nnx.Conv(16, 8, (3,), rngs=rngs)
        self.scale = nnx.LinearGeneral(16, 4, batch_axis={0: 2}, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        x = self.attention(x)
        y = self.general(x.reshape(2, 4, 3, 4, 4).sum(4)).reshape(2, 3, 16).repeat(4, 1)
        h = self.einsum(x + y).transpose(0, 2, 1, 3).reshape(2, 12, 16)
        h, _ = self.cell(h[:, 0], h[:, 1])
        return self.scale(h), self.conv(x)


RULES = {
    r"layers/0/kernel": sj.NM(2, 4),
    r"layers/1/kernel": sj.Block((4, 4), 0.5),
    r"attention/value/kernel": sj.Block((4, 4), 0.5, axis=0),
    r"attention/out/kernel": sj.NM(2, 4, axis=(0, 1)),
    r"attention/.*/kernel": sj.NM(2, 4, axis=0),
    r"general/kernel": sj.NM(1, 4, axis=(0, 1)),
    r"einsum/kernel": sj.NM(2, 4, axis=0),
    r"cell/.*/kernel": sj.patterns.nm_stages("stepwise", 1, 4),
    r"conv/kernel": sj.NM(2, 4, axis=(0, 1)),
    r"scale/kernel": sj.NM(2, 4, axis=1, stacked=1),
}


@pytest.mark.slow
def test_every_layer():
    model = Block(nnx.Rngs(0))
    plan = sj.plan(model, RULES)
    fast, want = sj.compress(model, plan), masked(model, plan)
    yes = ["layers/0", "layers/1", "general", "einsum", "cell/dense_i", "cell/dense_h"]
    yes += [f"attention/{name}" for name in ("query", "key", "value", "out")]
    assert all(is_compressed(fast, name) for name in yes)
    assert not any(is_compressed(fast, name) for name in ("conv", "scale"))
    x = jax.random.normal(jax.random.key(0), (2, 12, 8))
    run = nnx.jit(lambda m, x: m(x))
    for got, expected in zip(run(fast, x), run(want, x)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # The model itself is as it was.
    assert isinstance(model.layers[0].kernel, nnx.Param)
    assert (model.layers[0].kernel[...] != 0).all()


def two_layers():
    return nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 4, rngs=nnx.Rngs(1)))


def test_fine_tuning_a_compressed_model():
    model = two_layers()
    fast = sj.compress(model, sj.plan(model, sj.NM(2, 4)))
    optimizer = nnx.Optimizer(fast, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (16, 8))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - 1) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(fast, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_padded_groups_are_compressed_or_stay_dense():
    pattern, key = sj.NM(2, 4, pad=True), jax.random.key(0)
    params = {
        "linear": {"kernel": jax.random.normal(key, (7, 3))},
        "conv": {"kernel": jax.random.normal(key, (3, 3, 6, 2))},
    }
    plan = sj.plan(params, pattern)
    masks = plan.masks(sj.masks.magnitude(params))
    small, zeroed = sj.compress(params, plan, masks), sj.masks.apply_masks(params, masks)
    w, x = small["linear"]["kernel"], jax.random.normal(key, (5, 7))
    np.testing.assert_array_equal(w.todense(), zeroed["linear"]["kernel"])
    found = sj.matmul(x, w, implementation="xla")
    np.testing.assert_allclose(found, x @ zeroed["linear"]["kernel"], rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: sj.matmul(x, w).sum())(x)
    np.testing.assert_allclose(gradient[0], zeroed["linear"]["kernel"].sum(1), rtol=1e-4, atol=1e-5)
    # Groups at each position of a window are no groups of the rows of a matrix.
    np.testing.assert_array_equal(small["conv"]["kernel"], zeroed["conv"]["kernel"])
    layer = sj.nn.SparseLinear(7, 3, pattern, rngs=nnx.Rngs(0))
    dense = layer.kernel[...].todense()
    np.testing.assert_array_equal((dense != 0).sum(0), [4, 4, 4])
    np.testing.assert_allclose(layer(x), x @ dense, rtol=1e-4, atol=1e-5)


def test_a_model_for_inference_has_no_gradient():
    model, x = two_layers(), jnp.ones((3, 8))
    plan = sj.plan(model, sj.Block((4, 4), 0.5))
    fast, small = (sj.compress(model, plan, inference=only) for only in (False, True))
    assert small.layers[0].kernel[...].index_t.shape == (2, 0)
    np.testing.assert_array_equal(small(x), fast(x))
    with pytest.raises(ValueError, match=r"for inference.*sj.compress\(model, plan, masks\)"):
        nnx.grad(lambda m: m(x).sum())(small)
    tree = sj.compress(pure(model), plan, inference=True)
    assert tree["layers"][0]["kernel"].nbytes < fast.layers[0].kernel[...].nbytes


@pytest.mark.slow
def test_layers_stacked_by_vmap():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Linear(8, 8, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return layer(x)

    model = make(nnx.Rngs(0).split(3))
    x = jnp.ones((2, 8))
    for pattern in (sj.NM(2, 4, axis=1, stacked=1), sj.Block((4, 4), 0.5, axis=1, stacked=1)):
        plan = sj.plan(model, pattern)
        fast = sj.compress(model, plan)
        assert fast.kernel[...].shape == (3, 8, 8)
        np.testing.assert_allclose(run(fast, x), run(masked(model, plan), x), rtol=1e-5, atol=1e-6)


class Doubled(nnx.Linear):
    def __call__(self, x):
        return super().__call__(2 * x)


def own_dot(*args, **kwargs):
    return jax.lax.dot_general(*args, **kwargs)


@pytest.mark.parametrize(
    "layer, pattern",
    [
        (nnx.Linear(8, 4, dot_general=own_dot, rngs=nnx.Rngs(0)), sj.NM(2, 4)),
        (nnx.Linear(8, 4, rngs=nnx.Rngs(0)), sj.NM(2, 4, axis=1)),
        (nnx.Linear(8, 4, rngs=nnx.Rngs(0)), sj.Unstructured(0.5)),
        (nnx.Linear(8, 4, rngs=nnx.Rngs(0)), sj.NM(0, 4)),
        (nnx.LinearGeneral(8, (4, 4), rngs=nnx.Rngs(0)), sj.NM(2, 4, axis=(0, 1))),
        (nnx.Einsum("ba,bac->bc", (3, 8, 4), rngs=nnx.Rngs(0)), sj.NM(2, 4, axis=1)),
        (nnx.Einsum("...a,ac->...c", (8, 4), rngs=nnx.Rngs(0)), sj.NM(2, 4)),
        (nnx.Einsum("ba,ac->b", (8, 4), rngs=nnx.Rngs(0)), sj.NM(2, 4)),
    ],
)
def test_what_cannot_be_compressed_is_dense_and_right(layer, pattern):
    plan = sj.plan(layer, pattern)
    fast = sj.compress(layer, plan)
    assert not isinstance(fast.kernel, sj.nn.SparseKernel)
    x = jax.random.normal(jax.random.key(0), (3, 8))
    np.testing.assert_allclose(fast(x), masked(layer, plan)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_masks_from_training():
    model = two_layers()
    plan = sj.plan(model, {"layers/0/kernel": sj.NM(2, 4)})
    tx = optax.chain(optax.sgd(0.1), sj.optim.prune(plan))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: (m(jnp.ones((2, 8))) ** 2).sum())(model)
    optimizer.update(model, grads)
    x = jax.random.normal(jax.random.key(0), (3, 8))
    for masks in (None, sj.get_masks(optimizer.opt_state)):
        fast = sj.compress(model, plan, masks)
        np.testing.assert_allclose(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_dtype_of_the_layer():
    layer = nnx.Linear(8, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    fast = sj.compress(layer, sj.plan(layer, sj.NM(2, 4)))
    assert fast(jnp.ones((2, 8))).dtype == jnp.bfloat16


def test_what_a_compressed_kernel_refuses():
    layer = nnx.Einsum("ba,ac->bc", (8, 4), rngs=nnx.Rngs(0))
    fast = sj.compress(layer, sj.plan(layer, sj.NM(2, 4)))
    with pytest.raises(NotImplementedError, match="was compressed for"):
        fast(jnp.ones((8, 2)), "ab,ac->bc")
    with pytest.raises(NotImplementedError, match="out_sharding"):
        fast(jnp.ones((2, 8)), out_sharding="x")


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.b = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.b.kernel = self.a.kernel

    def __call__(self, x):
        return self.b(self.a(x))


def test_tied_kernels_stay_tied():
    model = Tied(nnx.Rngs(0))
    plan = sj.plan(model, sj.NM(2, 4))
    fast = sj.compress(model, plan)
    assert fast.a.kernel is fast.b.kernel
    assert sj.report(fast).size == sj.report(model).size == 64
    x = jax.random.normal(jax.random.key(1), (3, 8))
    kernel = fast.a.kernel[...].todense()
    np.testing.assert_allclose(fast(x), x @ kernel @ kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_compressed_is_not_compressed_again():
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    rules = {"layers/0/kernel$": sj.NM(2, 4)}
    fast = sj.compress(model, sj.plan(model, rules))
    with pytest.raises(ValueError, match="layers/0/kernel is already compressed"):
        sj.compress(fast, sj.plan(model, rules))
    other = sj.compress(fast, sj.plan(fast, {"layers/1/kernel$": sj.NM(2, 4)}))
    assert is_compressed(other, "layers/0") and is_compressed(other, "layers/1")
    whole = sj.compress(model, sj.plan(model, sj.NM(2, 4)))
    with pytest.raises(ValueError, match="layers/0/kernel, layers/1/kernel are already compressed"):
        sj.plan(whole, sj.NM(2, 4))


@pytest.mark.parametrize(
    "masks", [{}, {"other": jnp.ones((8, 2), bool)}, {"params": {"kernel": jnp.ones((8, 2), bool)}}]
)
def test_masks_of_another_tree_are_refused(masks):
    params = {"kernel": jnp.arange(16.0).reshape(8, 2)}
    plan = sj.plan(params, sj.NM(2, 4))
    with pytest.raises(ValueError, match="kernel is planned and has no mask"):
        sj.compress(params, plan, masks)
    with pytest.raises(TypeError, match=r"get_masks\(opt_state\)"):
        sj.compress(params, plan, optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="kernel .* holds NaN"):
        sj.compress({"kernel": params["kernel"].at[0, 0].set(jnp.nan)}, plan)


@pytest.mark.parametrize(
    "layer, x",
    [
        (linen.Conv(8, (3, 3)), jnp.ones((2, 8, 8, 4))),
        (linen.Einsum((4, 8), "...a,ab->...b"), jnp.ones((2, 4))),
        (linen.RNN(linen.OptimizedLSTMCell(8)), jnp.ones((2, 5, 4))),
    ],
)
def test_linen_layers_that_cannot_run_compressed_say_so(layer, x):
    variables = layer.init(jax.random.key(0), x)
    small = sj.compress(variables, sj.plan(variables, sj.NM(2, 4)))
    with linen.intercept_methods(sj.nn.linen_compressed):
        with pytest.raises(NotImplementedError, match="only Dense and DenseGeneral can"):
            layer.apply(small, x)
