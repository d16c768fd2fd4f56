"""Each framework stores its kernels its own way round; patterns and scores never mix axes up."""

import dataclasses

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj

KEY = jax.random.key(0)
FLAX, OTHER = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Holder:
    enc: eqx.Module


NESTED = {
    "dict": lambda m: {"enc": m},
    "list": lambda m: [m],
    "tuple": lambda m: (m, None),
    "dataclass": lambda m: Holder(m),
    "Equinox in Equinox": lambda m: eqx.nn.Sequential([m]),
    "deep": lambda m: {"a": [Holder(m)]},
}


def linear(inputs=8, outputs=8):
    return eqx.nn.Linear(inputs, outputs, key=KEY)


def only_mask(plan, model, scores=None):
    """The mask of the one planned kernel."""
    params = eqx.filter(model, eqx.is_array)
    masks = plan.masks(sj.masks.magnitude(params) if scores is None else scores)
    (mask,) = [m for m in jax.tree.leaves(masks) if m.ndim >= 2]
    return np.asarray(mask)


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("pattern", [
    sj.NM(2, 4), sj.patterns.FanIn(0.75), sj.Channel(0.5), sj.Block((8, 4), 0.5),
], ids=["NM", "FanIn", "Channel", "Block"])  # fmt: skip
def test_equinox_inside_any_container_is_planned_as_alone(nest, pattern):
    model = linear(64, 32)
    alone = only_mask(sj.plan(model, pattern), model)
    np.testing.assert_array_equal(only_mask(sj.plan(nest(model), pattern), nest(model)), alone)


def held(tree):
    """The one layer in a container."""
    kinds = (eqx.nn.Sequential, eqx.nn.Linear, nnx.Linear)
    return next(x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kinds))
                if isinstance(x, kinds))  # fmt: skip


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("frame", ["equinox", "nnx"])
def test_modules_in_any_container_run_compressed_and_tapped(nest, frame, request):
    if frame == "nnx" and "Equinox in Equinox" in request.node.name:
        pytest.skip("a list of Equinox holds modules of Equinox")
    model = nest(linear() if frame == "equinox" else nnx.Linear(8, 8, rngs=nnx.Rngs(0)))
    x, plan = jnp.arange(8.0), sj.plan(model, sj.NM(2, 4))
    masks = plan.masks(sj.masks.magnitude(model))
    expected = held(sj.masks.apply_masks(model, masks))(x)
    compressed = sj.compress(model, plan, masks)
    np.testing.assert_allclose(held(compressed)(x), expected, atol=1e-5)
    assert sum(a.size for a in jax.tree.leaves(eqx.filter(compressed, eqx.is_array))) < 64
    call = lambda model, x: held(model)(x)  # noqa: E731
    y, found = sj.nn.record(model, "", x, call=call, combine=lambda a, b: b)
    np.testing.assert_array_equal(list(found.values())[-1], y)
    none = sj.nn.replace(model, {".": lambda path, call, x, **_: 0 * call(x)})
    assert not held(none)(x).any()


def test_two_four_groups_inputs():
    model = linear(64, 32)
    mask = only_mask(sj.plan({"enc": model}, sj.NM(2, 4)), {"enc": model})
    assert (mask.reshape(32, 16, 4).sum(-1) == 2).all()


def test_fan_in_keeps_inputs_of_each_output():
    mask = only_mask(sj.plan(linear(), sj.patterns.FanIn(0.75)), linear())
    assert mask.sum(1).tolist() == [2] * 8


def test_channels_are_outputs():
    model = eqx.tree_at(lambda m: m.weight, linear(), jnp.asarray(FLAX))
    mask = only_mask(sj.plan(model, sj.Channel(0.5)), model)
    assert (mask == mask[:, :1]).all() and mask[:, 0].sum() == 4
    kept = np.sort(np.argsort(-np.abs(FLAX).sum(1))[:4])
    assert set(np.flatnonzero(mask[:, 0])) == set(kept)


def test_blocks_are_turned_with_the_kernel():
    """A block of 4 inputs and 2 outputs is stored as 2 x 4."""
    model = eqx.tree_at(lambda m: m.weight, linear(), jnp.asarray(FLAX))
    mask = only_mask(sj.plan(model, sj.Block((4, 2), 0.5)), model)
    blocks = mask.reshape(4, 2, 2, 4)
    assert (blocks == blocks[:, :1, :, :1]).all() and blocks[:, 0, :, 0].sum() == 4
    flax = sj.plan({"kernel": jnp.asarray(FLAX.T)}, sj.Block((4, 2), 0.5))
    same = flax.masks(sj.masks.magnitude({"kernel": jnp.asarray(FLAX.T)}))["kernel"]
    np.testing.assert_array_equal(mask, np.asarray(same).T)


