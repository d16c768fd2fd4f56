"""Every member of `sj.optim` through the same compositions."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

import sparsejax as sj
from sparsejax._tree import named_leaves

RULES = {r"dense/kernel$": sj.NM(2, 4), r"kernel$": sj.Unstructured(0.75)}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def params_of(dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "dense": {
            "kernel": jax.random.normal(keys[0], (16, 8), dtype),
            "bias": jnp.ones(8, dtype),
        },
        "out": {
            "kernel": jax.random.normal(keys[1], (8, 16), dtype),
            "scale": jnp.ones(16, dtype),
        },
    }


def plan_of():
    return sj.plan(params_of(), RULES)


def dynamic_plan_of():
    rules = {r"dense/kernel$": sj.Block((2, 2), 0.5), r"kernel$": sj.Unstructured(0.75)}
    return sj.plan(params_of(), rules)


def wider_plan_of():
    return sj.plan(params_of(), {r"dense/kernel$": sj.NM(3, 4), r"kernel$": sj.Unstructured(0.5)})


def dense_plan_of():
    return sj.plan(params_of(), sj.Unstructured(0.5))


def masks_of():
    return plan_of().masks(sj.masks.random(params_of(), key=jax.random.key(1)))


PENALTY = sj.prox.l1(0.5)

# What each member is chained with: the place in the chain is part of its contract.
MEMBERS = {
    "prune": lambda rate=0.1: optax.chain(optax.adam(rate), sj.optim.prune(plan_of(), every=2)),
    "keep_masked": lambda rate=0.1: optax.chain(
        optax.adamw(rate), sj.optim.keep_masked(masks_of())
    ),
    "track_masks": lambda rate=0.1: optax.chain(optax.adam(rate), sj.optim.track_masks(plan_of())),
    "add_pruned_decay": lambda rate=0.1: optax.chain(
        sj.optim.add_pruned_decay(plan_of(), 0.01), optax.sgd(rate, 0.9)
    ),
    "sr_ste": lambda rate=0.1: optax.chain(
        optax.scale_by_adam(), sj.optim.sr_ste(plan_of()), optax.scale_by_learning_rate(rate)
    ),
    "rigl": lambda rate=0.1: sj.optim.rigl(
        optax.adam(rate), dynamic_plan_of(), key=jax.random.key(0), end=5, every=2
    ),
    "sparse_evolution": lambda rate=0.1: sj.optim.sparse_evolution(
        optax.sgd(rate, 0.9), dynamic_plan_of(), key=jax.random.key(0), end=5, every=2
    ),
    "drop_and_grow": lambda rate=0.1: sj.optim.drop_and_grow(
        optax.adam(rate),
        dynamic_plan_of(),
        key=jax.random.key(0),
        when=sj.optim.every_until(2, 5),
        drop=lambda params, grads, key: sj.masks.saliency(params, grads),
    ),
    "movement": lambda rate=0.1: optax.chain(
        sj.optim.movement(plan_of(), learning_rate=0.5), optax.adam(rate)
    ),
    "soft_movement": lambda rate=0.1: optax.chain(
        sj.optim.soft_movement(dense_plan_of(), strength=0.1, learning_rate=0.5), optax.adam(rate)
    ),
    "top_kast": lambda rate=0.1: sj.optim.top_kast(
        optax.adam(rate), plan_of(), wider_plan_of(), every=2
    ),
    "acdc": lambda rate=0.1: sj.optim.acdc(optax.sgd(rate, 0.9), plan_of(), [(1, 2), (3, 99)]),
    "iterative_shrinkage": lambda rate=0.1: optax.chain(
        optax.sgd(rate, 0.9), sj.optim.iterative_shrinkage(plan_of(), 0.5, prune_steps=3)
    ),
    "subset": lambda rate=0.1: sj.optim.subset(optax.adamw(rate), masks_of()),
    "add_penalty": lambda rate=0.1: optax.chain(
        sj.optim.add_penalty(PENALTY, masks_of()), optax.adam(rate)
    ),
    "proximal": lambda rate=0.1: optax.chain(
        optax.sgd(rate), sj.optim.proximal({"kernel$": PENALTY}, rate)
    ),
    "proximal_sgd": lambda rate=0.1: sj.optim.proximal_sgd(rate, PENALTY, momentum=0.9),
    "proximal_adam": lambda rate=0.1: sj.optim.proximal_adam(rate, PENALTY),
    "unit_norm": lambda rate=0.1: sj.optim.unit_norm(optax.adam(rate), "kernel$"),
}
# Members whose parameters are exactly sparse, and those that hold masks.
EXACT = {"prune", "keep_masked", "acdc", "iterative_shrinkage"}
SPARSE = EXACT | {
    "rigl",
    "sparse_evolution",
    "drop_and_grow",
    "proximal",
    "proximal_sgd",
    "proximal_adam",
}
MASKED = EXACT | {
    "rigl",
    "sparse_evolution",
    "drop_and_grow",
    "track_masks",
    "add_pruned_decay",
    "sr_ste",
}
MASKED |= {"movement", "soft_movement", "top_kast", "subset"}

every_member = pytest.mark.parametrize("name", MEMBERS)


def loss(params, shift=0.3):
    return sum(jnp.sum((x.astype(jnp.float32) - shift) ** 2) for x in jax.tree.leaves(params))


def train(tx, params, steps=6, state=None):
    state = tx.init(params) if state is None else state

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((params, state))


def zeros(params):
    return {k: int(np.sum(np.asarray(x) == 0)) for k, x in named_leaves(params).items()}


def assert_sparse(name, params):
    found = zeros(params)
    assert found["dense/bias"] == found["out/scale"] == 0
    if name in ("rigl", "sparse_evolution", "drop_and_grow"):  # what has just grown is zero, too
        assert 64 <= found["dense/kernel"] < 128 and 96 <= found["out/kernel"] < 128
    elif name in EXACT:
        assert found["dense/kernel"] == 64 and found["out/kernel"] == 96
        groups = np.asarray(params["dense"]["kernel"] != 0).reshape(4, 4, 8).sum(1)
        assert (groups == 2).all()
    elif name in SPARSE:
        assert 0 < found["dense/kernel"] < 128
    else:
        assert found["dense/kernel"] == 0


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_member_is_here():
    factories = {
        name
        for name in sj.optim.__all__
        if inspect.isfunction(getattr(sj.optim, name)) and not name.endswith("_schedule")
    }
    assert factories - {"get_masks", "acdc_phases", "every_until"} == set(MEMBERS)


@every_member
@pytest.mark.parametrize("dtype", DTYPES)
def test_chain_and_scan_in_three_dtypes(name, dtype):
    params = params_of(dtype)
    tx = MEMBERS[name]()
    trained, state = train(tx, params)
    assert all(x.dtype == dtype for x in jax.tree.leaves(trained))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    assert_sparse(name, trained)
    assert float(loss(trained)) != float(loss(params))


@every_member
def test_state_keeps_shapes_and_dtypes(name):
    params = params_of()
    tx = MEMBERS[name]()
    state = tx.init(params)
    _, new = tx.update(jax.grad(loss)(params), state, params)
    describe = lambda s: jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s)  # noqa: E731
    assert describe(state) == describe(new)


@every_member
def test_jit_and_eval_shape_of_init(name):
    params = params_of()
    tx = MEMBERS[name]()
    state = tx.init(params)
    assert_same(jax.jit(tx.init)(params), state)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(jnp.shape, state)


@every_member
def test_map_params_reaches_the_masks(name):
    params = params_of()
    tx = MEMBERS[name]()
    marked = optax.tree.map_params(tx, lambda x: x.shape, tx.init(params))
    if name in MASKED:
        masks = sj.get_masks(marked)
        assert masks["dense"]["kernel"] == (16, 8) and masks["dense"]["bias"] is None


@every_member
def test_needs_params(name):
    params = params_of()
    tx = MEMBERS[name]()
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))


@every_member
def test_multisteps_inside_and_outside(name):
    params = params_of()
    outside = optax.MultiSteps(MEMBERS[name](), every_k_schedule=2).gradient_transformation()
    trained, _ = train(outside, params, steps=8)
    assert_sparse(name, trained)
    inner = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2).gradient_transformation()
    last = {
        "prune": sj.optim.prune(plan_of(), every=2),
        "keep_masked": sj.optim.keep_masked(masks_of()),
        "track_masks": sj.optim.track_masks(plan_of()),
        "proximal": sj.optim.proximal(PENALTY, 0.1),
    }
    if name in last:
        trained, _ = train(optax.chain(inner, last[name]), params, steps=8)
        assert_sparse(name, trained)


@every_member
def test_inject_hyperparams(name):
    params = params_of()

    def with_rate(learning_rate):
        return MEMBERS[name](learning_rate)

    schedule = optax.linear_schedule(0.1, 0.05, 6)
    injected, state = train(optax.inject_hyperparams(with_rate)(schedule), params)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], schedule(5), rtol=1e-6)
    plain, _ = train(MEMBERS[name](schedule), params)
    if name not in (
        "rigl",
        "sparse_evolution",
        "drop_and_grow",
    ):  # the optimizer in them does not count mask changes as steps
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), injected, plain)
    assert_sparse(name, injected)


def test_inject_hyperparams_of_prune_itself():
    params = params_of()
    tx = optax.inject_hyperparams(sj.optim.prune)(plan_of(), optax.linear_schedule(0.0, 1.0, 4))
    trained, _ = train(optax.chain(optax.sgd(0.1), tx), params)
    assert_sparse("prune", trained)


@every_member
def test_masked_leaves_the_rest_alone(name):
    params = params_of()
    only = {"dense": {"kernel": True, "bias": True}, "out": {"kernel": False, "scale": False}}
    trained, state = train(optax.masked(MEMBERS[name](), only), params)
    # optax.masked passes the gradient itself where the mask is False.
    assert zeros(trained)["out/kernel"] == 0
    if name in SPARSE:
        assert zeros(trained)["dense/kernel"] > 0
    if name in MASKED:
        masks = sj.get_masks(state)
        assert masks["dense"]["kernel"].shape == (16, 8) and masks["out"]["kernel"] is None


@every_member
@pytest.mark.parametrize("both", [False, True])
def test_partition_with_one_and_two(name, both):
    params = params_of()
    labels = {"dense": "a", "out": "b"}
    labels = {k: jax.tree.map(lambda _: v, params[k]) for k, v in labels.items()}  # noqa: B023
    transforms = {"a": MEMBERS[name](), "b": MEMBERS[name]() if both else optax.sgd(0.1)}
    trained, state = train(optax.partition(transforms, labels), params)
    if both:
        assert_sparse(name, trained)
    if name in MASKED:
        masks = sj.get_masks(state)
        assert set(masks) == {"dense", "out"} and masks["dense"]["bias"] is None
        assert masks["dense"]["kernel"].dtype == bool
        assert (masks["out"]["kernel"] is not None) == both


@every_member
def test_apply_if_finite(name):
    params = params_of()
    tx = optax.apply_if_finite(MEMBERS[name](), max_consecutive_errors=3)
    trained, state = train(tx, params)
    assert_sparse(name, trained)
    bad = jax.tree.map(lambda x: x * jnp.nan, params)
    updates, _ = tx.update(bad, state, trained)
    assert_same(optax.apply_updates(trained, updates), trained)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 16, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.dense(x))))


@every_member
def test_nnx_optimizer(name):
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, MEMBERS[name](), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(3), (4, 16))

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(3):
        step(model, optimizer)
    kernel = np.asarray(model.dense.kernel[...])
    if name == "acdc":
        assert (kernel == 0).sum() == 0  # the third step is dense
    elif name in EXACT:
        assert (kernel == 0).sum() == 64
    if name in MASKED:
        masks = sj.get_masks(optimizer.opt_state)
        assert isinstance(masks["dense"]["kernel"], jax.Array) and masks["norm"]["scale"] is None
        if name == "prune":
            np.testing.assert_array_equal(masks["dense"]["kernel"], kernel != 0)


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(16, name="out")(nnx.relu(linen.Dense(8, name="dense")(x)))


@every_member
def test_linen_train_state(name):
    model = LinenNetwork()
    x = jax.random.normal(jax.random.key(3), (4, 16))
    variables = model.init(jax.random.key(0), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=variables, tx=MEMBERS[name]())

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: jnp.mean((state.apply_fn({"params": p}, x) - 1) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        state = step(state)
    if name in EXACT - {"acdc"}:
        assert (state.params["dense"]["kernel"] == 0).sum() == 64


@every_member
def test_orbax_round_trip_continues_the_same_run(name, tmp_path):
    params = params_of()
    tx = MEMBERS[name]()
    half = train(tx, params, steps=3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", half)
    assert_same(
        train(tx, restored[0], steps=3, state=restored[1]),
        train(tx, *half[:1], steps=3, state=half[1]),
    )


@every_member
def test_vmap_over_seeds(name):
    tx = MEMBERS[name]()
    seeds = [params_of(seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)

    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.vmap(tx.init)(stacked)
    together = jax.jit(jax.vmap(step))
    for _ in range(6):
        stacked, state = together(stacked, state)
    alone, _ = train(tx, seeds[2], steps=6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2], b, rtol=1e-6, atol=1e-6), stacked, alone
    )
    third = jax.tree.map(lambda x: x[2], stacked)
    assert_sparse(name, third)


MESHES = {
    "auto": (jax.sharding.AxisType.Auto, PartitionSpec("x", "y")),
    "explicit": (jax.sharding.AxisType.Explicit, PartitionSpec("x", "y")),
    "explicit rows": (jax.sharding.AxisType.Explicit, PartitionSpec("x", None)),
    "explicit columns": (jax.sharding.AxisType.Explicit, PartitionSpec(None, "x")),
}


@every_member
@pytest.mark.parametrize(
    "mesh", [pytest.param(m, marks=pytest.mark.slow if " " in m else ()) for m in MESHES]
)
def test_eight_devices_give_the_same_parameters_and_masks(name, mesh):
    """With explicit axes as with automatic ones, and without a gather of weights."""
    assert jax.device_count() == 8
    kind, spec = MESHES[mesh]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    params = params_of()
    spread = jax.tree.map(
        lambda x: jax.device_put(
            x, NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec(spec[-1]))
        ),
        params,
    )
    tx = MEMBERS[name]()
    one, state_one = train(tx, params)
    many, state_many = train(tx, spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, many)
    if name in MASKED:
        assert_same(*(jax.tree.map(np.asarray, sj.get_masks(s)) for s in (state_one, state_many)))
        found = sj.get_masks(tx.init(spread))["dense"]["kernel"].sharding
        given = {"keep_masked", "subset"}  # masks of one device
        if kind == jax.sharding.AxisType.Explicit and name not in given:
            assert found.is_equivalent_to(spread["dense"]["kernel"].sharding, 2), found
        if name in ("prune", "track_masks", "add_pruned_decay", "sr_ste"):
            assert found.is_equivalent_to(spread["dense"]["kernel"].sharding, 2), found


@pytest.mark.parametrize("name", MEMBERS)
def test_within_shard_map(name):
    # Each device trains parameters of its own.
    mesh = jax.make_mesh((2,), ("own",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("own")

    def train(rows):
        params = jax.tree.map(lambda x: x[0], rows)
        tx = MEMBERS[name]()
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
        return jax.tree.map(lambda x: x[None], updates)

    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params_of())
    jax.jit(jax.shard_map(train, mesh=mesh, in_specs=spec, out_specs=spec)).lower(both)
