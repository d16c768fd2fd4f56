"""Soups against NumPy, one copy against iterative pruning, schedules against their formulas."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import recipes
from tests._problem import DATA, PARAMS, STEPS, TEST, accuracy, loss, mlp, same, train

KEY = jax.random.key(3)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.9), allocate=sj.masks.joint)
soup = partial(recipes.sparse_model_soup, PARAMS, plan=PLAN, key=KEY)


def with_decay(params, masks, key, decay):
    tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1, 0.9))
    return recipes.train_masked(params, masks, loss, tx, DATA, steps=STEPS, key=key, batch_size=32)


@pytest.mark.slow
def test_one_copy_is_iterative_pruning_bit_for_bit():
    # The keys differ, so training must not use them here.
    fixed = lambda params, masks, key: train(params, masks, KEY)  # noqa: E731
    one = soup(train=fixed, phases=3, copies=1)
    iterative = recipes.iterative_prune(
        PARAMS, fixed, PLAN, key=KEY, rounds=3, rewind="none", trained=True
    )
    assert same(one.params, iterative.params) and same(one.masks, iterative.masks)


def test_the_soup_is_the_mean_and_as_sparse_as_the_plan():
    found = soup(train=train, phases=2, copies=3, evaluate=lambda p: accuracy(p, TEST))
    for name in PARAMS:
        members = np.stack([np.asarray(c[name]["kernel"]) for c in found.extra["candidates"]])
        np.testing.assert_allclose(found.params[name]["kernel"], members.mean(0), atol=1e-6)
        assert np.abs(members - members[0]).max() > 1e-3
    zeros = sum(int((found.params[n]["kernel"] == 0).sum()) for n in PARAMS)
    assert zeros == sum(leaf.zeros for leaf in PLAN.leaves)
    assert [len(scores) for scores in found.extra["candidate_scores"]] == [3, 3]
    assert found.extra["soup_score"][-1] == accuracy(found.params, TEST)


def test_copies_side_by_side_are_those_one_by_one():
    settings = [0.0, 1e-3, 1e-2]
    loop, many = (
        soup(train=jax.jit(with_decay), phases=1, settings=settings, parallel=how)
        for how in ("loop", "vmap")
    )
    for a, b in zip(jax.tree.leaves(loop.params), jax.tree.leaves(many.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_killed_resumes_to_the_same_result():
    seen = []
    whole = soup(train=train, phases=3, copies=2, callback=seen.append)
    assert len(seen) == 3
    assert same(soup(train=train, phases=3, copies=2, resume=seen[0]), whole)


def test_statistics_are_computed_anew_before_scores_and_at_the_end():
    marked = lambda p: p | {"mark": jnp.ones(())}  # noqa: E731
    params = PARAMS | {"mark": jnp.zeros(())}

    def plain(p, masks, key):
        return sj.masks.apply_masks(p | {"mark": jnp.zeros(())}, masks)

    found = recipes.sparse_model_soup(
        params, plain, PLAN, key=KEY, phases=1, copies=2, recalibrate=marked, soup="greedy",
        evaluate=lambda p: p["mark"],
    )  # fmt: skip
    assert float(found.params["mark"]) == 1 and found.extra["candidate_scores"][0] == (1.0, 1.0)


def test_greedy_is_a_plain_greedy_search():
    rng = np.random.default_rng(0)
    goal = np.ones(3)
    score = lambda p: -np.linalg.norm(np.asarray(p) - goal)  # noqa: E731
    for _ in range(5):
        members = [jnp.asarray(goal + rng.normal(size=3), jnp.float32) for _ in range(5)]
        found, chosen = recipes.greedy_soup(members, score)
        order = sorted(range(5), key=lambda i: -score(members[i]))
        kept = [order[0]]
        for i in order[1:]:
            if score(np.mean([members[j] for j in [*kept, i]], 0)) >= score(
                np.mean([members[j] for j in kept], 0)
            ):
                kept.append(i)
        assert list(chosen) == kept
        np.testing.assert_allclose(found, np.mean([members[j] for j in kept], 0), rtol=1e-5)


def test_greedy_lets_equals_join_and_nan_never():
    members = [jnp.array(1.0), jnp.array(jnp.nan), jnp.array(2.0)]
    _, chosen = recipes.greedy_soup(members, lambda p: jnp.where(jnp.isnan(p), jnp.nan, 5.0))
    assert chosen == (0, 2)


def test_averages_are_summed_in_float32():
    members = [jnp.full(4, x, jnp.bfloat16) for x in (256.0, 1.0, 1.0, 1.0)]
    assert recipes.uniform_soup(members).dtype == jnp.bfloat16
    assert float(recipes.uniform_soup(members)[0]) == float(jnp.bfloat16(259 / 4))
    counters = [{"w": jnp.ones(2), "n": jnp.array(i)} for i in (3, 9)]
    assert int(recipes.uniform_soup(counters, [0.25, 0.75])["n"]) == 3


def test_independent_masks_average_to_less_sparsity():
    trees = []
    for seed in range(3):
        params = mlp(jax.random.key(seed))
        trees.append(sj.masks.apply_masks(params, PLAN.masks(sj.masks.magnitude(params))))
    for mix in (recipes.uniform_soup, lambda trees: recipes.greedy_soup(trees, lambda p: 0.0)):
        with pytest.raises(ValueError, match="different masks.*allow_union=True"):
            mix(trees)
    average = recipes.uniform_soup(trees, allow_union=True)
    union = sum(
        np.logical_or.reduce([np.asarray(t[n]["kernel"]) != 0 for t in trees]).sum() for n in PARAMS
    )
    assert sum(int((average[n]["kernel"] != 0).sum()) for n in PARAMS) == union > 19


def test_geometry_against_numpy():
    trees = [mlp(jax.random.key(s)) for s in range(3)]
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in trees]
    found = recipes.soup_geometry(trees)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(flat, 2)]
    for kind in ("min", "mean", "max"):
        assert found[f"distance_{kind}"] == pytest.approx(getattr(np, kind)(distances), rel=1e-5)
    assert found["angle_min"] < found["angle_mean"] < found["angle_max"] < 180
    centre = np.mean(flat, 0)
    assert found["centre_max"] == pytest.approx(
        max(np.linalg.norm(f - centre) for f in flat), rel=1e-5
    )


def test_schedules_follow_their_formulas():
    h = np.concatenate([np.linspace(0.01, 0.5, 5), np.linspace(0.4, 0.05, 35)])
    of = partial(recipes.retraining_schedule, steps=20, history=h, warmup=5)
    at = lambda kind, t, **more: float(of(kind, **more)(t))  # noqa: E731
    for t in (0, 1, 2, 3, 10, 19):
        assert at("ft", t) == pytest.approx(0.05)
        assert at("lrw", t) == pytest.approx(h[20 + t])
        r = (t - 2) / 18
        up = 0.5 * (1 - np.cos(np.pi * t / 2)) / 2
        assert at("llr", t) == pytest.approx(up if t < 2 else 0.5 * (1 - r), abs=1e-6)
        clr = 0.05 + 0.45 * (1 + np.cos(np.pi * r)) / 2
        assert at("clr", t) == pytest.approx(up if t < 2 else clr, abs=1e-6)
        index = int((t - 2) * 40 / 18)
        slr = 0.5 if index < 5 else h[index]
        assert at("slr", t) == pytest.approx(up if t < 2 else slr, abs=1e-6)
    # Between the bounds, below the lower (a share of 20 / 40 of the largest) and above the upper.
    for drop, peak in ((0.3, 0.5 * 0.3 / 0.5), (0.01, 0.25), (2.0, 0.5)):
        assert at("allr", 2, drop=drop, pruned=0.25) == pytest.approx(max(peak, 0.25))


def test_what_is_refused():
    with pytest.raises(ValueError, match="greedy"):
        soup(train=train, soup="greedy")
    with pytest.raises(ValueError, match=r"one entry per copy \(3\), got 2"):
        soup(train=with_decay, settings=[0.0, 1.0])
    with pytest.raises(TypeError, match=r"train\(params, masks, key, setting\)"):
        soup(train=lambda params, masks, key: params, settings=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="at least one member"):
        recipes.uniform_soup([])
    with pytest.raises(ValueError, match="shape"):
        recipes.uniform_soup([jnp.ones(2), jnp.ones(3)])
    with pytest.raises(ValueError, match="history has only 5"):
        recipes.retraining_schedule("lrw", 10, [0.1] * 5)
    with pytest.raises(ValueError, match="needs drop="):
        recipes.retraining_schedule("allr", 10, [0.1] * 5)


def test_only_the_same_run_is_resumed():
    done = soup(train=train, phases=1, copies=2)
    for changed, message in (
        ({"copies": 3}, "began with copies=2 and cannot continue with copies=3"),
        ({"phases": 2}, "began with phases=1 and cannot continue with phases=2"),
    ):
        with pytest.raises(ValueError, match=message):
            soup(train=train, resume=done, **{"phases": 1, "copies": 2, **changed})
