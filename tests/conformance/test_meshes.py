"""Patterns and training on eight devices: the compiled programs gather no weights."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import sparsejax as sj

SHAPE, CONV = (8, 64, 128), (3, 3, 64, 64)
LABELS = np.arange(64 * 128).reshape(64, 128) // 64 % 31
POOLED = {
    "unstructured": sj.Unstructured(0.9, stacked=1),
    "block": sj.Block((4, 4), 0.75, stacked=1),
    "balanced": sj.Block((4, 4), 0.5, stacked=1, balanced=True),
    "channel": sj.Channel(0.5, stacked=1),
    "inputs": sj.Channel(0.5, axis=1, stacked=1),
    "fan-in": sj.patterns.FanIn(0.75, stacked=1),
    "groups": sj.Groups(LABELS, 0.5, stacked=1),
}
PATTERNS = POOLED | {
    "2:4": sj.NM(2, 4, stacked=1),
    "8:64": sj.NM(8, 64, stacked=1),
    "stages": sj.patterns.nm_stages("stepwise", 1, 4, stacked=1),
}
WINDOWS = {
    "2:4": sj.NM(2, 4),
    "block": sj.Block((9, 4), 0.5, axis=(2, 0, 1)),
    "fan-in": sj.patterns.FanIn(0.75),
    "channel": sj.Channel(0.5),
}
STACKED = {
    "slices": P("x"),
    "rows": P(None, ("x", "y"), None),
    "columns": P(None, None, ("x", "y")),
    "both": P(None, "x", "y"),
    "slices and columns": P("x", None, "y"),
}


def sharded(shape, kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


def check_program(compiled, leaf, count, most):
    """No gather of an array, and temporaries in units of the parameters of a device."""
    found = re.findall(r"= (\S+) (all-gather|all-to-all|collective-permute)", compiled.as_text())
    large = [f"{name} {shape}" for shape, name in found if _size(shape) >= 64 * 64]
    assert not large, large
    local = count * 4 * np.prod(leaf.shape) / 8
    assert compiled.memory_analysis().temp_size_in_bytes <= most * local


def _size(shape):
    return int(np.prod([int(x) for x in re.findall(r"\d+", shape.split("[")[1].split("]")[0])]))


def results_like(tree, leaf):
    """Results sharded as the leaves; with explicit axes they are by themselves."""
    if AxisType.Explicit in leaf.sharding.mesh.axis_types:
        return None
    return jax.tree.map(lambda x: x.sharding, tree)


KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def cases(quick, *tables):
    """All combinations, those that are not in `quick` marked as slow."""
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in itertools.product(*tables)
    ]


@pytest.mark.parametrize(
    "spec, kind",
    cases([("rows", "auto"), ("slices and columns", "auto"), ("both", "explicit")], STACKED, KINDS),
)
def test_masks_of_sharded_leaves(spec, kind):
    leaf = sharded(SHAPE, KINDS[kind], STACKED[spec])
    tree = {name: {"kernel": leaf} for name in PATTERNS}
    plan = sj.plan(tree, {f"^{name}/": pattern for name, pattern in PATTERNS.items()})
    select = lambda params, c: plan.masks(sj.masks.magnitude(params), c)  # noqa: E731
    compiled = jax.jit(select, out_shardings=results_like(tree, leaf)).lower(tree, jnp.float32(1))
    check_program(compiled.compile(), leaf, len(tree), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_sharded_convolutions(kind):
    leaf = sharded(CONV, KINDS[kind], P(None, None, "x", "y"))
    tree = {name: {"kernel": leaf} for name in WINDOWS}
    plan = sj.plan(tree, {f"^{name}/": pattern for name, pattern in WINDOWS.items()})
    select = lambda params, c: plan.masks(sj.masks.magnitude(params), c)  # noqa: E731
    compiled = jax.jit(select, out_shardings=results_like(tree, leaf)).lower(tree, jnp.float32(1))
    check_program(compiled.compile(), leaf, len(tree), 3)


def dynamic(make, plan):
    return make(optax.sgd(0.1, 0.9), plan, key=jax.random.key(0), end=100, every=2)


TRAINING = {
    "rigl": lambda plan: dynamic(sj.optim.rigl, plan),
    "sparse_evolution": lambda plan: dynamic(sj.optim.sparse_evolution, plan),
    "acdc": lambda plan: sj.optim.acdc(optax.sgd(0.1, 0.9), plan, [(1, 2), (4, 9)]),
    "prune": lambda plan: optax.chain(optax.sgd(0.1, 0.9), sj.optim.prune(plan, every=2)),
    "movement": lambda plan: optax.chain(sj.optim.movement(plan), optax.sgd(0.1)),
    "top_kast": lambda plan: sj.optim.top_kast(optax.sgd(0.1), plan, plan),
    "iterative_shrinkage": lambda plan: sj.optim.iterative_shrinkage(plan),
    "sr_ste": lambda plan: sj.optim.sr_ste(plan),
    "track_masks": lambda plan: sj.optim.track_masks(plan),
}


QUICK = [
    ("rigl", "auto"),
    ("sparse_evolution", "explicit"),
    ("acdc", "explicit"),
    ("prune", "auto"),
]


@pytest.mark.parametrize("name, kind", cases(QUICK, TRAINING, KINDS))
def test_steps_of_sharded_training(name, kind):
    leaf = sharded(SHAPE, KINDS[kind], STACKED["both"])
    patterns = {n: POOLED[n] for n in ("unstructured", "block", "fan-in", "channel")}
    check_step(name, leaf, patterns)


# "slices" is sharded over half of the devices.
@pytest.mark.parametrize("spec, most", [("both", 3), ("rows", 3), ("columns", 3), ("slices", 6)])
@pytest.mark.parametrize("pattern", ["groups", "channel"])
@pytest.mark.parametrize("name", ["rigl", "sparse_evolution"])
def test_dynamic_steps_of_one_leaf(name, pattern, spec, most):
    leaf = sharded(SHAPE, AxisType.Auto, STACKED[spec])
    check_step(name, leaf, {pattern: POOLED[pattern]}, most)


# The counts of each output are small beside 64 inputs or more on a device.
@pytest.mark.parametrize("spec", ["rows", "both"])
@pytest.mark.parametrize("name", ["rigl", "sparse_evolution"])
def test_dynamic_steps_of_a_constant_fan_in(name, spec):
    leaf = sharded((8, 512, 512), AxisType.Auto, STACKED[spec])
    check_step(name, leaf, {"fan-in": POOLED["fan-in"]})


def check_step(name, leaf, patterns, most=3):
    tree = {n: {"kernel": leaf} for n in patterns}
    plan = sj.plan(tree, {f"^{n}/": pattern for n, pattern in patterns.items()})
    tx = TRAINING[name](plan)
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    replicated = NamedSharding(leaf.sharding.mesh, P())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=leaf.sharding if x.shape == leaf.shape else replicated
        ),
        jax.eval_shape(tx.init, plain),
    )

    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = results_like((tree, state), leaf)
    compiled = jax.jit(step, donate_argnums=(0, 2), out_shardings=out).lower(tree, tree, state)

    check_program(compiled.compile(), leaf, len(tree), most)


COMPRESSED = {"2:4": sj.NM(2, 4), "8:64": sj.NM(8, 64), "block": sj.Block((4, 4), 0.75)}


@pytest.mark.parametrize("implementation", ["dense", "xla"])
@pytest.mark.parametrize("pattern", COMPRESSED)
def test_products_of_sharded_columns(pattern, implementation):
    params = {"kernel": jax.random.normal(jax.random.key(0), (256, 512))}
    (small,) = sj.compress(params, sj.plan(params, COMPRESSED[pattern])).values()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    w, x = sj.formats.shard_columns(small, mesh, "x"), jnp.ones((2, 256))

    def loss(x, w):
        return jnp.sum(sj.matmul(x, w, implementation=implementation) ** 2)

    like = jax.tree.map(lambda x: None if x.dtype == jnp.int32 else x.sharding, w)
    gradient = jax.grad(loss, argnums=(0, 1), allow_int=True)
    out = (NamedSharding(mesh, P()), like)
    for f, shardings in ((loss, None), (gradient, out)):
        compiled = jax.jit(f, out_shardings=shardings).lower(x, w).compile()
        assert "all-gather" not in compiled.as_text()
