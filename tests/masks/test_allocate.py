"""Allocations: closed forms, exact totals, invariance."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import sparsejax as sj
from sparsejax._tree import named_leaves

masks = sj.masks


def tree_of(shapes):
    return {
        f"layer_{i}": {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for i, s in enumerate(shapes)
    }


def ordered(sparsities):
    found = named_leaves(sparsities)
    return [found[f"layer_{i}/kernel"] for i in range(len(found))]


def erk_by_bisection(shapes, sparsity, raw):
    """The clipped scale found another way: bisection on epsilon in exact rationals."""
    sizes = [int(np.prod(s)) for s in shapes]
    scores = [raw(s) for s in shapes]
    budget = (1 - Fraction(sparsity).limit_denominator(10**6)) * sum(sizes)
    low, high = Fraction(0), max(1 / s for s in scores)
    for _ in range(200):
        middle = (low + high) / 2
        kept = sum(min(middle * s, 1) * n for s, n in zip(scores, sizes))
        low, high = (middle, high) if kept < budget else (low, middle)
    return [float(1 - min(high * s, 1)) for s in scores]


SHAPES = [
    [(784, 300), (300, 100), (100, 10)],
    [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64), (1, 1, 64, 64), (64, 10)],
    [(64, 64)] * 4,
    [(10, 4), (400, 500)],
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.98, 1.0])
def test_er_and_erk_against_bisection(shapes, sparsity):
    tree = tree_of(shapes)
    whole = lambda s: Fraction(sum(s), int(np.prod(s)))  # noqa: E731
    channels = lambda s: Fraction(s[-1] + s[-2], s[-1] * s[-2])  # noqa: E731
    for allocate, raw in ((masks.erk, whole), (masks.erdos_renyi, channels)):
        found = ordered(allocate(tree, sparsity))
        np.testing.assert_allclose(found, erk_by_bisection(shapes, sparsity, raw), atol=1e-12)
        sizes = [np.prod(s) for s in shapes]
        np.testing.assert_allclose(np.dot(found, sizes), sparsity * sum(sizes), rtol=1e-12)


def test_er_and_erk_agree_on_matrices_and_lenet_is_as_published():
    tree = tree_of(SHAPES[0])
    np.testing.assert_allclose(ordered(masks.erk(tree, 0.9)), [0.9204, 0.7698, 0], atol=5e-5)
    assert masks.erk(tree, 0.9) == masks.erdos_renyi(tree, 0.9)


def test_equal_layers_are_clipped_together():
    found = ordered(masks.erk(tree_of([(8, 8), (8, 8), (800, 800), (8, 8)]), 0.9))
    assert found[0] == found[1] == found[3] == 0.0


def test_fixed_layers_count_in_the_total():
    """ERK+ of the spec: the others share `(d N - d_fixed N_fixed) / (N - N_fixed)`."""
    tree = tree_of(SHAPES[0])
    found = ordered(masks.erk(tree, 0.9, fixed={"layer_2": 0.5}))
    sizes = np.array([np.prod(s) for s in SHAPES[0]])
    assert found[2] == 0.5
    np.testing.assert_allclose(np.dot(found, sizes), 0.9 * sizes.sum(), rtol=1e-12)
    rest = 1 - (0.1 * sizes.sum() - 0.5 * sizes[2]) / sizes[:2].sum()
    alone = ordered(masks.erk(tree_of(SHAPES[0][:2]), rest))
    np.testing.assert_allclose(found[:2], alone)


def test_uniform_plus_meets_the_budget_and_says_when_it_cannot():
    shapes = [(27, 16), (144, 32), (288, 64), (64, 10)]
    sizes = np.array([np.prod(s) for s in shapes])
    for sparsity in (0.3, 0.7, 0.9):
        found = np.array(ordered(masks.uniform_plus(tree_of(shapes), sparsity)))
        np.testing.assert_allclose(found @ sizes, sparsity * sizes.sum(), rtol=1e-12)
        assert (
            found[0] == 0 and found[3] == pytest.approx(min(sparsity, 0.8)) and found[1] == found[2]
        )
    loose = ordered(masks.uniform_plus(tree_of(shapes), 0.9, exact_budget=False))
    assert np.dot(loose, sizes) > 0.9 * sizes.sum()
    with pytest.raises(ValueError, match="cannot reach sparsity 0.99"):
        masks.uniform_plus(tree_of(shapes), 0.99)
    with pytest.raises(ValueError, match="must match one layer"):
        masks.uniform_plus(tree_of(shapes), 0.5, first="layer")


def test_layers_are_ordered_naturally():
    tree = {f"block_{i}": {"kernel": jnp.ones((10, 10))} for i in (2, 10, 1, 11)}
    found = masks.uniform_plus(tree, 0.6)
    assert found["block_1"]["kernel"] == 0.0 and found["block_11"]["kernel"] == 0.6


def test_from_scores_gives_the_ratios_of_a_global_selection():
    rng = np.random.default_rng(0)
    params = {
        f"l{i}": {"kernel": jnp.asarray(rng.normal(size=(16, 8)) * (i + 1), jnp.float32)}
        for i in range(3)
    }
    found = masks.from_scores(masks.magnitude(params))(params, 0.7)
    whole = np.sort(np.abs(np.concatenate([np.ravel(p["kernel"]) for p in params.values()])))
    threshold = whole[::-1][whole.size - round(whole.size * 0.7) - 1]
    for name, leaf in params.items():
        expected = np.mean(np.abs(np.asarray(leaf["kernel"])) < threshold)
        assert found[name]["kernel"] == pytest.approx(expected)
    assert masks.joint(params, 0.7) == found
    with pytest.raises(ValueError, match="no score for l2"):
        masks.from_scores({k: params[k] for k in ("l0", "l1")})(params, 0.7)


def test_only_kernels_are_meant():
    tree = {
        "kernel": jnp.ones((4, 4)),
        "bias": jnp.ones(4),
        "query": {"bias": jnp.ones((2, 4))},
        "norm": {"weight": jnp.ones((3, 4))},
        "embedding": {"weight": jnp.ones((3, 4))},
    }
    found = masks.uniform(tree, 0.5)
    assert found.pop("kernel") == 0.5 and not jax.tree.leaves(found)


@pytest.mark.parametrize(
    "allocate", [masks.uniform, masks.erk, masks.erdos_renyi, masks.uniform_plus, masks.joint]
)
def test_bad_sparsity_and_empty_trees(allocate):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        allocate({"kernel": jnp.ones((4, 4))}, 1.1)
    with pytest.raises(ValueError, match="must have a leaf named kernel or weight"):
        allocate({"bias": jnp.ones(4)}, 0.5)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
    st.sampled_from([masks.uniform, masks.erk, masks.erdos_renyi]),
)
def test_a_plan_meets_the_total_to_the_entry(shapes, sparsity, allocate):
    plan = sj.plan(tree_of(shapes), sj.Unstructured(sparsity), allocate=allocate)
    total = sum(leaf.size for leaf in plan.leaves)
    assert sum(leaf.kept for leaf in plan.leaves) == total - round(total * sparsity)
    given_ = ordered(allocate(tree_of(shapes), sparsity))
    for leaf, s in zip(sorted(plan.leaves, key=lambda x: x.name), given_):
        assert abs(leaf.kept - leaf.size * (1 - s)) <= 1


def test_the_largest_remainder_keeps_one_more_and_ties_go_first():
    tree = tree_of([(1, 5), (1, 5), (1, 5)])
    plan = sj.plan(tree, sj.Unstructured(0.5), allocate=masks.uniform)
    # 2.5 entries each, 15 - round(7.5) = 7 in all: the first leaf gets the spare one.
    assert [plan[f"layer_{i}/kernel"].kept for i in range(3)] == [3, 2, 2]


def test_totals_that_cannot_be_kept_are_errors():
    tree = tree_of(SHAPES[0])
    with pytest.raises(ValueError, match="is not possible with"):
        masks.erk(tree, 0.1, fixed={"layer_0": 1.0})
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        masks.uniform(tree, 0.5, fixed={"layer_0": 1.5})
    with pytest.raises(ValueError, match="must keep the total"):
        sj.plan(tree, sj.Unstructured(0.9), allocate=lambda t, s: dict.fromkeys(t, 0.1))
    balanced = sj.Block((2, 2), 0.5, balanced=True)
    with pytest.raises(ValueError, match="balanced"):
        sj.plan(tree, balanced, allocate=masks.joint)
