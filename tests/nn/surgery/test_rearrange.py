"""Rearranged networks compute the same; what groups keep is compared with brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

import sparsejax as sj
from sparsejax._tree import named_leaves, pure

STAGES = ((1, 8, 1, 1), (3, 16, 2, 2))


@pytest.fixture(scope="module")
def net():
    """A MobileNet with residuals whose statistics, scales and shifts all differ by channel."""
    model = sj.models.mobilenet_v2(1, 10, stem=(8, 1), stages=STAGES, head=32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(model)

    def spread(x):
        scaled = x * rng.lognormal(size=x.shape[-1]).astype(x.dtype)
        return scaled + rng.random(x.shape).astype(x.dtype) if x.ndim == 1 else scaled

    model = nnx.merge(graphdef, jax.tree.map(spread, state))
    model.eval()
    return model


@nnx.jit
def run(model, x):
    return model(x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l1", "greedy"])
def test_mobilenet_is_the_same_function_and_keeps_more(net, method):
    rules = {r"(expand|project|head)/kernel$": sj.Block((1, 4), 0.5)}
    plan = sj.plan(net, rules)
    graph = sj.nn.surgery.channel_graph(net, net.channel_layers())
    found = sj.nn.surgery.rearrange(net, graph, plan, method=method)
    x = jax.random.normal(jax.random.key(2), (3, 1, 8, 8))
    np.testing.assert_allclose(run(found.model, x), run(net, x), rtol=1e-4, atol=1e-4)
    assert found.after > found.before + 0.01
    assert found.after == pytest.approx(kept(found.model, plan), rel=1e-6)
    back = {name: np.argsort(order) for name, order in found.permutations.items()}
    again = sj.nn.surgery.permute_channels(found.model, graph, back)
    for a, b in zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(nnx.state(net))):
        np.testing.assert_array_equal(a, b)


def kept(model, plan):
    params = pure(model)
    masks = named_leaves(plan.masks(sj.masks.magnitude(params)))
    leaves = {name: np.abs(np.asarray(named_leaves(params)[name])) for name in masks}
    return sum(w[np.asarray(masks[n])].sum() for n, w in leaves.items()) / sum(
        w.sum() for w in leaves.values()
    )


def test_residual_blocks_share_their_channels(net):
    graph = sj.nn.surgery.channel_graph(net, net.channel_layers())
    assert graph.sets["blocks/1/project"] == ("blocks/1/project", "blocks/2/project")
    assert "classifier" not in graph.sets and graph.sizes["stem"] == 8
    # Moving one of the two alone would change the function: the set is the whole of it.
    order = np.roll(np.arange(16), 1)
    x = jax.random.normal(jax.random.key(2), (3, 1, 8, 8))
    moved = sj.nn.surgery.permute_channels(net, graph, {"blocks/1/project": order})
    np.testing.assert_allclose(run(moved, x), run(net, x), rtol=1e-4, atol=1e-4)


# Everything at once, in NumPy: residual, concatenation, flattening in both orders, a grouped layer.
LAYERS = [
    ("x", "input", ()),
    ("a", "dense", ("x",)),
    ("by_channel", "depthwise", ("a",)),
    ("norm", "same", ("by_channel",)),
    ("b", "dense", ("norm",)),
    ("sum", "add", ("a", "b")),
    ("c", "dense", ("sum",)),
    ("both", "concat", ("c", "sum")),
    ("grouped", "dense", ("both",)),
    ("last", "flatten", ("both",)),
    ("first", "flatten_first", ("c",)),
    ("d", "dense", ("last",)),
    ("e", "dense", ("first",)),
    ("f", "dense", ("d",)),
]


def everything():
    rng = np.random.default_rng(0)
    shapes = {
        "a": (3, 6), "by_channel": (1, 1, 1, 6), "b": (6, 6), "c": (6, 4),
        "grouped": (1, 1, 5, 4), "d": (50, 8), "e": (20, 2), "f": (8, 2),
    }  # fmt: skip
    params = {name: {"kernel": jnp.asarray(rng.normal(size=s))} for name, s in shapes.items()}
    params["b"]["bias"] = jnp.asarray(rng.normal(size=6))
    params["norm"] = {"scale": jnp.asarray(rng.normal(size=6)), "mean": jnp.asarray(rng.random(6))}
    return params


def compute(params, x):
    """`x`: (5 positions, 3 channels)."""
    w = {name: np.asarray(layer.get("kernel", 0), np.float64) for name, layer in params.items()}
    a = expit(x @ w["a"])
    h = a * w["by_channel"][0, 0]
    h = (h - np.asarray(params["norm"]["mean"])) * np.asarray(params["norm"]["scale"])
    s = a + expit(h) @ w["b"] + np.asarray(params["b"]["bias"])
    c = expit(s @ w["c"])
    both = np.concatenate([c, s], -1)
    k = w["grouped"][0, 0]
    grouped = np.concatenate([both[:, :5] @ k[:, :2], both[:, 5:] @ k[:, 2:]], -1)
    d = expit(both.ravel() @ w["d"])
    return np.concatenate([grouped.ravel(), c.T.ravel() @ w["e"], d @ w["f"]])


def test_couplings_of_every_kind():
    params, x = everything(), np.random.default_rng(1).normal(size=(5, 3))
    graph = sj.nn.surgery.channel_graph(params, LAYERS)
    # The grouped layer reads both parts of the concatenation: they stay.
    assert graph.sets == {"d": ("d",)}
    layers = [layer for layer in LAYERS if layer[0] != "grouped"]
    graph = sj.nn.surgery.channel_graph(params, layers)
    assert graph.sets == {"a": ("a", "b"), "c": ("c",), "d": ("d",)}
    rng = np.random.default_rng(2)
    for name in graph.sets:
        order = {name: rng.permutation(graph.sizes[name])}
        moved = sj.nn.surgery.permute_channels(params, graph, order)
        # The last 4 outputs come without the grouped layer.
        np.testing.assert_allclose(compute(moved, x)[-4:], compute(params, x)[-4:], rtol=1e-5)
        assert not np.allclose(moved[name]["kernel"], params[name]["kernel"])


def two_layers(w):
    params = {"a": {"kernel": jnp.asarray(w)}, "b": {"kernel": jnp.ones((w.shape[1], 2))}}
    layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
    return params, sj.nn.surgery.channel_graph(params, layers)


def brute_force(w, n, sparsity):
    """The most that groups of n columns can keep, over all orders of the columns."""
    size, best = np.abs(w), 0.0
    for order in itertools.permutations(range(w.shape[1])):
        groups = size[:, list(order)].reshape(len(w), -1, n).sum(-1).ravel()
        zeros = round(groups.size * sparsity)
        best = max(best, np.sort(groups)[zeros:].sum())
    return best / size.sum()


@pytest.mark.parametrize("seed", range(6))
def test_between_what_was_kept_and_the_best_order(seed):
    rng = np.random.default_rng(seed)
    w = (rng.normal(size=(4, 6)) * rng.lognormal(size=6)).astype(np.float32)
    params, graph = two_layers(w)
    plan = sj.plan(params, {r"^a/": sj.Block((1, 2), 0.5)})
    most = brute_force(w, 2, 0.5)
    sorted_ = sj.nn.surgery.rearrange(params, graph, plan)
    greedy = sj.nn.surgery.rearrange(params, graph, plan, method="greedy")
    assert sorted_.before - 1e-6 <= sorted_.after <= greedy.after + 1e-6
    assert greedy.after <= most + 1e-6
    # Of what an order can gain, greedy finds most.
    assert greedy.after >= 0.9 * most


def test_greedy_finds_hidden_groups():
    """Columns of one support, mixed up; all of the same strength, so that sorting cannot help."""
    rng = np.random.default_rng(0)
    support = np.kron(np.eye(3), np.ones((4, 2)))
    mixed = [0, 2, 4, 1, 3, 5]
    w = (support * rng.choice([-1.0, 1.0], support.shape))[:, mixed].astype(np.float32)
    params, graph = two_layers(w)
    plan = sj.plan(params, {r"^a/": sj.Block((1, 2), 2 / 3)})
    found = sj.nn.surgery.rearrange(params, graph, plan, method="greedy")
    assert found.after == pytest.approx(1.0) == pytest.approx(brute_force(w, 2, 2 / 3))
    assert found.before < 0.9


def test_mistakes_are_told():
    params, graph = two_layers(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="each of 0 to 3 once"):
        sj.nn.surgery.permute_channels(params, graph, {"a": np.array([0, 0, 1, 2])})
    with pytest.raises(ValueError, match="the sets are a"):
        sj.nn.surgery.permute_channels(params, graph, {"b": np.array([1, 0])})
    with pytest.raises(ValueError, match="a kind among"):
        sj.nn.surgery.channel_graph(params, [("a", "conv", ())])
    with pytest.raises(ValueError, match="flatten"):
        layers = [("x", "input", ()), ("b", "dense", ("x",)), ("a", "dense", ("b",))]
        sj.nn.surgery.channel_graph({**params, "a": {"kernel": jnp.ones((8, 2))}}, layers)
    with pytest.raises(ValueError, match="no kernel c/kernel"):
        sj.nn.surgery.channel_graph(params, [("x", "input", ()), ("c", "dense", ("x",))])
