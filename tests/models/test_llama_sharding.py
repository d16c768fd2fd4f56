"""A Llama over eight devices computes and is pruned as on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax as sj
from sparsejax._tree import named_leaves

CONFIG = sj.models.LlamaConfig(
    vocabulary=32, width=16, hidden=32, layers=2, heads=4, key_heads=1, head_size=4
)
IDS = np.random.default_rng(0).integers(0, 32, (4, 9))


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(kind, kind))


def make(scan=False, tied=False):
    config = dataclasses.replace(CONFIG, tied=tied)
    return sj.models.Llama(config, scan=scan, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.whole
def test_every_matrix_is_split(scan):
    model = make(scan)
    specs = sj.models.llama_specs(model)
    assert specs.keys() == named_leaves(nnx.as_pure(nnx.state(model, nnx.Param))).keys()
    placed = sj.models.shard_llama(model, mesh())
    for name, x in named_leaves(nnx.as_pure(nnx.state(placed, nnx.Param))).items():
        parts = {"scale": 1}.get(name.rpartition("/")[2], 8)
        assert x.sharding.shard_shape(x.shape) != x.shape or parts == 1, name
        assert x.size == parts * np.prod(x.sharding.shard_shape(x.shape)), name
    where = "layers/mlp/up/kernel" if scan else "layers/0/mlp/up/kernel"
    assert specs[where] == PartitionSpec(*[None] * scan, "fsdp", "tensor")


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_perplexity(scan, tied):
    model = make(scan, tied)
    placed, ids = sj.models.shard_llama(model, mesh()), jnp.asarray(IDS)
    spread = jax.device_put(ids, NamedSharding(mesh(), PartitionSpec("fsdp")))
    run = nnx.jit(lambda model, ids: model(ids))
    np.testing.assert_allclose(run(placed, spread), run(model, ids), rtol=1e-4, atol=1e-5)
    both = [sj.models.perplexity(m, IDS[0], window=8) for m in (model, placed)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [sj.NM(2, 4), sj.Unstructured(0.5)])
@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_the_same_masks(pattern, method):
    model = make()
    plan = sj.plan(model, {r"layers/.*kernel$": pattern})
    spread = NamedSharding(mesh(), PartitionSpec("fsdp"))
    found = sj.recipes.sequential_prune(model, [jnp.asarray(IDS)], plan, method)
    placed = sj.models.shard_llama(model, mesh())
    other = sj.recipes.sequential_prune(placed, [jax.device_put(IDS, spread)], plan, method)
    jax.tree.map(np.testing.assert_array_equal, other.masks, found.masks)
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(found.params)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_file_into_a_mesh(tmp_path):
    model = make()
    sj.save(tmp_path / "m", model)
    abstract = sj.models.shard_llama(nnx.eval_shape(make), mesh())
    back = sj.load(tmp_path / "m", abstract)
    kernel = back.layers[1].mlp.down.kernel
    assert kernel.sharding.spec == PartitionSpec("tensor", "fsdp")
    np.testing.assert_array_equal(kernel[...], model.layers[1].mlp.down.kernel[...])


def test_mistakes():
    model = make()
    with pytest.raises(ValueError, match=r"has the axes fsdp, tensor, and not data"):
        sj.models.shard_llama(model, mesh(), fsdp="data")
    with pytest.raises(ValueError, match="automatic axes"):
        sj.models.shard_llama(model, mesh(AxisType.Explicit))
    small = sj.compress(model, sj.plan(model, {r"layers/0/mlp/up/kernel": sj.NM(2, 4)}))
    with pytest.raises(
        ValueError, match="layers/0/mlp/up/kernel/values is not a parameter of a dense"
    ):
        sj.models.shard_llama(small, mesh())
