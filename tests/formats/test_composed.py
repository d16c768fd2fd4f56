"""Single entries, low rank, and sums of frozen and trainable matrices against dense products."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.formats import BitmaskArray, BlockArray, Entries, LowRank, NMArray, Sum

KEYS = jax.random.split(jax.random.key(0), 8)
W = jax.random.normal(KEYS[0], (8, 6))
MASK = jax.random.uniform(KEYS[1], (8, 6)) < 0.3
MATRICES = {
    "entries": Entries.fromdense(W, mask=MASK),
    "entries, padded": Entries.fromdense(W, mask=MASK, slots=40),
    "no entries": Entries.fromdense(jnp.zeros((8, 6))),
    "bitmask": BitmaskArray.fromdense(W, mask=MASK),
    "rank 2": LowRank(jax.random.normal(KEYS[2], (8, 2)), jax.random.normal(KEYS[3], (2, 6))),
    "2:4": NMArray.fromdense(W, 2, 4),
    "blocks": BlockArray.fromdense(W, 2, mask=jnp.kron(jnp.eye(4, 3), jnp.ones((2, 2))) > 0),
    "dense": W,
}


def sums():
    pairs = itertools.permutations(MATRICES, 2)
    return {f"{a} + {b}": Sum(MATRICES[a], MATRICES[b]) for a, b in pairs}


def dense(w):
    return w if isinstance(w, jax.Array) else w.todense()


@pytest.mark.parametrize("name", [n for n in MATRICES if n != "dense"])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_and_gradients(name, rows):
    w = MATRICES[name]
    x, dy = jax.random.normal(KEYS[4], (rows, 8)), jax.random.normal(KEYS[5], (rows, 6))
    bias = jnp.arange(6.0)
    for implementation in (None, "xla", "dense"):
        multiply = partial(
            sj.matmul, bias=bias, activation=jax.nn.relu, implementation=implementation
        )
        y, pull = jax.vjp(multiply, x, w)
        want, pull_dense = jax.vjp(lambda x, w: jax.nn.relu(x @ dense(w) + bias), x, w)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        for got, expected in zip(jax.tree.leaves(pull(dy)), jax.tree.leaves(pull_dense(dy))):
            if got.dtype != jax.dtypes.float0:
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sums_of_any_two():
    x = jax.random.normal(KEYS[4], (3, 8))
    for name, w in sums().items():
        want = x @ (dense(w.frozen) + dense(w.trainable))
        np.testing.assert_allclose(x @ w, want, rtol=1e-4, atol=1e-5, err_msg=name)
        grads = jax.grad(lambda w: ((x @ w) ** 2).sum(), allow_int=True)(w)
        floats = lambda tree: [  # noqa: E731
            g for g in jax.tree.leaves(tree) if g.dtype != jax.dtypes.float0
        ]
        assert not any(np.any(g) for g in floats(grads.frozen)), name
        assert all(np.any(g) or not g.size for g in floats(grads.trainable)), name


@pytest.mark.slow
def test_stacked_vmapped_and_jitted():
    a, b = jax.random.normal(KEYS[2], (3, 8, 2)), jax.random.normal(KEYS[3], (3, 2, 6))
    ws = jax.random.normal(KEYS[0], (3, 8, 6))
    entries = Entries.fromdense(ws, mask=jax.random.uniform(KEYS[1], (3, 8, 6)) < 0.3)
    x = jax.random.normal(KEYS[4], (3, 5, 8))
    for w in (LowRank(a, b), entries, Sum(ws, LowRank(a, b)), Sum(entries, ws)):
        assert w.shape == (3, 8, 6)
        want = jnp.einsum("lmk,lkn->lmn", x, w.todense())
        np.testing.assert_allclose(jax.jit(sj.matmul)(x, w), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(jax.vmap(sj.matmul)(x, w), want, rtol=1e-4, atol=1e-5)


def test_entries_under_jit_take_the_slots_there_are():
    made = jax.jit(lambda w: Entries.fromdense(w, mask=w > 0, slots=5))(W)
    kept = np.flatnonzero(np.asarray(W) > 0)[:5]
    np.testing.assert_array_equal(made.index, kept)
    with pytest.raises(ValueError, match="do not fit slots=5"):
        Entries.fromdense(W, slots=5)


def test_where_x_is_not_finite_padding_is_silent():
    x = jnp.full((2, 8), jnp.inf)
    w = Entries.fromdense(jnp.zeros((8, 6)).at[0, 0].set(1.0), slots=4)
    assert (x @ w)[:, 1:].tolist() == [[0.0] * 5] * 2


def test_training_a_sum_leaves_the_frozen_part():
    params = {"kernel": Sum(MATRICES["2:4"], MATRICES["rank 2"]), "bias": jnp.zeros(6)}
    frozen = jax.tree.map(lambda t: not t, sj.formats.trainable(params))
    tx = optax.chain(optax.adamw(0.1), optax.masked(optax.set_to_zero(), frozen))
    x, state = jax.random.normal(KEYS[4], (5, 8)), tx.init(params)
    grads = jax.grad(lambda p: ((x @ p["kernel"]) ** 2).sum(), allow_int=True)(params)
    grads = jax.tree.map(
        lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g, grads, params
    )
    updates, _ = tx.update(grads, state, params)
    new = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
    for before, after in ((params["kernel"].frozen, new["kernel"].frozen), ({}, {})):
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.allclose(new["kernel"].trainable.a, params["kernel"].trainable.a)


def test_save_and_load(tmp_path):
    tree = {name: {"kernel": w} for name, w in {**MATRICES, **sums()}.items()}
    tree["equinox"] = {"weight": sj.formats.Transposed(MATRICES["2:4"])}
    tree = {name.replace(", ", "_"): value for name, value in tree.items()}
    sj.save(tmp_path / "w.safetensors", tree)
    back = sj.load(tmp_path / "w.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


@pytest.mark.slow
def test_mistakes():
    with pytest.raises(ValueError, match=r"LowRank.*\(4, 2\).*\(3, 5\)"):
        LowRank(jnp.ones((4, 2)), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(2, 4\) differ"):
        Sum(jnp.ones((4, 2)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="2\\^31"):
        Entries(jnp.zeros(1, jnp.int32), jnp.zeros(1), (2**16, 2**16))
    with pytest.raises(ValueError, match="differ in shape"):
        Entries(jnp.zeros(1, jnp.int32), jnp.zeros(2), (4, 4))
