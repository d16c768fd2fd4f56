"""One order gives the masks of the plan; the curve, its turning points, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import recipes
from sparsejax._tree import named_leaves
from tests._problem import PARAMS, TEST, accuracy, same, train

KEY = jax.random.key(3)
GRID = [0.0, 0.3, 0.55, 0.9, 0.999, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_masks_of_one_order_are_those_of_the_plan(together):
    allocate = sj.masks.joint if together else None
    scores = sj.masks.magnitude(PARAMS)
    rough = jax.tree.map(lambda s: jnp.round(2 * s) / 2, scores)  # many ties
    rough["layer_0"]["kernel"] = rough["layer_0"]["kernel"].at[0, :3].set(jnp.nan)
    for values in (scores, rough):
        plan = sj.plan(PARAMS, sj.Unstructured(0.5), allocate=allocate)
        found = recipes.nested_masks(values, plan, GRID)
        for sparsity, masks in zip(GRID, found):
            exact = sj.plan(PARAMS, sj.Unstructured(sparsity), allocate=allocate).masks(values)
            assert same(masks, exact)
        for before, after in zip(found, found[1:]):
            for name in PARAMS:
                assert not jnp.any(after[name]["kernel"] & ~before[name]["kernel"])


STACKED = {"kernel": jnp.concatenate([jnp.ones((1, 4, 4)), 100 * jnp.ones((1, 4, 4))])}
UNEVEN = sj.masks.random(
    {"a": {"kernel": jnp.ones((16, 8))}, "b": {"kernel": jnp.ones((64, 64))}}, key=KEY
)


@pytest.mark.parametrize(
    "scores, rules, options, kept",
    [
        (STACKED, {"kernel": sj.Unstructured(0.5, stacked=1)}, {}, [16]),
        (UNEVEN, sj.Unstructured(0.8), {"allocate": sj.masks.erk}, [128, 717]),
        (UNEVEN, sj.Unstructured(0.8), {"allocate": sj.masks.joint, "min_kept": 99}, None),
        (UNEVEN, sj.Unstructured(0.8), {"min_kept": 99, "rounding": "up"}, [99, 819]),
    ],
)
def test_nested_masks_follow_slices_and_allocations(scores, rules, options, kept):
    plan = sj.plan(scores, rules, **options)
    grid = [0.3, plan.leaves[0].pattern.sparsity, 0.83, 0.85]
    found = recipes.nested_masks(scores, plan, grid)
    assert same(found[1], plan.masks(scores))
    leaves = [jax.tree.leaves(masks) for masks in found]
    assert kept is None or [int(m.sum()) for m in leaves[1]] == kept
    for before, after in zip(leaves, leaves[1:]):
        assert not any(bool((b & ~a).any()) for a, b in zip(before, after))
    assert all(int(m.sum()) >= plan.min_kept for m in leaves[-1])


def test_a_sweep_with_an_allocation_resumes_with_it_only():
    seen, options = [], dict(sparsities=[0.5, 0.8])
    sweep = partial(recipes.sparsity_sweep, UNEVEN, lambda p: 0.0, **options)
    sweep(allocate=sj.masks.erk, callback=seen.append)
    assert {n: int(m.sum()) for n, m in named_leaves(seen[1].masks).items()} == {
        "a/kernel": 128,
        "b/kernel": 717,
    }
    with pytest.raises(ValueError, match="not those of point 1"):
        sweep(resume=seen[0])


def test_the_sweep_scores_each_point_and_resumes():
    seen = []
    options = dict(sparsities=[0.0, 0.5, 0.95], finetune=train, seeds=2, key=KEY)
    evaluate = lambda p: accuracy(p, TEST)  # noqa: E731
    whole = recipes.sparsity_sweep(PARAMS, evaluate, callback=seen.append, **options)
    assert np.shape(whole.extra["scores"]) == (3, 2)
    assert whole.extra["sparsity"] == (0.0, 0.5, 182 / 192)
    plan = sj.plan(PARAMS, sj.Unstructured(0.95), allocate=sj.masks.joint)
    masks = plan.masks(sj.masks.magnitude(PARAMS))
    start = sj.masks.apply_masks(PARAMS, masks)
    last = [float(evaluate(train(start, masks, jax.random.fold_in(KEY, i)))) for i in (0, 1)]
    assert list(whole.extra["scores"][-1]) == last
    assert whole.extra["leaf_sparsity"][-1]["layer_0/kernel"] == pytest.approx(
        1 - float(masks["layer_0"]["kernel"].mean())
    )
    assert same(recipes.sparsity_sweep(PARAMS, evaluate, resume=seen[0], **options), whole)
    with pytest.raises(ValueError, match="began with seeds=2 and cannot continue with seeds=3"):
        recipes.sparsity_sweep(PARAMS, evaluate, resume=seen[0], **options | {"seeds": 3})


def test_patterns_in_place_of_sparsities():
    kept = []
    recipes.sparsity_sweep(
        PARAMS,
        lambda p: kept.append(int((p["layer_0"]["kernel"] != 0).sum())) or 0.0,
        patterns=[sj.NM(3, 4), sj.NM(1, 4)],
        rules={"layer_0/kernel": sj.Unstructured(0.5)},
    )
    assert kept == [96, 32]


def test_what_is_refused():
    with pytest.raises(ValueError, match="key=jax.random.key"):
        recipes.sparsity_sweep(PARAMS, lambda p: 0.0, finetune=train)
    with pytest.raises(ValueError, match="increasing"):
        recipes.sparsity_sweep(PARAMS, lambda p: 0.0, sparsities=[0.5, 0.1])
    with pytest.raises(TypeError, match=r"evaluate\(params\)"):
        recipes.sparsity_sweep(PARAMS, lambda: 0.0)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        recipes.sparsity_sweep(PARAMS, lambda p: 0.0, sparsities=[90.0])
    few, called = {"kernel": jnp.arange(1.0, 5.0).reshape(2, 2)}, []
    sweep = partial(recipes.sparsity_sweep, few, lambda p: called.append(p) or 0.0)
    with pytest.raises(ValueError, match="of the 4 planned entries, but 0.2 and 0.3 both zero 1 "):
        sweep(sparsities=[0.0, 0.2, 0.3, 0.5])
    assert not called
    assert sweep(sparsities=[0.0, 0.2, 0.4, 0.7, 1.0]).extra["sparsity"] == (0, 0.25, 0.5, 0.75, 1)


def test_similarity_of_random_masks_is_their_density():
    a, b = (np.random.default_rng(i).random(200_000) < 0.3 for i in (0, 1))
    assert sj.metrics.mask_similarity(jnp.asarray(a), jnp.asarray(b)) == pytest.approx(
        0.3, abs=0.01
    )
