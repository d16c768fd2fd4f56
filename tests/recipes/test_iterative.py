"""Iterative pruning against a loop in NumPy; rewinding, resuming, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import recipes
from sparsejax._arguments import check_count, check_fraction, check_key, check_resume
from sparsejax.contrib import sara
from tests._problem import DATA, PARAMS, STEPS, TEST, accuracy, loss, same, train

KEY = jax.random.key(7)
NAMES = ("layer_0", "layer_1")


def plan(sparsity=0.8, **options):
    return sj.plan(PARAMS, sj.Unstructured(sparsity), **options)


def schedule_of(start):
    rate = optax.cosine_decay_schedule(0.1, STEPS)
    return lambda t: rate(t + start)


@partial(jax.jit, static_argnames=("start", "stop"))
def stepwise(params, masks, key, start=0, stop=STEPS):
    return recipes.train_masked(
        params, masks, loss, optax.sgd(schedule_of(start)), DATA, steps=stop, key=key, start=start
    )


def oracle(rounds, sparsity, together):
    """Lottery tickets in NumPy: sort magnitudes, keep, rewind to the start."""
    masks = {n: np.ones(PARAMS[n]["kernel"].shape, bool) for n in NAMES}
    as_tree = lambda: {n: {"kernel": jnp.asarray(masks[n]), "bias": None} for n in NAMES}  # noqa: E731
    trained = train(PARAMS, as_tree(), jax.random.fold_in(KEY, 0))
    for r in range(1, rounds + 1):
        groups = [NAMES] if together else [(n,) for n in NAMES]
        for group in groups:
            w = np.concatenate(
                [np.abs(np.where(masks[n], trained[n]["kernel"], 0)).ravel() for n in group]
            )
            size = w.size
            met = round(size * sparsity) / size  # what the plan meets, whole entries
            kept = size - round(size * (1 - (1 - met) ** (r / rounds)))
            flat = np.zeros(size, bool)
            flat[np.argsort(-w, kind="stable")[:kept]] = True
            for n in group:
                masks[n], flat = (
                    flat[: masks[n].size].reshape(masks[n].shape),
                    flat[masks[n].size :],
                )
        start = {
            n: {
                "kernel": jnp.where(masks[n], PARAMS[n]["kernel"], 0),
                "bias": PARAMS[n]["bias"],
            }
            for n in NAMES
        }
        trained = train(start, as_tree(), jax.random.fold_in(KEY, r))
    return trained, as_tree()


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_lottery_tickets_are_those_of_a_plain_loop(together):
    chosen = plan(allocate=sj.masks.joint if together else None)
    found = recipes.iterative_prune(PARAMS, train, chosen, key=KEY, rounds=4)
    params, masks = oracle(4, 0.8, together)
    for name in NAMES:
        np.testing.assert_array_equal(found.masks[name]["kernel"], masks[name]["kernel"])
        np.testing.assert_allclose(
            found.params[name]["kernel"], params[name]["kernel"], rtol=1e-5, atol=1e-6
        )
        assert found.masks[name]["bias"] is None
    assert same(recipes.ticket(found), sj.masks.apply_masks(PARAMS, masks))
    met = found.masks
    zeros = sum(int((~met[name]["kernel"]).sum()) for name in NAMES)
    assert zeros == sum(leaf.zeros for leaf in chosen.leaves)


@pytest.mark.slow
def test_masks_are_nested_and_zeros_exact():
    seen = []
    recipes.iterative_prune(
        PARAMS, train, plan(0.95), key=KEY, rounds=3, rewind="none", callback=seen.append,
        evaluate=lambda p: accuracy(p, TEST),
    )  # fmt: skip
    assert len(seen) == 4 and all(0 <= score <= 1 for score in seen[-1].extra["score"])
    for before, after in zip(seen, seen[1:]):
        for name in NAMES:
            assert not jnp.any(after.masks[name]["kernel"] & ~before.masks[name]["kernel"])
            off = ~after.masks[name]["kernel"]
            assert jnp.all(jnp.where(off, after.params[name]["kernel"], 0) == 0)


def test_leaves_of_different_sparsity_are_each_geometric():
    rules = {"layer_0": sj.Unstructured(0.75), "layer_1": sj.NM(1, 4)}
    chosen = sj.plan({n: {"kernel": PARAMS[n]["kernel"]} for n in NAMES}, rules)
    masks = recipes.prune_remaining(
        chosen, sj.masks.magnitude(PARAMS), chosen.full_masks(PARAMS), 0.5
    )
    assert int(masks["layer_0"]["kernel"].sum()) == 64
    assert int(masks["layer_1"]["kernel"].sum()) == 32


@pytest.mark.slow
def test_rewinding_to_a_step():
    found = recipes.iterative_prune(PARAMS, stepwise, plan(), key=KEY, rounds=1, rewind_step=5)
    full = plan().full_masks(PARAMS)
    early = stepwise(PARAMS, full, jax.random.fold_in(KEY, 0), stop=5)
    assert same(found.extra["origin"], early)
    again = stepwise(recipes.ticket(found), found.masks, jax.random.fold_in(KEY, 1), start=5)
    assert same(found.params, again)


def test_rewinding_the_learning_rate_keeps_the_weights():
    found = recipes.iterative_prune(
        PARAMS, stepwise, plan(), key=KEY, rounds=1, rewind="learning_rate", rewind_step=5
    )
    dense = stepwise(PARAMS, plan().full_masks(PARAMS), jax.random.fold_in(KEY, 0))
    start = sj.masks.apply_masks(dense, found.masks)
    assert found.extra["origin"] is None
    assert same(found.params, stepwise(start, found.masks, jax.random.fold_in(KEY, 1), start=5))


def test_a_run_that_was_killed_resumes_to_the_same_result():
    class Killed(Exception):
        pass

    seen = []

    def die_after_two(result):
        seen.append(result)
        if result.step == 2:
            raise Killed

    run = partial(recipes.iterative_prune, PARAMS, train, plan(), key=KEY, rounds=4)
    with pytest.raises(Killed):
        run(callback=die_after_two)
    assert same(run(resume=seen[-1]), run())


def test_a_trained_network_is_not_trained_first():
    calls = []

    def counted(params, masks, key):
        calls.append(masks)
        return train(params, masks, key)

    found = recipes.iterative_prune(
        PARAMS, counted, plan(), key=KEY, rounds=2, rewind="none", trained=True
    )
    assert len(calls) == 2 and len(found.extra["sparsity"]) == 3


@pytest.mark.slow
def test_training_under_masks_is_that_of_a_plain_loop():
    masks = plan().masks(sj.masks.magnitude(PARAMS))
    found = train(PARAMS, masks, KEY)
    params = sj.masks.apply_masks(PARAMS, masks)
    trace = jax.tree.map(jnp.zeros_like, params)
    epochs = [jax.random.permutation(jax.random.fold_in(KEY, e), 128) for e in range(5)]
    rows = jnp.concatenate(epochs).reshape(-1, 32)
    for row in rows[:STEPS]:
        grads = jax.grad(loss)(params, jax.tree.map(lambda x, r=row: x[r], DATA))
        trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, grads)
        params = jax.tree.map(lambda p, t: p - 0.1 * t, params, trace)
        params = sj.masks.apply_masks(params, masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, params)


def test_training_goes_on_where_it_stopped():
    masks = plan().full_masks(PARAMS)
    run = partial(
        recipes.train_masked, masks=masks, loss=loss, optimizer=optax.sgd(0.1), data=DATA, key=KEY
    )
    halfway = run(PARAMS, steps=7)
    assert same(run(halfway, steps=15, start=7), run(PARAMS, steps=15))


def test_what_is_refused():
    run = partial(recipes.iterative_prune, PARAMS, plan=plan(), key=KEY, rounds=1)
    with pytest.raises(TypeError, match=r"called as train\(params, masks, key\)"):
        run(lambda params: params)
    with pytest.raises(TypeError, match=r"train\(params, masks, key, start=...\)"):
        run(lambda params, masks, key: params, rewind_step=3)
    with pytest.raises(TypeError, match="it returned None"):
        run(lambda params, masks, key: None)
    with pytest.raises(ValueError, match="keep_masked"):
        run(lambda params, masks, key: PARAMS)
    with pytest.raises(TypeError, match="must return one number"):
        run(train, evaluate=lambda p: p)
    with pytest.raises(ValueError, match="rounds=0"):
        recipes.iterative_prune(PARAMS, train, plan(), key=KEY, rounds=0)
    with pytest.raises(ValueError, match="data is empty"):
        recipes.train_masked(
            PARAMS, None, loss, optax.sgd(0.1), {"x": jnp.ones((0, 8))}, steps=1, key=KEY
        )
    with pytest.raises(ValueError, match="number of rows"):
        bad = {"x": jnp.ones((3, 8)), "y": jnp.ones(2)}
        recipes.train_masked(PARAMS, None, loss, optax.sgd(0.1), bad, steps=1, key=KEY)


@pytest.mark.parametrize("pool_by", ["mean", "max", "l2", "sum"])
def test_pruned_blocks_never_return(pool_by):
    params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
    plan = sj.plan(params, sj.Block((2, 2), 0.75, pool_by=pool_by))
    first = recipes.prune_remaining(plan, params, plan.full_masks(params), 0.5)
    second = recipes.prune_remaining(plan, params, first, 1.0)
    expected = np.zeros((4, 4), bool)
    expected[2:, 2:] = True  # the largest of all
    np.testing.assert_array_equal(second["kernel"], expected)
    assert not bool(jnp.any(second["kernel"] & ~first["kernel"]))


@pytest.mark.parametrize("start", [-2, 9])
def test_a_start_outside_of_the_training_is_refused(start):
    with pytest.raises(ValueError, match=f"start={start}"):
        recipes.train_masked(
            PARAMS, None, loss, optax.sgd(0.1), DATA, steps=8, key=KEY, start=start
        )


class Normed(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.linear(x))


def test_statistics_are_not_trained_and_the_call_that_is_named_works():
    model = Normed()
    cross = optax.softmax_cross_entropy_with_integer_labels

    def train_one(params, loss):
        return recipes.train_masked(params, None, loss, optax.sgd(0.1), DATA, steps=2, key=KEY)

    with pytest.raises(TypeError, match=r"norm/mean, a BatchStat.*nnx.split\(model, nnx.Param"):
        train_one(model, lambda m, batch: cross(m(batch["x"]), batch["y"]).mean())
    graphdef, params, rest = nnx.as_pure(nnx.split(model, nnx.Param, ...))

    def merged(params, batch):
        return cross(nnx.merge(graphdef, params, rest)(batch["x"]), batch["y"]).mean()

    found = train_one(params, merged)
    assert not jnp.array_equal(found["linear"]["kernel"], params["linear"]["kernel"])
    for run in (
        lambda: recipes.iterative_prune(model, train, plan(), key=KEY),
        lambda: recipes.sparse_model_soup(model, train, plan(), key=KEY),
        lambda: recipes.sparsity_sweep(model, lambda params: 0.0),
        lambda: sara.sara(model, lambda params, key: jnp.zeros(()), key=KEY),
    ):
        with pytest.raises(TypeError, match="BatchStat"):
            run()


def test_a_module_of_parameters_alone_is_trained():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

    def loss(m, batch):
        return optax.softmax_cross_entropy_with_integer_labels(m(batch["x"]), batch["y"]).mean()

    found = recipes.train_masked(model, None, loss, optax.sgd(0.1), DATA, steps=2, key=KEY)
    assert not jnp.array_equal(found.kernel[...], model.kernel[...])


def test_training_that_diverges_is_refused_after_the_rounds_before_it():
    seen = []

    def diverges(params, masks, key):
        bad = jnp.nan if len(seen) == 1 else 0.0
        return sj.masks.apply_masks(jax.tree.map(lambda x: x + bad, params), masks)

    with pytest.raises(ValueError, match=r"layer_0/.* not finite.*passed to callback"):
        recipes.iterative_prune(PARAMS, diverges, plan(), key=KEY, rounds=2, callback=seen.append)
    assert len(seen) == 1


@pytest.mark.parametrize("together", [True, False])
def test_only_the_same_run_is_resumed(together):
    options = {"allocate": sj.masks.joint} if together else {}
    keep = lambda params, masks, key: sj.masks.apply_masks(params, masks)  # noqa: E731
    run = partial(recipes.iterative_prune, PARAMS, keep, key=KEY)
    done = run(plan(**options), rounds=2)
    assert same(run(plan(**options), rounds=2, resume=done), done)
    with pytest.raises(ValueError, match=r"began with plan=.*0\.8.* continue with plan=.*0\.5"):
        run(plan(0.5, **options), rounds=2, resume=done)
    for rounds in (1, 3):
        with pytest.raises(ValueError, match=f"rounds=2 and cannot continue with rounds={rounds}"):
            run(plan(**options), rounds=rounds, resume=done)
    with pytest.raises(ValueError, match="began with rewind='weights'.*rewind='none'"):
        run(plan(**options), rounds=2, rewind="none", resume=done)
    with pytest.raises(ValueError, match="began with key=.*cannot continue with key="):
        run(plan(**options), rounds=2, key=jax.random.key(9), resume=done)
    with pytest.raises(ValueError, match="began with plan=.*layer_1/kernel"):
        only = sj.plan(PARAMS, {"layer_0/kernel": sj.Unstructured(0.8)})
        run(only, rounds=2, resume=done)
    with pytest.raises(ValueError, match="layer_0/bias has shape"):
        wide = jax.tree.map(lambda x: x[:2], PARAMS)
        recipes.iterative_prune(wide, keep, plan(**options), key=KEY, rounds=2, resume=done)
    with pytest.raises(ValueError, match="ticket: progress must come from"):
        recipes.ticket(recipes.Progress(PARAMS, done.masks, 2, {}))
    with pytest.raises(ValueError, match="after 1 of 2 steps.*belong to different runs"):
        run(plan(**options), rounds=2, resume=done._replace(step=1))


def test_plans_are_compared_by_value():
    """Printed arrays of labels are abridged: two of them may look alike."""
    params = {"kernel": jax.random.normal(KEY, (50, 40))}
    labels = np.arange(2000).reshape(50, 40) % 7
    other = labels.copy()
    other[25, [20, 21]] = other[25, [21, 20]]
    keep = lambda params, masks, key: sj.masks.apply_masks(params, masks)  # noqa: E731
    plan_of = lambda labels: sj.plan(params, sj.Groups(labels, 0.5))  # noqa: E731
    run = partial(recipes.iterative_prune, params, keep, key=KEY, rounds=1)
    done = run(plan_of(labels))
    assert same(run(plan_of(labels.copy()), resume=done), done)
    with pytest.raises(ValueError, match="began with plan="):
        run(plan_of(other), resume=done)


def test_counts_fractions_keys_and_results_of_another_type():
    with pytest.raises(TypeError, match=r"rounds='5' must be an integer.*rounds=1"):
        check_count("rounds", "5")
    with pytest.raises(TypeError, match="fraction='5%' must be a number"):
        check_fraction("fraction", "5%")
    with pytest.raises(ValueError, match=r"fraction=1.5 .* \[0, 1\]"):
        check_fraction("fraction", 1.5)
    with pytest.raises(TypeError, match="resume='run.npz' is a str and must be the Progress"):
        check_resume("resume", "run.npz", recipes.Progress)
    for key in (0, jnp.zeros(2), jax.random.split(KEY)):
        with pytest.raises(TypeError, match=r"key must come from jax.random.key\(0\)"):
            check_key("key", key)
    check_key("key", jax.random.PRNGKey(0))
    jax.jit(jax.vmap(lambda key: check_key("key", key)))(jax.random.split(KEY))


@pytest.mark.parametrize("allocate", [None, sj.masks.joint])
@pytest.mark.parametrize("broken", [False, True])
def test_pruning_never_revives_entries(allocate, broken):
    """Masks sparser than the plan stay; a NaN within them outranks what is pruned."""
    scores = {"kernel": jnp.arange(16.0).reshape(4, 4)}
    masks = {"kernel": jnp.zeros((4, 4), bool).at[0, 1:].set(True)}
    if broken:
        scores["kernel"] = scores["kernel"].at[0, 2].set(jnp.nan)
    plan = sj.plan(scores, sj.Unstructured(0.7), allocate=allocate)
    assert plan["kernel"].kept == 5
    assert same(recipes.prune_remaining(plan, scores, masks, 1.0), masks)
    fewer = recipes.prune_remaining(sj.plan(scores, sj.Unstructured(0.9)), scores, masks, 1.0)
    assert np.flatnonzero(fewer["kernel"]).tolist() == ([1, 3] if broken else [2, 3])
