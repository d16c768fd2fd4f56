"""Selection without sorting, against sorting."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sparsejax._counts import floor_of, fraction_of, kept_at, kept_in_slice
from sparsejax._topk import group_mask, nm_mask, topk_mask, topk_masks

SHAPES = [(1,), (7,), (33, 5), (4, 64), (3, 256), (2, 3, 32)]
_topk = jax.jit(topk_mask)


def sorted_topk(scores, k):
    """Descending, stable, NaN last, -0 equal to +0: what the bisection must reproduce."""
    flat = np.asarray(scores, np.float64).ravel()
    key = np.where(np.isnan(flat), np.inf, -(flat + 0.0))
    order = np.lexsort((np.arange(flat.size), np.isnan(flat), key))
    mask = np.zeros(flat.size, bool)
    mask[order[: min(max(k, 0), flat.size)]] = True
    return mask.reshape(np.shape(scores))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("kind", ["normal", "ties", "signed zeros", "nan and inf"])
def test_topk_equals_sorting(dtype, kind):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        x = rng.normal(size=shape)
        if kind == "ties":
            x = np.round(x)
        if kind == "signed zeros":
            x = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
        if kind == "nan and inf":
            x = rng.choice([np.nan, np.inf, -np.inf, 1.0, -1e-45, 2.0], size=shape)
        x = x.astype(dtype)
        for k in {-3, 0, 1, 2, x.size // 2, x.size - 1, x.size, x.size + 5}:
            mask = np.asarray(_topk(jnp.asarray(x), jnp.int32(k)))
            np.testing.assert_array_equal(mask, sorted_topk(x, k), err_msg=f"{shape} {k}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 3.5, np.nan]), min_size=33, max_size=33),
    st.integers(0, 33),
)
def test_topk_of_few_values(values, k):
    x = np.asarray(values, np.float32)
    np.testing.assert_array_equal(_topk(jnp.asarray(x), jnp.int32(k)), sorted_topk(x, k))


def test_topk_in_float64():
    with jax.enable_x64(True):
        x = 1 + np.arange(40)[::-1] * 1e-15
        np.testing.assert_array_equal(topk_mask(jnp.asarray(x), 11), sorted_topk(x, 11))


def test_topk_with_static_k_and_nothing_to_select():
    x = jnp.arange(5.0)
    np.testing.assert_array_equal(topk_mask(x, 2), [False, False, False, True, True])
    assert topk_mask(jnp.zeros((0, 3)), 2).shape == (0, 3)


def test_topk_over_several_arrays_is_one_selection():
    rng = np.random.default_rng(1)
    parts = [np.round(rng.normal(size=s), 1).astype(np.float32) for s in [(4, 32), (5,), (3, 3)]]
    whole = np.concatenate([p.ravel() for p in parts])
    for k in (0, 1, 40, 100, 142):
        masks = topk_masks([jnp.asarray(p) for p in parts], k)
        joined = np.concatenate([np.asarray(m).ravel() for m in masks])
        np.testing.assert_array_equal(joined, sorted_topk(whole, k))


def test_topk_under_vmap_with_k_per_row():
    x = np.random.default_rng(2).normal(size=(6, 32)).astype(np.float32)
    k = np.arange(6) * 5
    masks = jax.vmap(topk_mask)(jnp.asarray(x), jnp.asarray(k))
    for row, mask, kept in zip(x, masks, k):
        np.testing.assert_array_equal(mask, sorted_topk(row, int(kept)))


@pytest.mark.parametrize("m", [2, 3, 4, 8, 16, 32])
def test_nm_equals_sorting_each_group(m):
    rng = np.random.default_rng(m)
    x = rng.integers(0, 4, size=(2, 3 * m, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    groups = x.reshape(2, 3, m, 5)
    key = np.where(np.isnan(groups), np.inf, -groups)
    ranks = np.argsort(np.argsort(key, axis=2, kind="stable"), axis=2, kind="stable")
    select = jax.jit(nm_mask, static_argnums=2)
    for n in range(m + 1):
        mask = np.asarray(select(jnp.asarray(x), jnp.int32(n), m))
        np.testing.assert_array_equal(mask.reshape(groups.shape), ranks < n)


def test_nm_keeps_the_lowest_index_of_equals():
    mask = nm_mask(jnp.ones((8, 1)), 2, 4)
    assert mask.ravel().tolist() == [True, True, False, False] * 2


TOTALS = [1, 2, 3, 10, 1_000_003, 40_000_000, 2**31, 2**31 + 7, 2**32 - 1]
_fraction = jax.jit(fraction_of, static_argnums=1)


@pytest.mark.parametrize("total", TOTALS)
def test_fraction_is_the_exact_rounded_product(total):
    rng = np.random.default_rng(0)
    special = [0.0, 1.0, 0.5, 0.25, 0.9, 0.1, 1e-9, 1e-20, 1e-42, 2.0**-24, 1 - 2.0**-24]
    for c in np.concatenate([rng.random(40), special]).astype(np.float32):
        exact = round(Fraction(float(c)) * total)
        assert int(_fraction(jnp.float32(c), total)) == exact
        assert fraction_of(float(c), total) == round(float(c) * total)


def test_fraction_is_clipped():
    assert int(_fraction(jnp.float32(1.5), 10)) == 10 and int(_fraction(jnp.float32(-1), 10)) == 0
    assert fraction_of(1.5, 10) == 10


def test_shapes_of_two_to_the_31_entries():
    big = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
    assert jax.eval_shape(lambda x: topk_mask(x, 2**31 - 5), big).shape == big.shape
    traced = jax.eval_shape(
        lambda x, c: topk_mask(x, kept_at(c, 2**31, 2**31 - 7)),
        big,
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    assert traced.shape == big.shape
    too_big = [jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)]
    with pytest.raises(ValueError, match="jax_enable_x64"):
        jax.eval_shape(lambda x: topk_masks(x, 5), too_big)


def test_sharded_selection_gathers_no_scores():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x", None)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    x = jax.device_put(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32), sharding)
    compiled = jax.jit(topk_mask, static_argnums=1).lower(x, 100).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
    mask = compiled(x)
    assert mask.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(mask, sorted_topk(x, 100))


SLICES = [(1, 7, 5), (3, 10, 22), (80, 234_881_024, 80 * 211_392_922), (2_293_760, 8192, 2**34 - 3)]
_kept = jax.jit(kept_in_slice, static_argnums=(1, 2, 3))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("slices, units, zeros", SLICES)
def test_counts_of_slices_are_exact_beyond_32_bits(slices, units, zeros, x64):
    """All slices together keep `units - round(c * zeros)`, the first ones one more."""
    index = np.unique(np.r_[0, slices // 3, slices // 2, slices - 1]).astype(np.uint32)
    with jax.enable_x64(x64):
        for c in [0.0, 1.0, 0.5, 0.25, 0.9, 1e-9, *np.random.default_rng(0).random(8)]:
            literal = float(np.float32(c))
            given = {
                float(c): (round(c * zeros), float(c)),
                "float32": (round(Fraction(literal) * zeros), jnp.float32(c)),
            }
            if x64:
                given["float64"] = (round(c * zeros), jnp.float64(c))
            for gone, fraction in given.values():
                each, rest = divmod(slices * units - gone, slices)
                select = kept_in_slice if isinstance(fraction, float) else _kept
                found = np.asarray(select(fraction, units, zeros, slices, jnp.asarray(index)))
                np.testing.assert_array_equal(found, each + (index < rest))


@pytest.mark.parametrize("x64", [False, True])
def test_the_largest_slices_of_a_model(x64):
    """`topk` of a stacked leaf of more than 2**32 entries asks for the exact count of a slice."""
    units, zeros = 8192 * 28672, 80 * 211_392_922
    with jax.enable_x64(x64):
        for c, each in ((0.0, 234_881_024), (0.5, 129_184_563), (1.0, 23_488_102)):
            for fraction in (c, jnp.asarray(c), jnp.float32(c)):
                ends = jnp.asarray([0, 79], jnp.uint32)
                found = kept_in_slice(fraction, units, zeros, 80, ends)
                assert found.tolist() == [each, each]


@pytest.mark.parametrize("count", [0, 1, 10, 1_234_567, 16_777_217, 2**32 - 1])
def test_floor_of_is_exact(count):
    for f in [0.0, 1.0, 0.7, 0.3, 1e-30, *np.random.default_rng(0).random(20)]:
        exact = int(Fraction(f) * count * (1 + Fraction(1, 2**51)))
        assert int(floor_of(f, jnp.uint32(count))) == exact
        single = np.float32(f)
        literal = Fraction(float(single)) * (1 + (Fraction(1, 2**21) if count < 4096 else 0))
        assert int(floor_of(jnp.float32(single), jnp.uint32(count))) == min(
            int(literal * count), count
        )


def test_slices_are_selected_in_place():
    """Along any axes and in any order of them, against one selection a slice."""
    x = np.random.default_rng(3).integers(0, 9, (3, 4, 5)).astype(np.float32)
    for axes in ((0, 1, 2), (1, 2), (2, 1), (0,), (2, 0)):
        others = [axis for axis in range(3) if axis not in axes]
        mask = np.asarray(topk_mask(jnp.asarray(x), 3, axes)).transpose(*others, *axes)
        moved = x.transpose(*others, *axes).reshape(-1, np.prod([x.shape[a] for a in axes]))
        for row, kept in zip(moved, mask.reshape(moved.shape)):
            np.testing.assert_array_equal(kept, sorted_topk(row, 3))


@pytest.mark.parametrize("m", [4, 8, 16, 40])
def test_groups_along_any_axis_are_ranked_alike(m):
    rng = np.random.default_rng(m)
    x = rng.choice([np.nan, np.inf, -np.inf, 1.0, -0.0, 0.0, 2.0], size=(6, m)).astype(np.float32)
    expected = np.stack([sorted_topk(row, m // 2) for row in x])
    for n in (m // 2, jnp.int32(m // 2)):
        np.testing.assert_array_equal(group_mask(x, n, (1,)), expected)
        np.testing.assert_array_equal(group_mask(x.T, n, (0,)), expected.T)
        boxes = x.reshape(6, 2, m // 2).transpose(1, 0, 2)
        found = np.asarray(group_mask(boxes, n, (0, 2))).transpose(1, 0, 2)
        np.testing.assert_array_equal(found.reshape(6, m), expected)