@pytest.mark.parametrize("nest", [lambda m: m, NESTED["dict"]], ids=["alone", "nested"])
def test_wanda_scales_inputs(nest):
    model = nest(linear())
    x = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    plan = sj.plan(model, sj.Unstructured(0.5))
    (gram,) = sj.nn.input_grams(linear(), [jnp.asarray(x)]).values()
    inputs = {leaf.name: gram for leaf in plan.leaves}
    scores = sj.masks.wanda(eqx.filter(model, eqx.is_array), inputs, plan)
    (found,) = [s for s in jax.tree.leaves(scores) if s.ndim == 2]
    weight = np.asarray(linear().weight)
    np.testing.assert_allclose(
        found, np.abs(weight) * np.linalg.norm(x, axis=0)[None, :], rtol=1e-5
    )


class Convolutions(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self):
        self.first = eqx.nn.Conv2d(8, 32, 3, key=KEY)
        self.second = eqx.nn.Conv2d(32, 64, 3, key=KEY)


@pytest.mark.parametrize("frame", ["equinox", "flax"])
def test_erdos_renyi_counts_channels_of_convolutions(frame):
    flax = {
        "first": {"kernel": jnp.ones((3, 3, 8, 32))},
        "second": {"kernel": jnp.ones((3, 3, 32, 64))},
    }
    model = Convolutions() if frame == "equinox" else flax
    plan = sj.plan(model, sj.Unstructured(0.9), allocate=sj.masks.erdos_renyi)
    masks = plan.masks(sj.masks.magnitude(eqx.filter(model, eqx.is_array)))
    densities = [float(m.mean()) for m in jax.tree.leaves(masks)]
    np.testing.assert_allclose(densities, [0.2647, 0.0794], atol=5e-4)


def test_a_plain_weight_needs_a_layout():
    params = {"q_proj": {"weight": jnp.asarray(FLAX)}}
    with pytest.raises(ValueError, match=r'q_proj/weight.*layout="out_in"'):
        sj.plan(params, sj.NM(2, 4))
    scores = sj.masks.magnitude(params)
    mask = sj.plan(params, sj.NM(2, 4), layout="out_in").masks(scores)["q_proj"]["weight"]
    assert (np.asarray(mask).reshape(8, 2, 4).sum(-1) == 2).all()
    ruled = sj.plan(params, sj.NM(2, 4), layout={"q_proj": "out_in"})
    np.testing.assert_array_equal(ruled.masks(scores)["q_proj"]["weight"], mask)
    turned = sj.plan(params, sj.NM(2, 4), layout="in_out").masks(scores)["q_proj"]["weight"]
    assert (np.asarray(turned).reshape(2, 4, 8).sum(1) == 2).all()


class Network(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        self.first, self.second = linear(16, 32), linear(32, 8)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(8)(jax.nn.relu(linen.Dense(32)(x)))


@pytest.mark.parametrize("pattern", [sj.NM(2, 4), sj.Block((8, 8), 0.5)], ids=["NM", "Block"])
@pytest.mark.parametrize("frame", ["equinox", "linen", "nnx"])
def test_compressed_networks_run(frame, pattern):
    x = jax.random.normal(KEY, (5, 16))
    if frame == "equinox":
        model, run = Network(), lambda m: jax.vmap(m)(x)
    elif frame == "linen":
        module = Linen()
        model = module.init(KEY, x)["params"]

        def run(params):
            with linen.intercept_methods(sj.nn.linen_compressed):
                return module.apply({"params": params}, x)

    else:
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(
            nnx.Linear(16, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 8, rngs=rngs)
        )
        run = lambda m: m(x)  # noqa: E731
    plan = sj.plan(model, pattern)
    params = eqx.filter(model, eqx.is_array) if frame == "equinox" else model
    masks = plan.masks(sj.masks.magnitude(params))
    compressed = sj.compress(model, plan, masks)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(eqx.filter(compressed, eqx.is_array)) < size(params)
    np.testing.assert_allclose(
        run(compressed), run(sj.masks.apply_masks(model, masks)), rtol=1e-4, atol=1e-5
    )
