"""The program of the README, for every framework: plan, prune while training, report, compress."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import sparsejax as sj

from .. import readme_program

RULES = {
    r"query/(kernel|weight)$": sj.NM(2, 4),
    r"out/(kernel|weight)$": sj.NM(1, 4),
    r"(kernel|weight)$": sj.Unstructured(0.9),
}
X = jax.random.normal(jax.random.key(0), (32, 16))
Y = X @ jax.random.normal(jax.random.key(1), (16, 8)) / 4


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.query, self.mlp = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.out = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.mlp(jax.nn.relu(self.query(x)))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jax.nn.relu(linen.Dense(16, name="query")(x))
        return linen.Dense(8, name="out")(jax.nn.relu(linen.Dense(16, name="mlp")(x)))


class Equinox(eqx.Module):
    query: eqx.nn.Linear
    mlp: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.query, self.mlp = (eqx.nn.Linear(16, 16, key=k) for k in keys[:2])
        self.out = eqx.nn.Linear(16, 8, key=keys[2])

    def __call__(self, x):
        return self.out(jax.nn.relu(self.mlp(jax.nn.relu(self.query(x)))))


def plain(params, x):
    for name in ("query", "mlp", "out"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = jax.nn.relu(x) if name != "out" else x
    return x


def compressed_linen(params, x):
    with linen.intercept_methods(sj.nn.linen_compressed):
        return Linen().apply({"params": params}, x)


FRAMES = {
    "linen": (lambda: Linen().init(jax.random.key(0), X)["params"], compressed_linen),
    "dict": (
        lambda: jax.tree.map(lambda x: x, Linen().init(jax.random.key(0), X)["params"]),
        plain,
    ),
    "equinox": (Equinox, lambda m, x: jax.vmap(m)(x)),
}


def transformation(model):
    plan = sj.plan(model, RULES, allocate=sj.masks.erk)
    ramp = optax.polynomial_schedule(0.0, 1.0, power=3, transition_begin=5, transition_steps=20)
    return plan, optax.chain(optax.adamw(1e-2), sj.optim.prune(plan, ramp, every=5))


def check(model, plan, masks, run):
    """What is reported is what is there, and the compressed model computes the same."""
    report = sj.report(model, masks, plan)
    np.testing.assert_allclose(report.sparsity, plan.sparsity, atol=1e-6)
    fast = sj.compress(model, plan, masks)
    np.testing.assert_allclose(run(fast, X), run(model, X), rtol=1e-4, atol=1e-5)
    compressed = jax.tree.leaves(fast, is_leaf=lambda x: isinstance(x, sj.formats.Matrix))
    assert sum(isinstance(x, sj.formats.Matrix) for x in compressed) == 2


@pytest.mark.slow
@pytest.mark.parametrize("frame", FRAMES)
def test_trees(frame):
    make, run = FRAMES[frame]
    model = make()
    plan, tx = transformation(model)
    params, rest = eqx.partition(model, eqx.is_array)
    loss = lambda p: jnp.mean((run(eqx.combine(p, rest), X) - Y) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, first = tx.init(params), loss(params)
    for _ in range(30):
        params, state = step(params, state)
    assert loss(params) < first
    masks = sj.get_masks(state)
    check(eqx.combine(params, rest), plan, masks, run)


def test_nnx():
    model = NNX()
    plan, tx = transformation(model)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(30)]
    assert losses[-1] < losses[0]
    masks = sj.get_masks(optimizer.opt_state)
    check(model, plan, masks, lambda m, x: m(x))


@pytest.mark.slow
def test_the_program_of_the_readme_runs_as_written():
    readme_program.main(str(pathlib.Path(__file__).parents[2] / "README.md"))
