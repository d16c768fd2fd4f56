"""Optimizers inside transformations: dtypes that stay, gaps in the gradients, factored states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from tests.conformance.test_transformations import MEMBERS, params_of

KEY = jax.random.key(0)
PARAMS = {"kernel": jax.random.normal(KEY, (16, 8)), "bias": jnp.ones(8)}
PLAN, WIDER = (sj.plan(PARAMS, sj.Unstructured(s)) for s in (0.75, 0.5))
MASKS = PLAN.masks(sj.masks.magnitude(PARAMS))
WRAPPERS = {
    "rigl": lambda o: sj.optim.rigl(o, PLAN, key=KEY, end=9, every=2),
    "sparse_evolution": lambda o: sj.optim.sparse_evolution(o, PLAN, key=KEY, end=9, every=2),
    "acdc": lambda o: sj.optim.acdc(o, PLAN, [(1, 2), (4, 9)]),
    "top_kast": lambda o: sj.optim.top_kast(o, PLAN, WIDER, every=2),
    "subset": lambda o: sj.optim.subset(o, MASKS),
    "compact": lambda o: sj.optim.subset(o, MASKS, compact=True),
}
OPTIMIZERS = {
    "float32 rate": optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(1e-2),
    "adam": optax.adam(1e-2),
    "momentum": optax.sgd(0.1, 0.9),
    "sm3": optax.sm3(0.1),
    "adafactor": optax.adafactor(0.1),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adam(0.1)),
    "extra arguments": optax.chain(optax.polyak_sgd(), optax.trace(0.9)),
}


def describe(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_keeps_its_dtypes(wrapper, optimizer):
    tx = WRAPPERS[wrapper](OPTIMIZERS[optimizer])
    if wrapper == "compact" and optimizer in ("sm3", "adafactor"):
        with pytest.raises(ValueError, match="needs an elementwise optimizer"):
            tx.init(PARAMS)
        return
    extra = {"value": jnp.float32(1)} if optimizer == "extra arguments" else {}
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    for params, grads in ((PARAMS, PARAMS), (low, low), (low, PARAMS)):
        state = tx.init(params)
        updates, new = jax.eval_shape(
            lambda g, s, p: tx.update(g, s, p, **extra), grads, state, params
        )
        assert describe(new) == describe(state)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_moments_of_bfloat16_settle_in_the_dtype_of_the_rate():
    """As in optax, where they take it at the first step."""
    low = {"kernel": PARAMS["kernel"].astype(jnp.bfloat16)}
    plain = OPTIMIZERS["float32 rate"]
    wanted = plain.update(low, plain.init(low), low)[1].inner_state[0]
    found = WRAPPERS["acdc"](plain).init(low).inner.inner_state[0]
    assert describe(found) == describe(wanted) and found.mu["kernel"].dtype == jnp.float32


def test_sm3_resets_what_has_grown():
    tx = sj.optim.rigl(optax.sm3(0.1), PLAN, key=KEY, end=9, every=1)
    state = tx.init(PARAMS)
    step = jax.jit(tx.update)
    _, state = step(PARAMS, state, PARAMS)
    old = sj.get_masks(state)["kernel"]
    grads = {"kernel": jnp.where(old, 0.0, 1.0), "bias": PARAMS["bias"]}
    _, state = step(grads, state, PARAMS)
    grown = sj.get_masks(state)["kernel"] & ~old
    assert int(grown.sum()) == 9  # 0.15 (1 + cos(pi / 9)) of 32
    assert not state.inner[0].nu["kernel"][grown].any()


ALL = sj.plan(params_of(), sj.Unstructured(0.5))
# Without the optimizers of optax around them, which need every gradient.
ALONE = {
    "prune": lambda: sj.optim.prune(ALL),
    "keep_masked": lambda: sj.optim.keep_masked(ALL.masks(params_of())),
    "track_masks": lambda: sj.optim.track_masks(ALL),
    "iterative_shrinkage": lambda: sj.optim.iterative_shrinkage(ALL, 0.5),
    "proximal": lambda: sj.optim.proximal(sj.prox.l1(0.5), 0.1),
    "add_pruned_decay": lambda: sj.optim.add_pruned_decay(ALL, 0.01),
    "sr_ste": lambda: sj.optim.sr_ste(ALL),
    "movement": lambda: sj.optim.movement(ALL),
    "soft_movement": lambda: sj.optim.soft_movement(ALL),
    "add_penalty": lambda: sj.optim.add_penalty(sj.prox.l1(0.5)),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("leaf", ["kernel", "bias"])
def test_a_gradient_may_be_none(name, leaf):
    """The leaf is not updated; the others are as with a gradient of 0 in its place."""
    tx, params = ALONE.get(name, MEMBERS[name])(), params_of()
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    gap = {**grads, "dense": {**grads["dense"], leaf: None}}
    zero = {**grads, "dense": {**grads["dense"], leaf: 0 * grads["dense"][leaf]}}
    state = tx.init(params)
    found, new = tx.update(gap, state, params)
    assert found["dense"][leaf] is None and describe(new) == describe(state)
    expected, _ = tx.update(zero, state, params)
    np.testing.assert_array_equal(found["out"]["kernel"], expected["out"]["kernel"])


def test_compact_masks_may_be_arrays_of_numpy_under_inject_hyperparams():
    masks = {"kernel": np.asarray(MASKS["kernel"])}
    make = lambda learning_rate: sj.optim.subset(optax.sgd(learning_rate), masks, compact=True)  # noqa: E731
    tx = optax.inject_hyperparams(make)(0.5)
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    expected = np.where(masks["kernel"], -0.5 * PARAMS["kernel"], 0)
    np.testing.assert_array_equal(updates["kernel"], expected)


def test_compact_masks_may_not_be_traced():
    make = lambda m: sj.optim.subset(optax.sgd(0.1), {"kernel": m}, compact=True)  # noqa: E731
    with pytest.raises(TypeError, match="mask of kernel is traced.*outside of jit"):
        jax.jit(lambda m: make(m).init(PARAMS))(MASKS["kernel"])
