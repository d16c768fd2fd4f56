"""Interchange with jax.experimental.sparse and SciPy, and compression of trees."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx

import sparsejax as sj
from sparsejax.formats import BlockArray, NMArray, from_sparse, to_bcoo, to_bcsr, to_scipy


def nm_array():
    w = np.random.default_rng(0).normal(size=(10, 6))
    return NMArray.fromdense(jnp.asarray(w, jnp.float32), 2, 4)


def block_array():
    w = np.random.default_rng(0).normal(size=(8, 6)) * np.kron(np.eye(4, 3), np.ones((2, 2)))
    return BlockArray.fromdense(jnp.asarray(w, jnp.float32), 2, slots=3)


@pytest.mark.slow
@pytest.mark.parametrize("export", [to_bcoo, to_bcsr, to_scipy])
def test_round_trips(export):
    for w, back in ((nm_array(), dict(nm=(2, 4))), (block_array(), dict(block=2))):
        there = export(w)
        np.testing.assert_array_equal(there.todense(), w.todense())
        again = from_sparse(there, **back)
        assert type(again) is type(w)
        np.testing.assert_array_equal(again.todense(), w.todense())


def test_padding_is_not_exported():
    assert to_bcoo(block_array()).nse == 3 * 4
    bsr = to_scipy(block_array())
    assert isinstance(bsr, scipy.sparse.bsr_array) and bsr.data.shape == (3, 2, 2)
    assert isinstance(from_sparse(bsr), BlockArray)


def test_explicit_zeros_stay_stored():
    stored = scipy.sparse.coo_array(([0.0, 1.0], ([0, 3], [0, 0])), shape=(4, 2))
    assert from_sparse(stored, nm=(2, 4)).index[:, 0, 0].tolist() == [0, 3]
    assert from_sparse(stored, block=(2, 2)).count.tolist() == [2]


def test_traced_export():
    for w in (nm_array(), block_array()):
        dense = jax.jit(lambda w: to_bcoo(w).todense())(w)
        np.testing.assert_array_equal(dense, w.todense())


def test_scipy_gets_numbers_it_knows():
    assert to_scipy(nm_array().astype(jnp.bfloat16)).dtype == np.float32


def test_mistakes(monkeypatch):
    with pytest.raises(ValueError, match="one of block and nm"):
        from_sparse(to_bcoo(nm_array()))
    with pytest.raises(TypeError, match="BCOO, BCSR or SciPy"):
        from_sparse(np.eye(4), nm=(1, 4))
    stack = jax.tree.map(lambda leaf: leaf[None], nm_array())
    with pytest.raises(ValueError, match="stacked"):
        to_bcoo(stack)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install scipy"):
        to_scipy(nm_array())


def params():
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 6), "b": (8, 4, 3), "c": (2, 2, 8, 6), "d": (3, 8, 6), "e": (8, 6)}
    kernels = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    return {name: {"kernel": w, "bias": jnp.ones(2)} for name, w in kernels.items()}


RULES = {
    "a/kernel": sj.Block((2, 3), 0.5),
    "b/kernel": sj.NM(2, 4, axis=0),
    "c/kernel": sj.NM(1, 4),
    "d/kernel": sj.NM(2, 4, axis=1, stacked=1),
    "e/kernel": sj.Unstructured(0.5),
}


@pytest.mark.slow
def test_compress_a_tree():
    tree = params()
    plan = sj.plan(tree, RULES)
    small = sj.compress(tree, plan)
    masked = sj.masks.apply_masks(tree, plan.masks(sj.masks.magnitude(tree)))
    kernels = {name: layer["kernel"] for name, layer in small.items()}
    assert isinstance(kernels["a"], BlockArray) and kernels["a"].shape == (8, 6)
    assert kernels["b"].shape == (8, 12) and kernels["c"].shape == (32, 6)
    assert kernels["d"].shape == (3, 8, 6)
    assert isinstance(kernels["e"], jax.Array)
    assert small["a"]["bias"] is tree["a"]["bias"]
    for name, w in kernels.items():
        dense = w if isinstance(w, jax.Array) else w.todense()
        np.testing.assert_array_equal(dense, masked[name]["kernel"].reshape(dense.shape))


def test_compress_with_masks_of_its_own():
    tree = {"kernel": jnp.arange(8.0).reshape(4, 2)}
    mask = jnp.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    small = sj.compress(tree, sj.plan(tree, sj.NM(2, 4)), {"kernel": mask})
    np.testing.assert_array_equal(small["kernel"].todense(), tree["kernel"] * mask)
    with pytest.raises(ValueError, match="kernel of shape.*keeps 4 entries"):
        sj.compress(tree, sj.plan(tree, sj.NM(2, 4)), {"kernel": jnp.ones((4, 2), bool)})


@pytest.mark.slow
def test_compress_the_parameters_of_a_module():
    params = nnx.to_pure_dict(nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param))
    stages = sj.patterns.nm_stages("stepwise", 1, 4)
    small = sj.compress(params, sj.plan(params, stages))
    assert small["kernel"].n == 1 and small["kernel"].m == 4
    nothing = sj.compress(params, sj.plan(params, sj.NM(0, 4)))
    assert (nothing["kernel"] == 0).all()
