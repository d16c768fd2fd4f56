"""Removed channels: the smaller network is the masked one, whatever the framework."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.nn import surgery
from tests._problem import logits, mlp


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.middle = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(4 * 25, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.middle(self.second(x)))
        return self.head(x.reshape(x.shape[0], -1))


LAYERS = [
    ("x", "input", ()),
    ("conv", "dense", ("x",)),
    ("norm", "same", ("conv",)),
    ("second", "dense", ("norm",)),
    ("middle", "same", ("second",)),
    ("flat", "flatten", ("middle",)),
    ("head", "dense", ("flat",)),
]


@pytest.fixture
def model():
    """Norms as training leaves them: no scale is 1 and no mean is 0."""
    model = Convolutional(nnx.Rngs(0))
    _, state = nnx.split(model)
    keys = iter(jax.random.split(jax.random.key(7), 100))
    nnx.update(
        model, jax.tree.map(lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape), state)
    )
    return model


X = jax.random.normal(jax.random.key(1), (2, 5, 5, 2))


@pytest.mark.slow
def test_equals_the_model_with_dead_channels(model):
    keep = {"conv": np.arange(6) % 3 > 0, "second": np.array([True, False, True, True])}
    for norm, mask in ((model.norm, keep["conv"]), (model.middle, keep["second"])):
        for part in (norm.scale, norm.bias):
            part.set_value(jnp.where(mask, part[...], 0))
    small = surgery.remove_channels(model, surgery.channel_graph(model, LAYERS), keep)
    assert small.conv.kernel.shape == (3, 3, 2, 4) and small.head.kernel.shape == (75, 3)
    assert (small.second.in_features, small.second.out_features) == (4, 3)
    assert (small.norm.num_features, small.head.in_features) == (4, 75)
    np.testing.assert_allclose(small(X), model(X), rtol=1e-4, atol=1e-5)
    assert model.conv.kernel.shape == (3, 3, 2, 6) and model.conv.out_features == 6


@pytest.mark.parametrize("norm", [nnx.BatchNorm, nnx.LayerNorm])
def test_norms_of_a_sequence_lose_their_channels(norm):
    """Issue 14.10: they kept their width beside smaller kernels."""
    rngs = nnx.Rngs(0)
    layers = [norm(4, rngs=rngs), nnx.Linear(4, 6, rngs=rngs), norm(6, rngs=rngs), nnx.relu]
    layers += [nnx.Linear(6, 5, rngs=rngs), norm(5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)]
    model = nnx.Sequential(*layers)
    keep = {"layers/1": np.arange(6) != 2, "layers/4": np.arange(5) < 3}
    graph = surgery.channel_graph(model)
    small = surgery.remove_channels(model, graph, keep)
    leaves = jax.tree.leaves(nnx.state((small.layers[2], small.layers[5])))
    assert sorted({x.shape for x in leaves}) == [(3,), (5,)]
    assert small.layers[0].scale.shape == (4,) and small(jnp.ones((3, 4), jnp.float32)).shape == (
        3,
        2,
    )
    masks = surgery.mask_channels(model, graph, keep)
    np.testing.assert_array_equal(masks["layers"][2]["scale"], keep["layers/1"])
    tree = {
        "a": {"kernel": jnp.eye(3)},
        "a_norm": {"scale": jnp.ones(3)},
        "b": {"kernel": jnp.eye(3)},
    }
    some = {"a": np.array([True, False, True])}
    found = surgery.remove_channels(tree, surgery.channel_graph(tree), some)
    assert found["a_norm"]["scale"].shape == (2,)
    # Linen numbers norms and layers apart: which of them do they follow?
    apart = {"Dense_0": tree["a"], "Dense_1": tree["b"], "LayerNorm_0": tree["a_norm"]}
    with pytest.raises(ValueError, match="which channels LayerNorm_0 carries; declare the layers"):
        surgery.channel_graph(apart)


def test_what_a_shift_leaves_moves_to_the_next_bias(model):
    keep = np.array([True, False, True, False])
    model.middle.scale.set_value(jnp.where(keep, model.middle.scale[...], 0))
    graph = surgery.channel_graph(model, LAYERS)
    folded = surgery.remove_channels(model, graph, {"second": keep}, fold_bias=True)
    np.testing.assert_allclose(folded(X), model(X), rtol=1e-4, atol=1e-5)
    dropped = surgery.remove_channels(model, graph, {"second": keep})
    assert float(jnp.abs(dropped(X) - model(X)).max()) > 1e-2
    with pytest.raises(ValueError, match="fold_bias requires a dense layer second with a bias"):
        surgery.remove_channels(model, graph, {"conv": np.arange(6) > 0}, fold_bias=True)


@pytest.mark.slow
def test_mobilenet_without_some_channels_is_the_masked_one():
    net = sj.models.mobilenet_v2(
        1, 10, stem=(8, 1), stages=((1, 8, 1, 1), (3, 16, 2, 2)), head=32, rngs=nnx.Rngs(0)
    )
    net.eval()
    graph = surgery.channel_graph(net, net.channel_layers())
    rng = np.random.default_rng(0)
    keep = {name: rng.random(size) < 0.6 for name, size in graph.sizes.items()}
    masked = sj.masks.apply_masks(net, surgery.mask_channels(net, graph, keep))
    small = surgery.remove_channels(net, graph, keep)
    x = jax.random.normal(jax.random.key(2), (3, 1, 8, 8))
    run = nnx.jit(lambda m, x: m(x))
    np.testing.assert_allclose(run(small, x), run(masked, x), rtol=1e-4, atol=1e-4)
    sizes = [sum(p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (small, net)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["plain", "nnx", "equinox", "out_in"])
def test_a_chain_of_layers(framework):
    widths, keys = (8, 12, 5, 4), jax.random.split(jax.random.key(0), 3)
    rng, layout = np.random.default_rng(0), None
    x = jax.random.normal(jax.random.key(2), (20, 8))
    if framework == "nnx":
        rngs = nnx.Rngs(0)
        layers = [nnx.Linear(m, n, rngs=rngs) for m, n in zip(widths, widths[1:])]
        model = nnx.Sequential(layers[0], nnx.relu, layers[1], nnx.relu, layers[2])
        run = lambda m: m(x)  # noqa: E731
    elif framework == "equinox":
        layers = [eqx.nn.Linear(m, n, key=k) for k, m, n in zip(keys, widths, widths[1:])]
        relu = eqx.nn.Lambda(jax.nn.relu)
        model = eqx.nn.Sequential([layers[0], relu, layers[1], relu, layers[2]])
        run = lambda m: jax.vmap(m)(x)  # noqa: E731
    else:
        model = mlp(jax.random.key(0), widths)
        run = lambda m: logits(m, x)  # noqa: E731
        if framework == "out_in":
            layout = "out_in"
            turn = lambda m, a, b: {  # noqa: E731
                n: {b: layer[a].T, "bias": layer["bias"]} for n, layer in m.items()
            }
            model = turn(model, "kernel", "weight")
            run = lambda m: logits(turn(m, "weight", "kernel"), x)  # noqa: E731
    graph = surgery.channel_graph(model, layout=layout)
    assert list(graph.sizes.values()) == [12, 5]
    keep = {name: rng.random(size) < 0.5 for name, size in graph.sizes.items()}
    small = surgery.remove_channels(model, graph, keep)
    masked = sj.masks.apply_masks(model, surgery.mask_channels(model, graph, keep))
    np.testing.assert_allclose(run(small), run(masked), rtol=1e-4, atol=1e-5)
    order = {name: rng.permutation(size) for name, size in graph.sizes.items()}
    moved = surgery.permute_channels(model, graph, order)
    np.testing.assert_allclose(run(moved), run(model), rtol=1e-4, atol=1e-5)
    assert graph.sizes == {n: m.size for n, m in keep.items()}
    first = small.layers[0] if framework in ("nnx", "equinox") else None
    if first is not None:
        assert (first.in_features, first.out_features) == (8, int(keep[next(iter(keep))].sum()))


def test_a_plain_tree_does_not_say_which_way_round_its_weights_are():
    params = {"a": {"weight": jnp.ones((4, 2))}, "b": {"weight": jnp.ones((3, 4))}}
    with pytest.raises(ValueError, match=r'a/weight of shape \(4, 2\).*layout="out_in"'):
        surgery.channel_graph(params)
    assert surgery.channel_graph(params, layout="out_in").sizes == {"a": 4}


@pytest.mark.slow
def test_what_stands_beside_a_kernel_moves_with_it_or_is_refused():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs), nnx.relu, nnx.Linear(6, 3, rngs=rngs)
    )
    model.layers[0].lora.lora_b.set_value(jax.random.normal(jax.random.key(3), (2, 6)))
    x, order = jax.random.normal(jax.random.key(1), (5, 4)), {"layers/0": np.arange(6)[::-1]}
    graph = surgery.channel_graph(model)
    moved = surgery.permute_channels(model, graph, order)
    np.testing.assert_allclose(moved(x), model(x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(moved.layers[0].lora.lora_b[...], model.layers[0].lora.lora_b[...])
    reader = nnx.Sequential(
        nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.LoRALinear(6, 3, lora_rank=2, rngs=rngs)
    )
    reader.layers[2].lora.lora_b.set_value(jax.random.normal(jax.random.key(3), (2, 3)))
    keep = {"layers/0": np.array([True, False, True, True, False, True])}
    small = surgery.remove_channels(reader, graph := surgery.channel_graph(reader), keep)
    masked = sj.masks.apply_masks(reader, surgery.mask_channels(reader, graph, keep))
    np.testing.assert_allclose(small(x), masked(x), rtol=1e-5, atol=1e-6)
    params = {
        "a": {"kernel": jnp.ones((4, 6)), "branch": {"scale": jnp.ones(6)}},
        "b": {"kernel": jnp.ones((6, 2))},
    }
    graph = surgery.channel_graph(params)
    for change in (
        lambda: surgery.permute_channels(params, graph, {"a": np.arange(6)[::-1]}),
        lambda: surgery.remove_channels(params, graph, {"a": keep["layers/0"]}),
        lambda: surgery.mask_channels(params, graph, {"a": keep["layers/0"]}),
    ):
        with pytest.raises(ValueError, match=r"a/branch/scale of shape \(6,\) is below"):
            change()


def test_masks_of_channels_by_hand():
    params = {
        "0": {"kernel": jnp.ones((3, 3, 1, 4))},
        "1": {"kernel": jnp.ones((3, 3, 4, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(5), "bias": jnp.ones(5)},
    }
    graph = surgery.channel_graph(params)
    keep = {"0": jnp.array([True, False, False, True])}
    masks = jax.jit(lambda keep: surgery.mask_channels(params, graph, keep))(keep)
    assert masks["0"]["kernel"].sum((0, 1, 2)).tolist() == [9, 0, 0, 9]
    assert masks["1"]["kernel"].sum((0, 1, 3)).tolist() == [18, 0, 0, 18]
    assert masks["1"]["bias"].all() and masks["norm"]["bias"] is None
    assert surgery.remove_channels(params, graph, keep)["1"]["kernel"].shape == (3, 3, 2, 2)


def test_mistakes(model):
    graph = surgery.channel_graph(model, LAYERS)
    with pytest.raises(ValueError, match="convolution is not a set .* the sets are conv, second"):
        surgery.remove_channels(model, graph, {"convolution": np.ones(6, bool)})
    with pytest.raises(ValueError, match="the mask of second has 6 entries for 4 channels"):
        surgery.remove_channels(model, graph, {"second": np.ones(6, bool)})
    with pytest.raises(ValueError, match="at least one channel of conv, got none"):
        surgery.remove_channels(model, graph, {"conv": np.zeros(6, bool)})
    for wrong in (np.arange(6), np.ones((6, 1), bool)):
        with pytest.raises(TypeError, match="vector of booleans"):
            surgery.mask_channels(model, graph, {"conv": wrong})
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((4, 1))}}
    with pytest.raises(ValueError, match="b has 4 channels and reads 3"):
        surgery.channel_graph(params)


def test_channels_of_grouped_convolutions_and_of_depthwise_outputs_are_fixed():
    """Cut unevenly, the groups would read other channels: silently another function."""
    layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
    rngs = nnx.Rngs(0)
    last = nnx.Conv(8, 6, (1, 1), rngs=rngs)
    for first in (
        nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=rngs),
        eqx.nn.Conv2d(4, 8, 3, groups=2, key=jax.random.key(0)),
    ):
        model = nnx.Dict(a=first, b=last) if isinstance(first, nnx.Module) else None
        model = model or {"a": first, "b": eqx.nn.Conv2d(8, 6, 1, key=jax.random.key(1))}
        assert surgery.channel_graph(model, layers).sets == {}
    shapes = {"a": {"kernel": np.ones((3, 3, 2, 8))}, "b": {"kernel": np.ones((1, 1, 8, 6))}}
    declared = [layers[0], ("a", "grouped", ("x",)), layers[2]]
    assert surgery.channel_graph(shapes, layers).sets == {"a": ("a",)}
    assert surgery.channel_graph(shapes, declared).sets == {}
    outputs = [*layers, ("deep", "depthwise", ("a",))]
    shapes["deep"] = {"kernel": np.ones((3, 3, 1, 8))}
    assert surgery.channel_graph(shapes, outputs).sets == {}


def test_modules_in_a_container_have_their_new_sizes():
    keys = jax.random.split(jax.random.key(0))
    model = {"a": eqx.nn.Linear(3, 4, key=keys[0]), "b": eqx.nn.Linear(4, 2, key=keys[1])}
    keep = {"a": np.array([True, False, True, True])}
    small = surgery.remove_channels(model, surgery.channel_graph(model), keep)
    assert small["a"].out_features == small["b"].in_features == 3
    assert small["b"](small["a"](jnp.ones(3))).shape == (2,)
