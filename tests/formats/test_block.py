"""Block arrays: lists by column and by row, what comes back, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

import sparsejax as sj
from sparsejax import formats
from sparsejax.formats import BlockArray
from sparsejax.kernels import matmul

GRID, BLOCK = (4, 3), (2, 3)
SHAPE = (8, 9)


def blocks_of(stored, seed=0):
    """A matrix whose blocks are non-zero where stored."""
    w = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    return jnp.asarray(w * np.kron(stored, np.ones(BLOCK, np.float32)))


patterns = hnp.arrays(bool, GRID, elements=st.booleans())


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(patterns)
def test_round_trip_lists_and_transpose(stored):
    w = blocks_of(stored)
    # Room for all blocks: one shape, compiled once.
    packed = BlockArray.fromdense(w, BLOCK, slots=4, slots_t=3)
    np.testing.assert_array_equal(packed.todense(), w)
    np.testing.assert_array_equal(packed.T.todense(), w.T)
    np.testing.assert_array_equal(packed.T.T.todense(), w)
    flat = np.asarray(packed.values).reshape(-1, *BLOCK)
    for j in range(GRID[1]):
        rows = np.flatnonzero(stored[:, j])
        assert packed.count[j] == len(rows)
        assert packed.index[j].tolist() == [*rows, *[0] * (4 - len(rows))]
        assert not np.asarray(packed.values)[j, len(rows) :].any()
    for i in range(GRID[0]):
        columns = np.flatnonzero(stored[i])
        assert packed.count_t[i] == len(columns)
        assert packed.index_t[i, : len(columns)].tolist() == columns.tolist()
        for j, slot in zip(columns, np.asarray(packed.slot_t)[i]):
            np.testing.assert_array_equal(flat[slot], w[2 * i : 2 * i + 2, 3 * j : 3 * j + 3])


@settings(max_examples=20, deadline=None)
@given(patterns, hnp.arrays(bool, SHAPE, elements=st.booleans()))
def test_masks_within_blocks(stored, mask):
    w = blocks_of(np.ones(GRID))
    mask = mask & np.kron(stored, np.ones(BLOCK, bool))
    packed = BlockArray.fromdense(w, BLOCK, mask=mask, slots=4, slots_t=3)
    np.testing.assert_array_equal(packed.todense(), w * mask)


def test_concrete_and_traced_agree():
    w = blocks_of(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], bool))
    concrete = BlockArray.fromdense(w, BLOCK)
    assert concrete.values.shape[:2] == (3, 3) and concrete.index_t.shape == (4, 2)
    traced = jax.jit(lambda w: BlockArray.fromdense(w, BLOCK))(w)
    assert traced.values.shape[:2] == (3, 4) and traced.index_t.shape == (4, 3)
    exact = jax.jit(lambda w: BlockArray.fromdense(w, BLOCK, slots=3, slots_t=2))(w)
    for a, b in zip(jax.tree.leaves(concrete), jax.tree.leaves(exact)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(traced.todense(), w)


@pytest.mark.parametrize("sides", [dict(slots=1), dict(slots_t=1), dict(slots=1, slots_t=1)])
def test_traced_blocks_without_room_are_left_out_on_both_sides(sides):
    w = blocks_of(np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], bool))
    packed = jax.jit(lambda w: BlockArray.fromdense(w, BLOCK, **sides))(w)
    dense = packed.todense()
    assert (dense == jnp.where(dense != 0, w, 0)).all() and (dense != w).any()
    np.testing.assert_array_equal(packed.T.todense(), dense.T)
    assert packed.count.sum() == packed.count_t.sum()


def test_nothing_stored():
    packed = BlockArray.fromdense(jnp.zeros(SHAPE), BLOCK)
    assert packed.values.shape == (3, 0, 2, 3) and packed.shape == SHAPE
    assert packed.density == 0 and packed.sparsity == 1
    np.testing.assert_array_equal(packed.todense(), np.zeros(SHAPE))
    assert packed.T.shape == SHAPE[::-1]


def test_trailing_empty_rows_keep_the_shape():
    packed = BlockArray.fromdense(jnp.zeros(SHAPE).at[0, 0].set(1.0), BLOCK)
    assert packed.shape == SHAPE


def test_numbers():
    packed = BlockArray.fromdense(blocks_of(np.eye(4, 3, dtype=bool)), BLOCK)
    assert packed.block == BLOCK and packed.values.shape == (3, 1, *BLOCK)
    assert packed.nbytes == 18 * 4 + (3 + 3 + 4 + 4 + 4) * 4
    assert packed.density == 0.25
    assert packed.astype(jnp.float16).dtype == jnp.float16
    assert repr(packed) == "BlockArray(blocks=2x3, slots=1, shape=(8, 9), dtype=float32)"


@pytest.mark.slow
def test_stacks_vmaps_scans_and_traces_abstractly():
    patterns = np.random.default_rng(0).random((3, *GRID)) < 0.5
    w = jnp.stack([blocks_of(stored, i) for i, stored in enumerate(patterns)])
    stack = BlockArray.fromdense(w, BLOCK)
    assert stack.shape == (3, *SHAPE)
    np.testing.assert_array_equal(stack.todense(), w)
    np.testing.assert_array_equal(stack.T.todense(), w.swapaxes(1, 2))
    mapped = jax.vmap(lambda w: BlockArray.fromdense(w, BLOCK))(w)
    np.testing.assert_array_equal(mapped.todense(), w)
    scanned = jax.lax.scan(lambda c, layer: (c, layer.todense()), 0, stack)[1]
    np.testing.assert_array_equal(scanned, w)
    abstract = jax.eval_shape(lambda w: BlockArray.fromdense(w, BLOCK), w)
    assert abstract.shape == (3, *SHAPE)


def test_names_of_leaves_are_stable():
    paths = jax.tree.leaves_with_path(BlockArray.fromdense(jnp.eye(4), 2))
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    assert names == [".values", ".index", ".count", ".index_t", ".slot_t", ".count_t"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(block=5), r"\(5, 5\).*does not divide.*\(8, 9\)"),
        (dict(block=0), "two positive integers"),
        (dict(block=BLOCK, slots=1), "slots=1.*room for the 4 blocks.*column; pass slots=4"),
        (dict(block=BLOCK, slots_t=2), "slots_t=2.*room for the 3 blocks.*row"),
        (dict(block=BLOCK, mask=np.ones((8, 3), bool)), "w has shape"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockArray.fromdense(jnp.ones(SHAPE), **arguments)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="astype"):
        BlockArray.fromdense(np.ones(SHAPE, int), BLOCK)


def test_a_block_may_be_a_number_of_numpy():
    w = blocks_of(np.ones(GRID, bool))[:, :8]
    assert BlockArray.fromdense(w, np.int64(4)).block == (4, 4)


@pytest.mark.parametrize(
    "block, all_lists, goal",
    [((1, 1), 0.59, 0.2), ((1, 4), 0.3, 0.17), ((4, 4), 0.22, 0.2)],
)
def test_bytes_for_inference_at_90_percent(block, all_lists, goal):
    """Issue 14.9: the lists by block row took half of the bytes, and only gradients read them."""
    grid = tuple(256 // side for side in block)
    kept = np.random.default_rng(0).permutation(np.arange(np.prod(grid)) < np.prod(grid) // 10)
    dense = np.kron(kept.reshape(grid), np.ones(block)).astype(np.float32)
    w = BlockArray.fromdense(dense, block)
    few = w.for_inference()
    by_hand = 4 * w.values.size + w.index.size + w.count.size + w.count_t.size
    assert few.nbytes == by_hand < goal * dense.nbytes
    assert w.nbytes > all_lists * dense.nbytes


@pytest.mark.parametrize("rows, dtype", [(256, np.uint8), (257, np.uint16), (65_537, np.int32)])
def test_lists_for_inference_are_as_narrow_as_the_rows_allow(rows, dtype, tmp_path):
    dense = np.zeros((rows, 2), np.float32)
    dense[[0, 3, rows - 1]] = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    w = BlockArray.fromdense(dense, 1)
    few = w.for_inference()
    few.validate()
    assert few.index.dtype == dtype
    np.testing.assert_array_equal(few.todense(), dense)
    x = jnp.ones((2, rows))
    for implementation in ("xla", "dense"):
        y = matmul(x, few, implementation=implementation)
        np.testing.assert_array_equal(y, np.ones((2, rows)) @ dense)
    for a, b in zip(jax.tree.leaves(few.with_rows()), jax.tree.leaves(w)):
        np.testing.assert_array_equal(a, b)
    sj.save(tmp_path / "few.safetensors", {"w": few})
    (loaded,) = sj.load(tmp_path / "few.safetensors").values()
    assert loaded.index.dtype == dtype and (loaded.todense() == dense).all()
    with pytest.raises(ValueError, match="index"):
        dataclasses.replace(few, index=few.index[:, ::-1]).validate()


def test_a_matrix_for_inference_and_back():
    dense = blocks_of(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]], bool))
    w = BlockArray.fromdense(jnp.stack([dense, 2 * dense]), BLOCK)
    few, x = w.for_inference(), jnp.arange(48.0).reshape(2, 3, 8)
    few.validate()
    np.testing.assert_array_equal(few.todense(), w.todense())
    np.testing.assert_array_equal(matmul(x, few), matmul(x, w))
    for a, b in zip(jax.tree.leaves(few.with_rows()), jax.tree.leaves(w)):
        np.testing.assert_array_equal(a, b)
    one = jax.tree.map(lambda leaf: leaf[0], few)
    assert (formats.to_scipy(one).toarray() == np.asarray(dense)).all()
    for wrong in (lambda: few.T, lambda: jax.grad(lambda x: matmul(x, few).sum())(x)):
        with pytest.raises(ValueError, match=r"sj.compress\(model, plan, masks\).*with_rows"):
            wrong()
    # A matrix of zeros has no list in either form, and its gradient is 0.
    nothing = BlockArray.fromdense(0 * dense, BLOCK, slots=2).for_inference().with_rows()
    assert (jax.grad(lambda x: matmul(x, nothing).sum())(x[0]) == 0).all()
