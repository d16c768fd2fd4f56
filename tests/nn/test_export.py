"""Exported programs with compressed matrices serve every number of rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import sparsejax as sj
from sparsejax.formats import (
    BitmaskArray,
    BlockArray,
    Entries,
    LowRank,
    NMArray,
    Sum,
    TensorCoreArray,
    Transposed,
)

W = jax.random.normal(jax.random.key(0), (64, 48))
BLOCKS = jnp.kron(jax.random.uniform(jax.random.key(1), (8, 6)) < 0.4, jnp.ones((8, 8))) > 0
NM = NMArray.fromdense(W, 2, 4)
RANK = LowRank(W[:, :2], W[:2])
MATRICES = {
    "dense": W,
    "2:4": NM,
    "1:16": NMArray.fromdense(W, 1, 16),
    "2:4, shared": NMArray.fromdense(W, 2, 4, share=48),
    "blocks": BlockArray.fromdense(W, 8, mask=BLOCKS),
    "blocks for inference": BlockArray.fromdense(W, 8, mask=BLOCKS).for_inference(),
    "all blocks": BlockArray.fromdense(W, 8),
    "bitmask": BitmaskArray.fromdense(W, mask=W > 1),
    "entries": Entries.fromdense(W, mask=W > 2),
    "rank 2": RANK,
    "sum": Sum(NM, RANK),
    "bfloat16": NM.astype(jnp.bfloat16),
    "tensor cores": TensorCoreArray.fromnm(NMArray.fromdense(jnp.ones((128, 64)), 2, 4)),
}
PLATFORMS = ("cpu", "cuda", "tpu")


def through_a_file(exported):
    """Serialised and back, where flatbuffers is installed."""
    try:
        return export.deserialize(exported.serialize())
    except ImportError:
        return exported


@pytest.mark.parametrize("name", MATRICES)
def test_symbolic_batch(name):
    w = MATRICES[name]
    x = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {w.shape[0]}"), jnp.float32)
    exported = export.export(jax.jit(lambda x, w: sj.matmul(x, w)), platforms=PLATFORMS)(x, w)
    served = through_a_file(exported)
    for batch in (1, 3, 17):
        x = jax.random.normal(jax.random.key(batch), (batch, w.shape[0]))
        np.testing.assert_allclose(served.call(x, w), sj.matmul(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2:4", "blocks", "bitmask"])
def test_two_symbolic_axes_and_gradients(name):
    w = MATRICES[name]
    loss = lambda x, w: jnp.sum(jnp.sin(sj.matmul(x, w)))  # noqa: E731
    spec = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 64"), jnp.float32)
    grad = jax.jit(lambda x, w: jax.grad(loss)(x, w))
    served = through_a_file(export.export(grad, platforms=PLATFORMS)(spec, w))
    for shape in ((1, 1, 64), (3, 5, 64)):
        x = jax.random.normal(jax.random.key(0), shape)
        np.testing.assert_allclose(served.call(x, w), grad(x, w), rtol=1e-4, atol=1e-4)


def compressed(tree):
    rules = {
        r"0/kernel": sj.NM(2, 4),
        r"1/kernel": sj.Block((4, 4), 0.5),
        r"2/kernel": sj.Unstructured(0.9),
    }
    return sj.compress(tree, sj.plan(tree, rules), bitmask=True)


def network(params, x):
    for layer in params.values():
        x = jax.nn.relu(sj.matmul(x, layer["kernel"], bias=layer["bias"]))
    return x


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.whole
def test_a_compressed_model(inside):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(*(nnx.Linear(16, 16, rngs=rngs) for _ in range(4)))
    layers = [nnx.as_pure(nnx.state(layer)) for layer in model.layers]
    params = compressed({f"{i}": dict(layer) for i, layer in enumerate(layers)})
    function, args = (jax.jit(compressed(model)), ()) if inside else (jax.jit(network), (params,))
    x = jax.ShapeDtypeStruct(export.symbolic_shape("b, 16"), jnp.float32)
    served = through_a_file(export.export(function, platforms=PLATFORMS)(*args, x))
    for batch in (1, 3, 17):
        x = jax.random.normal(jax.random.key(batch), (batch, 16))
        np.testing.assert_allclose(served.call(*args, x), function(*args, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compressed_language_model():
    config = sj.models.LlamaConfig(
        vocabulary=24, width=16, hidden=16, layers=1, heads=2, key_heads=1, head_size=8
    )
    model = sj.models.Llama(config, rngs=nnx.Rngs(0))
    model = sj.compress(model, sj.plan(model, {r"layers/.*kernel$": sj.NM(2, 4)}))
    ids = jax.ShapeDtypeStruct(export.symbolic_shape("b, 7"), jnp.int32)
    served = through_a_file(export.export(jax.jit(model))(ids))
    for batch in (1, 3):
        ids = jax.random.randint(jax.random.key(0), (batch, 7), 0, 24)
        np.testing.assert_allclose(served.call(ids), model(ids), rtol=1e-4, atol=1e-4)


def trees():
    return [*MATRICES.values(), Transposed(NM), sj.prox.l1(0.1), sj.masks.Masks({"w": W > 0})]


@pytest.mark.parametrize("tree", trees(), ids=lambda x: type(x).__name__)
def test_every_tree_goes_through_a_file(tree):
    pytest.importorskip("flatbuffers")
    exported = export.export(jax.jit(lambda x: x))(tree)
    back = export.deserialize(exported.serialize())
    assert jax.tree.structure(back.call(tree)) == jax.tree.structure(tree)


def test_a_format_of_ones_own(monkeypatch):
    found = {}
    monkeypatch.setattr(
        export, "register_pytree_node_serialization", lambda cls, **how: found.update({cls: how})
    )

    def define():
        @sj.register
        @dataclasses.dataclass(frozen=True)
        class Own:
            values: object
            size: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
            name: str = dataclasses.field(default="a", metadata=dict(static=True))

        return Own

    one, two = define(), define()
    names = [found[cls]["serialized_name"] for cls in (one, two)]
    assert names[0].endswith("define.<locals>.Own") and names[1] == names[0] + "#2"
    static = jax.tree.structure(one(1.0, (2, 3))).node_data()[1]
    text = found[one]["serialize_auxdata"](static)
    assert isinstance(text, bytes) and found[one]["deserialize_auxdata"](text) == static
    with pytest.raises(TypeError, match="Own cannot be stored: its static fields must be"):
        found[one]["serialize_auxdata"]((jnp.float32, "a"))


def test_names_of_the_library_are_public_and_distinct():
    from sparsejax import _tree

    own = [name for name in _tree._exported if name.startswith("sparsejax.")]
    assert "sparsejax.formats.NMArray" in own
    assert all("._" not in name and _tree._exported[name] == 1 for name in own)
