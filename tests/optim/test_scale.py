"""Transformations of a model of 70 billion parameters, traced by shapes."""

import math
import time

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj

LAYERS, WIDTH, HIDDEN = 80, 8192, 28672
KERNELS = {
    "query": (LAYERS, WIDTH, WIDTH),
    "key": (LAYERS, WIDTH, 1024),
    "value": (LAYERS, WIDTH, 1024),
    "out": (LAYERS, WIDTH, WIDTH),
    "up": (LAYERS, WIDTH, HIDDEN),
    "gate": (LAYERS, WIDTH, HIDDEN),
    "down": (LAYERS, HIDDEN, WIDTH),
    "head": (1, WIDTH, 128256),
}
PARAMS = {n: {"kernel": jax.ShapeDtypeStruct(s, jnp.bfloat16)} for n, s in KERNELS.items()}
KEY, RAMP = jax.random.key(0), optax.polynomial_schedule(0.0, 1.0, 3, 1000)


def plan_of(pattern, **options):
    return sj.plan(PARAMS, pattern, **options)


PLAN, WIDER = (plan_of(sj.Unstructured(s, stacked=1)) for s in (0.9, 0.8))
ERK = plan_of(sj.Unstructured(0.9, stacked=1), allocate=sj.masks.erk)
FAN_IN, WIDER_FAN_IN = (plan_of(sj.patterns.FanIn(s, stacked=1)) for s in (0.9, 0.8))
BLOCK = plan_of(sj.Block((16, 16), 0.9, stacked=1))
L1, SGD = sj.prox.l1(1e-4), optax.sgd(0.1)
CASES = {
    "prune": lambda: sj.optim.prune(PLAN, RAMP),
    "prune, erk": lambda: sj.optim.prune(ERK, RAMP),
    "prune, constant": lambda: sj.optim.prune(PLAN, 0.5),
    "prune, fan-in": lambda: sj.optim.prune(FAN_IN, RAMP),
    "prune, 2:4": lambda: sj.optim.prune(plan_of(sj.NM(2, 4, stacked=1)), RAMP),
    "prune, channel": lambda: sj.optim.prune(plan_of(sj.Channel(0.5, stacked=1)), RAMP),
    "track_masks": lambda: sj.optim.track_masks(PLAN, RAMP),
    "sr_ste": lambda: sj.optim.sr_ste(PLAN),
    "rigl": lambda: sj.optim.rigl(SGD, PLAN, key=KEY, end=1000),
    "rigl, fan-in": lambda: sj.optim.rigl(SGD, FAN_IN, key=KEY, end=1000),
    "sparse_evolution": lambda: sj.optim.sparse_evolution(SGD, BLOCK, key=KEY, end=1000),
    "movement": lambda: sj.optim.movement(PLAN, RAMP),
    "soft_movement": lambda: sj.optim.soft_movement(PLAN),
    "top_kast": lambda: sj.optim.top_kast(SGD, PLAN, WIDER),
    "top_kast, fan-in": lambda: sj.optim.top_kast(SGD, FAN_IN, WIDER_FAN_IN),
    "acdc": lambda: sj.optim.acdc(SGD, PLAN, [(1, 2), (4, 9)]),
    "iterative_shrinkage": lambda: sj.optim.iterative_shrinkage(PLAN, 0.9),
    "add_penalty": lambda: sj.optim.add_penalty(L1),
    "proximal_sgd": lambda: sj.optim.proximal_sgd(0.1, L1),
    "proximal_adam": lambda: sj.optim.proximal_adam(0.1, L1),
}


WITH_X64 = ("prune", "prune, fan-in", "rigl", "top_kast")


@pytest.mark.parametrize("name, x64", [(n, False) for n in CASES] + [(n, True) for n in WITH_X64])
def test_tracing_takes_less_than_five_seconds(name, x64):
    with jax.enable_x64(x64):
        tx = CASES[name]()

        def step(params, grads):
            updates, state = tx.update(grads, tx.init(params), params)
            return optax.apply_updates(params, updates), state

        start = time.monotonic()
        params, _ = jax.eval_shape(step, PARAMS, PARAMS)
        assert time.monotonic() - start < 5
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize(
    "pattern", [sj.Unstructured(0.9, stacked=1), sj.patterns.FanIn(0.9, stacked=1)]
)
def test_planned_counts_are_exact_integers(pattern):
    for leaf in plan_of(pattern).leaves:
        layers, inputs, outputs = leaf.shape
        slices = layers * (outputs if "FanIn" in repr(pattern) else 1)
        units = math.prod(leaf.shape) // slices
        assert leaf.zeros == slices * round(units * 0.9) and leaf.kept == leaf.size - leaf.zeros


def test_a_joint_selection_of_more_than_two_to_the_32_says_what_helps():
    tx = sj.optim.prune(plan_of(sj.Unstructured(0.9), allocate=sj.masks.joint), RAMP)
    step = lambda p: tx.update(p, tx.init(p), p)[0]  # noqa: E731
    with pytest.raises(ValueError, match=r"jax_enable_x64, or select per leaf.*stacked=1"):
        jax.eval_shape(step, PARAMS)
    with jax.enable_x64(True):
        jax.eval_shape(step, PARAMS)
