"""N:M arrays: what is stored, what comes back, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax.formats import NMArray

# Shapes and patterns are few, so that what is compiled once serves all examples.
PATTERNS = [(1, 4), (2, 4), (3, 4), (4, 4), (2, 3), (1, 1)]


def brute_force(w, n, m, mask=None):
    """The kept entries group by group, by sorting."""
    kept = np.zeros(w.shape, bool)
    allowed = w != 0 if mask is None else mask
    for j in range(w.shape[1]):
        for g in range(0, w.shape[0], m):
            group = range(g, min(g + m, w.shape[0]))
            best = sorted((i for i in group if allowed[i, j]), key=lambda i: (-abs(w[i, j]), i))
            kept[best[:n], j] = True
    return kept


def few_floats(shape):
    values = [0.0, 1.0, -1.0, 2.0, 0.5, -0.5]
    return hnp.arrays(np.float32, shape, elements=st.sampled_from(values))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(few_floats((9, 3)), st.sampled_from(PATTERNS))
def test_keeps_the_largest_and_the_lowest_of_ties(w, nm):
    packed = NMArray.fromdense(w, *nm)
    assert packed.shape == w.shape
    np.testing.assert_array_equal(packed.todense(), w * brute_force(w, *nm))


@settings(max_examples=25, deadline=None)
@given(few_floats((8, 3)), few_floats((8, 3)), st.sampled_from(PATTERNS[:3]))
def test_round_trip_with_a_mask(w, scores, nm):
    mask = brute_force(scores, *nm)
    packed = NMArray.fromdense(w, *nm, mask=mask)
    np.testing.assert_array_equal(packed.todense(), w * mask)
    again = NMArray.fromdense(packed.todense(), *nm, mask=mask)
    np.testing.assert_array_equal(again.code, packed.code)
    np.testing.assert_array_equal(again.values, packed.values)


@settings(max_examples=25, deadline=None)
@given(few_floats((8, 3)), st.sampled_from(PATTERNS[:3]))
def test_slots_ascend_and_unused_ones_take_the_lowest_free_index(w, nm):
    n, m = nm
    packed = NMArray.fromdense(w, n, m)
    index, values = np.asarray(packed.index), np.asarray(packed.values)
    assert (index < m).all() and (np.diff(index.astype(int), axis=0) > 0).all()
    kept = brute_force(w, n, m)
    for g in range(8 // m):
        for j in range(3):
            used = np.flatnonzero(kept[g * m : (g + 1) * m, j])
            free = [i for i in range(m) if i not in used]
            assert sorted([*used, *free[: n - len(used)]]) == index[:, g, j].tolist()
            assert (values[~np.isin(index[:, g, j], used), g, j] == 0).all()


def test_all_equal_keeps_the_first():
    assert NMArray.fromdense(jnp.ones((8, 1)), 2, 4).index.ravel().tolist() == [0, 0, 1, 1]


def test_not_a_number_is_kept_by_its_mask_and_ranks_last_without():
    w = jnp.array([[jnp.nan], [3.0], [1.0], [2.0]])
    assert NMArray.fromdense(w, 2, 4).todense().ravel().tolist() == [0, 3, 0, 2]
    mask = jnp.array([[True], [False], [True], [False]])
    kept = NMArray.fromdense(w, 2, 4, mask=mask).todense().ravel()
    assert jnp.isnan(kept[0]) and kept[1:].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "n, m, dtype, planes",
    [
        (2, 4, jnp.uint8, False),
        (1, 8, jnp.uint8, False),
        (2, 16, jnp.uint8, False),
        (4, 8, jnp.uint16, False),
        (6, 20, jnp.uint32, False),
        (8, 16, jnp.uint32, False),
        (9, 16, jnp.uint8, True),
        (2, 300, jnp.uint32, False),
        (4, 300, jnp.uint16, True),
    ],
)
def test_code_is_as_small_as_it_can_be(n, m, dtype, planes):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2 * m, 3)), jnp.float32)
    packed = NMArray.fromdense(w, n, m)
    assert packed.code.dtype == dtype
    assert packed.code.shape == ((n, 2, 3) if planes else (2, 3))
    assert packed.values.shape == (n, 2, 3)
    dense = packed.todense()
    assert (dense == jnp.where(dense != 0, w, 0)).all() and (dense != 0).sum() == n * 6
    smallest = jnp.abs(jnp.where(dense == 0, jnp.inf, dense)).reshape(2, m, 3).min(1)
    assert (jnp.abs(jnp.where(dense == 0, w, 0)).reshape(2, m, 3).max(1) <= smallest).all()


def test_shared_patterns():
    w = jnp.array([[3.0, 0.1], [0.2, 2.9], [1.0, 1.0], [0.0, 0.0]])
    packed = NMArray.fromdense(w, 2, 4, share=2)
    assert packed.share == 2 and packed.code.shape == (1, 1)
    assert packed.index.ravel().tolist() == [0, 1]  # by the sums 3.1, 3.1, 2.0, 0.0
    np.testing.assert_array_equal(packed.todense(), w * jnp.array([[1], [1], [0], [0]]))


def test_numbers():
    packed = NMArray.fromdense(jnp.ones((8, 6), jnp.bfloat16), 2, 4)
    assert packed.nbytes == 4 * 6 * 2 + 2 * 6
    assert packed.density == packed.sparsity == 0.5
    assert packed.dtype == jnp.bfloat16 and packed.astype(jnp.float32).dtype == jnp.float32
    assert (packed.ndim, packed.size, packed.n, packed.m) == (2, 48, 2, 4)
    assert repr(packed) == "NMArray(2:4, shape=(8, 6), dtype=bfloat16)"
    assert repr(jax.tree.map(lambda _: None, packed)) == "NMArray(...)"


@pytest.mark.slow
def test_stacks_jits_vmaps_scans_and_traces_abstractly():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 4)), jnp.float32)
    stack = NMArray.fromdense(w, 2, 4)
    assert stack.shape == (3, 6, 4) and stack.padding == 2
    mapped = jax.vmap(lambda w: NMArray.fromdense(w, 2, 4))(w)
    jitted = jax.jit(lambda w: NMArray.fromdense(w, 2, 4))(w)
    for other in (mapped, jitted):
        np.testing.assert_array_equal(other.todense(), stack.todense())
    shapes = jax.lax.scan(lambda c, layer: (c, layer.todense()), 0, stack)[1]
    np.testing.assert_array_equal(shapes, stack.todense())
    abstract = jax.eval_shape(lambda w: NMArray.fromdense(w, 2, 4), w)
    assert abstract.shape == (3, 6, 4) and abstract.nbytes == stack.nbytes
    assert jax.tree.structure(abstract) == jax.tree.structure(stack)


def test_names_of_leaves_are_stable():
    paths = jax.tree.leaves_with_path(NMArray.fromdense(jnp.ones((4, 1)), 2, 4))
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [".values", ".code"]


def test_gradient_through_todense():
    packed = NMArray.fromdense(jnp.arange(8.0).reshape(4, 2), 2, 4)
    grad = jax.grad(lambda w: (w.todense() ** 2).sum(), allow_int=True)(packed)
    np.testing.assert_array_equal(grad.values, 2 * packed.values)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(n=3, m=2), ValueError, "1 <= n <= m"),
        (dict(n=0, m=4), ValueError, "1 <= n <= m"),
        (dict(n=2, m=4, share=4), ValueError, "share=4.*6 columns"),
        (dict(n=2, m=4, mask=jnp.ones((4, 6), bool)), ValueError, "w has shape"),
        (dict(n=2, m=4, mask=jnp.ones((8, 6))), TypeError, "boolean"),
        (dict(n=2, m=4, mask=jnp.ones((8, 6), bool)), ValueError, "keeps 4 entries.*n=2"),
        (dict(n=1, m=8, mask=jnp.eye(8, 6, dtype=bool), share=2), ValueError, "2 columns share"),
    ],
)
def test_mistakes(arguments, error, message):
    with pytest.raises(error, match=message):
        NMArray.fromdense(jnp.ones((8, 6)), **arguments)


def test_not_a_matrix_of_floats():
    with pytest.raises(TypeError, match="astype"):
        NMArray.fromdense(jnp.ones((8, 6), int), 2, 4)
    with pytest.raises(ValueError, match="must be a matrix"):
        NMArray.fromdense(jnp.ones(8), 2, 4)


@pytest.mark.slow
def test_a_mask_that_is_known_is_checked_where_the_matrix_is_traced():
    w = jnp.arange(1.0, 17.0).reshape(8, 2)
    mask = w % 4 < 2
    for known in (mask, np.asarray(mask)):
        packed = jax.jit(lambda w, known=known: NMArray.fromdense(w, 2, 4, mask=known))(w)
        np.testing.assert_array_equal(packed.todense(), jnp.where(mask, w, 0))
        with pytest.raises(ValueError, match="more than n=1"):
            jax.jit(lambda w, known=known: NMArray.fromdense(w, 1, 4, mask=known))(w)
