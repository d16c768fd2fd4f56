"""What the transformations refuse when they are made, with the call that works."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj

PARAMS = {"l1": {"kernel": jnp.ones((8, 8))}}
MASK = jnp.eye(8, dtype=bool)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.5))
# As without the type checks of the tests.
rigl, sparse_evolution, top_kast, acdc, subset, prune, track_masks, shrink, beta, stages = (
    getattr(sj.optim, name).__wrapped__
    for name in "rigl sparse_evolution top_kast acdc subset prune track_masks iterative_shrinkage "
    "mask_decay_schedule stage_schedule".split()
)
KEY = jax.random.key(0)
UNKNOWN = {"l1": {"kernel": MASK}, "L3": {"kernel": MASK}}

STEPS = {
    "rigl end": lambda x: rigl(optax.sgd(0.1), PLAN, key=KEY, end=x),
    "rigl every": lambda x: rigl(optax.sgd(0.1), PLAN, key=KEY, end=9, every=x),
    "sparse_evolution end": lambda x: sparse_evolution(optax.sgd(0.1), PLAN, key=KEY, end=x),
    "top_kast every": lambda x: top_kast(optax.sgd(0.1), PLAN, PLAN, every=x),
    "iterative_shrinkage every": lambda x: shrink(PLAN, every=x),
    "iterative_shrinkage prune_steps": lambda x: shrink(PLAN, prune_steps=x),
    "prune every": lambda x: prune(PLAN, every=x),
    "prune begin": lambda x: prune(PLAN, begin=x),
    "prune end": lambda x: prune(PLAN, end=x),
    "mask_decay_schedule end": lambda x: beta("linear", 0.1, end=x),
    "stage_schedule total": lambda x: stages(2, x),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_whole(name):
    what, argument = name.split()
    message = rf"{what}: {argument}=0.75 is a step, not a fraction: {argument}=int\(0.75 \* steps\)"
    with pytest.raises(ValueError, match=message):
        STEPS[name](0.75)
    with pytest.raises(ValueError, match="is a step, not a fraction"):
        STEPS[name](jnp.float32(0.75))
    with pytest.raises(TypeError, match=f"{argument}='10' is a str; a step is a whole number"):
        STEPS[name]("10")
    STEPS[name](100)
    STEPS[name](100.0)
    STEPS[name](jnp.asarray(100))


def test_schedules_are_numbers_or_functions():
    for make in (
        lambda x: prune(PLAN, x),
        lambda x: track_masks(PLAN, x),
        lambda x: track_masks(PLAN, pruned_scale=x),
        lambda x: shrink(PLAN, x),
    ):
        with pytest.raises(TypeError, match="='0.5' is a str; pass a number or an optax schedule"):
            make("0.5")
        make(0.5)


def test_optimizers_are_made():
    for what, wrap in {
        "rigl": lambda o: rigl(o, PLAN, key=KEY, end=9),
        "sparse_evolution": lambda o: sparse_evolution(o, PLAN, key=KEY, end=9),
        "top_kast": lambda o: top_kast(o, PLAN, PLAN),
        "acdc": lambda o: acdc(o, PLAN, [(1, 2)]),
        "subset": lambda o: subset(o, {"l1": {"kernel": MASK}}),
    }.items():
        with pytest.raises(TypeError, match=rf"call it, {what}\(optax.adamw\(1e-3\), ...\)"):
            wrap(optax.adamw)
        with pytest.raises(TypeError, match=f"{what} wraps an optimizer .* got a float"):
            wrap(0.1)


def test_a_mask_without_its_parameter():
    for tx in (sj.optim.keep_masked(UNKNOWN), sj.optim.subset(optax.sgd(0.1), UNKNOWN)):
        with pytest.raises(ValueError, match="mask for L3/kernel but no such parameter; .* l1/ker"):
            tx.init(PARAMS)
        part = {"l1": PARAMS["l1"], "L3": optax.MaskedNode()}  # as optax.masked hands it over
        assert bool((sj.get_masks(tx.init(part))["l1"]["kernel"] == MASK).all())


def test_compact_subset_refuses_factored_states():
    masks = {"l1": {"kernel": MASK}}
    for optimizer in (optax.adafactor(0.1), optax.adafactor(0.1, min_dim_size_to_factor=4)):
        with pytest.raises(ValueError, match=r"omit compact=True"):
            sj.optim.subset(optimizer, masks, compact=True).init(PARAMS)
        sj.optim.subset(optimizer, masks).init(PARAMS)
    for optimizer in (optax.adamw(0.1), optax.sgd(0.1, 0.9), optax.lion(0.1), optax.adagrad(0.1)):
        sj.optim.subset(optimizer, masks, compact=True).init(PARAMS)


def test_masks_of_a_subset_are_read_unless_others_are_there():
    masks = {"l1": {"kernel": MASK}}
    for compact in (False, True):
        tx = sj.optim.subset(optax.adam(0.1), masks, compact=compact)
        _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        assert bool((sj.get_masks(state)["l1"]["kernel"] == MASK).all())
    kept = sj.optim.keep_masked({"l1": {"kernel": ~MASK}})
    tx = optax.chain(kept, sj.optim.subset(optax.adam(0.1), masks))
    assert bool((sj.get_masks(tx.init(PARAMS))["l1"]["kernel"] == ~MASK).all())


MEMBERS = {
    "acdc": lambda: sj.optim.acdc(optax.sgd(0.1), PLAN, [(1, 2)]),
    "add_penalty": lambda: sj.optim.add_penalty(sj.prox.l1(0.1)),
    "iterative_shrinkage": lambda: sj.optim.iterative_shrinkage(PLAN, prune_steps=2),
    "keep_masked": lambda: sj.optim.keep_masked(PLAN.masks(PARAMS)),
    "movement": lambda: sj.optim.movement(PLAN, 0.1),
    "proximal": lambda: sj.optim.proximal(sj.prox.l1(0.1), 0.1),
    "proximal_adam": lambda: sj.optim.proximal_adam(0.1, sj.prox.l1(0.1)),
    "prune": lambda: sj.optim.prune(PLAN),
    "rigl": lambda: sj.optim.rigl(optax.sgd(0.1), PLAN, key=KEY, end=9),
    "sparse_evolution": lambda: sj.optim.sparse_evolution(optax.sgd(0.1), PLAN, key=KEY, end=9),
    "sr_ste": lambda: sj.optim.sr_ste(PLAN, 1e-3),
    "top_kast": lambda: sj.optim.top_kast(optax.sgd(0.1), PLAN, PLAN),
    "track_masks": lambda: sj.optim.track_masks(PLAN),
    "unit_norm": lambda: sj.optim.unit_norm(optax.sgd(0.1), "kernel"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_of_another_shape_are_named(name):
    tx = MEMBERS[name]()
    state = tx.init(PARAMS)
    message = r"gradient of l1/kernel has shape \(4, 8\) and .*\(8, 8\)"
    with pytest.raises(ValueError, match=message):
        tx.update({"l1": {"kernel": jnp.ones((4, 8))}}, state, PARAMS)
    if name not in ("keep_masked", "prune"):  # which move what the masks drop
        assert tx.update({"l1": {"kernel": None}}, state, PARAMS)[0]["l1"]["kernel"] is None


@pytest.mark.parametrize("other", [1.5, jnp.ones(2, int), jnp.ones(2, bool)], ids=str)
@pytest.mark.parametrize("name", ["rigl", "sparse_evolution", "proximal_adam", "prune"])
def test_leaves_that_are_not_pruned_may_be_of_any_kind(name, other):
    params = PARAMS | {"other": other}
    tx = MEMBERS[name]()
    grads, state = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p)), params), tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
    assert jnp.isfinite(updates["l1"]["kernel"]).all()


def test_rules_that_are_no_expressions_are_named():
    for call in (
        lambda: sj.plan(PARAMS, {"(": sj.NM(2, 4)}),
        lambda: sj.plan(PARAMS, sj.NM(2, 4), layout={"(": "out_in"}),
        lambda: sj.optim.proximal({"(": sj.prox.l1(0.1)}, 0.1).init(PARAMS),
        lambda: sj.optim.unit_norm(optax.sgd(0.1), "("),
        lambda: sj.nn.record(lambda x: x, "(", jnp.ones(3)),
        lambda: sj.nn.replace(lambda x: x, {"(": lambda path, call, x: x}),
    ):
        with pytest.raises(ValueError, match=r"'\(' is not a regular expression: missing \)"):
            call()
