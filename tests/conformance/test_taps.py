"""Taps: records and replacements agree in every framework, and under every transformation."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj

X = jax.random.normal(jax.random.key(5), (4, 6))


class Doubled(nnx.Linear):
    """A subclass with a call of its own around that of the layer."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Net(nnx.Module):
    def __init__(self, layer=nnx.Linear):
        rngs = nnx.Rngs(0)
        self.first, self.second = layer(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


class LinenNet(linen.Module):
    def setup(self):
        self.first, self.second = linen.Dense(8), linen.Dense(3)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Linear(6, 8, key=jax.random.key(0))
        self.second = eqx.nn.Linear(8, 3, key=jax.random.key(1))

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


def _nnx():
    net = Net()
    first = net.first.kernel[...], net.first.bias[...]
    return net, (X,), None, first


def _linen():
    net = LinenNet()
    variables = net.init(jax.random.key(0), X)
    layer = variables["params"]["first"]
    return net, (variables, X), None, (layer["kernel"], layer["bias"])


def _equinox():
    net = EquinoxNet()
    return net, (X,), lambda m, x: jax.vmap(m)(x), (net.first.weight.T, net.first.bias)


FRAMES = {"nnx": _nnx, "linen": _linen, "equinox": _equinox}


@pytest.mark.parametrize("frame", FRAMES)
def test_records_inputs_and_outputs(frame):
    net, args, call, (kernel, bias) = FRAMES[frame]()
    seen = X @ kernel + bias
    if frame == "equinox":  # its modules take one sample
        run = jax.vmap(lambda x: sj.nn.record(net, "first$", x, reduce=lambda i, o: (i[0], o)))
        y, values = run(X)
    else:
        run = jax.jit(lambda *a: sj.nn.record(net, "first$", *a, reduce=lambda i, o: (i[0], o)))
        y, values = run(*args)
    np.testing.assert_allclose(values["first"][0], X)
    np.testing.assert_allclose(values["first"][1], seen, rtol=1e-5)
    plain = (
        jax.vmap(net)(X)
        if frame == "equinox"
        else (net.apply(*args) if frame == "linen" else net(X))
    )
    np.testing.assert_allclose(y, plain, rtol=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_replaces_under_jit_and_grad(frame):
    net, args, call, (kernel, bias) = FRAMES[frame]()
    other = sj.nn.replace(net, {"first$": lambda path, call, x: 0 * call(x) + 3.0})
    if frame == "linen":
        run, plain = (lambda x: other.apply(args[0], x)), (lambda x: net.apply(args[0], x))
    elif frame == "equinox":
        run, plain = jax.vmap(other), jax.vmap(net)
    else:
        run, plain = other, net
    y = jax.jit(run)(X)
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:1], y.shape), rtol=1e-6)
    assert not np.allclose(plain(X), y)
    assert not jnp.any(jax.grad(lambda x: run(x).sum())(X))
    with pytest.raises(ValueError, match="matches no module"):
        sj.nn.record(net, "third", *args, call=call)


@pytest.mark.parametrize("frame", FRAMES)
def test_grams_are_those_of_the_inputs(frame):
    net, args, _, (kernel, bias) = FRAMES[frame]()
    call = (lambda m, x: m.apply(args[0], x)) if frame == "linen" else None
    grams = sj.nn.input_grams(net, [X, X], call)
    hidden = jax.nn.relu(X @ kernel + bias)
    leaf = "weight" if frame == "equinox" else "kernel"
    np.testing.assert_allclose(grams[f"first/{leaf}"], 2 * X.T @ X, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grams[f"second/{leaf}"], 2 * hidden.T @ hidden, rtol=1e-4, atol=1e-4)


def test_a_subclass_is_a_layer_for_everyone():
    net, plain = Net(Doubled), Net()
    np.testing.assert_allclose(
        sj.nn.input_grams(net, [X])["first/kernel"], sj.nn.input_grams(plain, [X])["first/kernel"]
    )
    y, values = sj.nn.record(net, "first$", X)
    np.testing.assert_allclose(values["first"], net.first(X))
    plan = sj.plan(net, {"second/kernel": sj.NM(2, 4), "first/kernel": sj.NM(1, 2)})
    masks = plan.masks(sj.masks.magnitude(net))
    small = sj.compress(net, plan, masks)
    np.testing.assert_allclose(small(X), sj.masks.apply_masks(net, masks)(X), rtol=1e-5, atol=1e-6)
    assert isinstance(small.first.kernel[...], sj.formats.NMArray)


class Stack(nnx.Module):
    def __init__(self):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(6, 6, rngs=rngs)

        self.layers = make(nnx.Rngs(0).split(3))

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def step(layer, x):
            return jnp.tanh(layer(x))

        return step(self.layers, x)


def test_scanned_layers_give_one_record_each():
    net, x = Stack(), X
    y, values = jax.jit(lambda x: sj.nn.record(net, "layers$", x))(X)
    grams = sj.nn.input_grams(net, [X])["layers/kernel"]
    for i in range(3):
        out = x @ net.layers.kernel[i] + net.layers.bias[i]
        np.testing.assert_allclose(values["layers"][i], out, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grams[i], x.T @ x, rtol=1e-4, atol=1e-5)
        x = jnp.tanh(out)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    negated = sj.nn.replace(net, {"layers$": lambda path, call, x: -call(x)})
    np.testing.assert_allclose(
        negated(X), -y, rtol=1e-5, atol=1e-6
    )  # tanh is odd, and there are three


def test_values_cannot_leave_a_scan_of_jax():
    net = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    call = lambda m, x: jax.lax.scan(lambda x, _: (m(x), None), x, length=3)[0]  # noqa: E731
    with pytest.raises(TypeError, match="nnx.scan"):
        sj.nn.record(net, "", X, call=call)


def test_functions_observe_the_inputs_of_their_kernels():
    def forward(params, x):
        return sj.nn.observe("w", x) @ params["w"]

    params = {"w": jnp.ones((6, 2))}
    grams = sj.nn.input_grams(lambda x: forward(params, x), [X])
    np.testing.assert_allclose(grams["w"], X.T @ X, rtol=1e-5)
    assert sj.nn.observe("w", X) is X


@pytest.mark.slow
def test_the_kernels_of_a_mobilenet_have_grams():
    net = sj.models.mobilenet_v1(3, 10, width=0.25, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (1, 3, 32, 32))
    grams = sj.nn.input_grams(net, [images])
    plan = sj.plan(net, sj.Unstructured(0.5), layout="in_out")
    pointwise = {x.name for x in plan.leaves if x.name.endswith("project/kernel")}
    assert len(pointwise) == 13 and pointwise <= set(grams)
    for name in pointwise:
        assert grams[name].shape == (plan[name].layout.matrix_shape[0],) * 2
    assert "classifier/kernel" in grams
