"""The switches that JAX offers for debugging change no result of a public operation.

Each row of OPERATIONS runs plainly, without jit, with strict ranks and dtypes, with the search for
NaN, and with the check for leaked tracers.
"""

import sys
import traceback
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import contrib, prox, solve
from tests.conformance.test_transformations import MEMBERS, params_of

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 4))
Y = X @ jnp.array([1.0, 0.0, -2.0, 0.0])
W = jax.random.normal(jax.random.key(1), (8, 8))
V = jnp.array([3.0, -1.0, 0.5, 0.0, -2.0, 0.25])
PARAMS = {"kernel": W}
PLAN = sj.plan(PARAMS, sj.Unstructured(0.5))
DATA = {"x": jax.random.normal(jax.random.key(2), (16, 8))}
SIGNS = jnp.sign(W)


def loss(params, batch):
    return jnp.mean((batch["x"] @ params["kernel"] - 1) ** 2)


def compressed(pattern):
    plan = sj.plan(PARAMS, pattern)
    return sj.nn.compress(PARAMS, plan, plan.masks(sj.masks.magnitude(PARAMS)))["kernel"]


def product(pattern, **options):
    return sj.kernels.matmul(W[:2], compressed(pattern), **options)


def operator(penalty, v=V):
    """The value, the proximal operator, and the derivative through it."""
    through = lambda v, t: sum(map(jnp.sum, jax.tree.leaves(penalty.prox(v, t))))  # noqa: E731
    return penalty.value(v), penalty.prox(v, 0.3), jax.grad(through, (0, 1))(v, 0.3)


def two_steps(name):
    tx, params = MEMBERS[name](), params_of()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params


def value(solution):
    return solution.value


def linear():
    return nnx.Linear(8, 4, param_dtype=W.dtype, rngs=nnx.Rngs(0))


def graph_masks():
    params = {"a": {"kernel": W}, "b": {"kernel": W}}
    graph = sj.nn.surgery.channel_graph(params)
    return contrib.search.random_nodes(graph, 0.5, key=KEY)


OPERATIONS = {
    # prox
    "l1": lambda: operator(prox.l1(0.7)),
    "l0": lambda: operator(prox.l0(0.7)),
    "lp": lambda: operator(prox.lp(0.7, 0.4)),
    "mcp": lambda: operator(prox.mcp(0.7)),
    "log_sum": lambda: operator(prox.log_sum(0.7)),
    "exponential": lambda: operator(prox.exponential(0.7)),
    "group_lasso": lambda: operator(prox.group_lasso(0.7, axis=0), W),
    "group_labels": lambda: prox.group_l0(0.7, groups=np.array([0, 1, 0, 2, 1, 2])).prox(V),
    "wgsef": lambda: operator(prox.wgsef(2, axis=0, weights=jnp.arange(1.0, 9)), W),
    "k_support_norm": lambda: prox.k_support_norm(0.7, 2).prox(V),
    "slope": lambda: prox.slope(jnp.array([0.7, 0.4])).prox(W[:2, :2]),
    "linf": lambda: operator(prox.linf(0.7)),
    "l1_minus_l2": lambda: operator(prox.l1_minus_l2(0.7)),
    "total_variation": lambda: operator(prox.total_variation(0.7)),
    "l1_ball": lambda: prox.l1_ball(2.0).prox(V),
    "simplex": lambda: prox.simplex().prox(V),
    "affine": lambda: prox.affine(jnp.ones((1, 6)), jnp.ones(1)).prox(V),
    "nm": lambda: prox.nm(2, 4).prox(W),
    "nuclear": lambda: operator(prox.nuclear(0.7), X[:3]),
    "moreau_envelope": lambda: operator(prox.moreau_envelope(prox.l1(0.7))),
    # masks and patterns
    "plan.masks": lambda: PLAN.masks(sj.masks.magnitude(PARAMS), 0.5),
    "stacked": lambda: sj.masks.topk(W.reshape(2, 4, 8), sj.Unstructured(0.5, stacked=1)),
    "NM": lambda: sj.masks.topk(W, sj.NM(2, 4)),
    "Block": lambda: sj.masks.topk(W, sj.Block((2, 2), 0.5)),
    "FanIn": lambda: sj.masks.topk(W, sj.patterns.FanIn(0.5)),
    "joint": lambda: sj.plan(PARAMS, sj.Unstructured(0.5), allocate=sj.masks.joint).masks(PARAMS),
    "iterative": lambda: sj.masks.iterative(sj.masks.magnitude, PLAN, PARAMS, rounds=3),
    "grasp": lambda: sj.masks.grasp(PARAMS, lambda p: loss(p, DATA)),
    "synflow": lambda: sj.masks.synflow(PARAMS, lambda p: jnp.ones(8, W.dtype) @ p["kernel"]),
    "wanda": lambda: sj.masks.wanda(PARAMS, {"kernel": jnp.arange(8.0)}, PLAN),
    "straight_through": lambda: jax.grad(
        lambda p: loss(sj.masks.straight_through(p, PLAN, decay=0.1), DATA)
    )(PARAMS),
    "energy_threshold": lambda: sj.masks.energy_threshold(jnp.abs(V)),
    # optim: the rows of its own table
    **{f"optim.{name}": lambda name=name: two_steps(name) for name in MEMBERS},
    # formats, kernels and nn
    "matmul NM": lambda: product(sj.NM(2, 4)),
    "matmul Block": lambda: product(sj.Block((4, 4), 0.5)),
    "matmul Block xla": lambda: product(sj.Block((4, 4), 0.5), implementation="xla"),
    "active_ffn": lambda: sj.kernels.active_ffn(
        W, W, W, sj.select.TopK(2).set(jnp.abs(W), 2), activation=jax.nn.relu
    ),
    "record": lambda: sj.nn.record(linear(), "", W)[0],
    "input_grams": lambda: sj.nn.input_grams(linear(), [W]),
    # solve
    "lasso": lambda: value(solve.lasso(X, Y, 0.5, tol=0.1)),
    "lasso_path": lambda: value(solve.lasso_path(X, Y, n_strengths=2, eps=0.5, tol=0.1)),
    "group_lasso (solve)": lambda: value(
        solve.group_lasso(X, Y, 0.1, groups=[0, 0, 1, 1])
    ),
    "logistic_lasso": lambda: value(solve.logistic_lasso(X, jnp.sign(Y), 0.1, tol=0.01)),
    "multitask_lasso": lambda: value(
        solve.multitask_lasso(X, jnp.stack([Y, -Y], 1), 0.5, tol=0.1)
    ),
    "iht": lambda: value(
        solve.iht(lambda w: jnp.sum((X @ w - Y) ** 2), prox.hard_k(2), jnp.zeros(4, X.dtype))
    ),
    "basis_pursuit": lambda: solve.basis_pursuit(X[:2], Y[:2]),
    "proximal_gradient": lambda: value(
        solve.proximal_gradient(
            lambda w: jnp.sum((X @ w - Y) ** 2), prox.l1(0.1), jnp.zeros(4, X.dtype)
        )
    ),
    "sparse_code": lambda: value(solve.sparse_code(X, jnp.eye(4), prox.l1(0.1))),
    # recipes and metrics
    "train_masked": lambda: sj.recipes.train_masked(
        PARAMS, PLAN.masks(PARAMS), loss, optax.adam(0.1), DATA, steps=2, key=KEY, batch_size=4
    ),
    "sparsegpt": lambda: sj.recipes.sparsegpt(
        PARAMS, {"kernel": (W @ W.T).astype(jnp.float32) + jnp.eye(8)}, PLAN
    ),
    "prune_remaining": lambda: sj.recipes.prune_remaining(
        PLAN, sj.masks.magnitude(PARAMS), PLAN.full_masks(PARAMS), 0.5
    ),
    "nested_masks": lambda: sj.recipes.nested_masks(PARAMS, PLAN, [0.25, 0.5]),
    "calibration": lambda: sj.metrics.expected_calibration_error(
        jax.nn.softmax(W), jnp.arange(8)
    ),
    "sad": lambda: sj.metrics.sad(W > 0, W > 0.5),
    # contrib
    "colide": lambda: value(
        contrib.dag.colide(
            X, throw=False, max_steps=(20, 20), path=(1.0, 0.1), shifts=(1.0, 0.9)
        )
    ),
    "threshold_to_dag": lambda: contrib.dag.threshold_to_dag(W),
    "l2_randomizer": lambda: contrib.private.l2_randomizer(V, 9.0, 20.0, key=KEY),
    "ldp_iht": lambda: value(
        contrib.private.ldp_iht(
            jnp.tanh(X), jnp.tanh(Y), key=KEY, k=1, epsilon=9.0, bound_x=1.0, bound_y=1.0, rounds=2
        )
    ).coefficients,
    "g_optimal": lambda: value(contrib.bandits.g_optimal(X, tol=1.0)),
    "dass": lambda: contrib.search.dass(
        PARAMS, jnp.ones(2, W.dtype), lambda p, a, b: loss(p, b) * jnp.sum(a), PLAN, DATA, DATA,
        key=KEY, prune=contrib.search.Stage(2, optax.adam(0.1)),
    ).params,
    "random_search": lambda: contrib.search.random_search(
        PARAMS, lambda p, m: jnp.sum(p["kernel"]),
        lambda k: PLAN.masks(sj.masks.random(PARAMS, key=k)), key=KEY, candidates=3,
    ).masks,
    "random_nodes": graph_masks,
    "sara": lambda: contrib.sara.sara(
        PARAMS, lambda p, key: loss(p, DATA), key=KEY, theta=0.5, steps=1, rank_min_dim=2,
        learning_rate=1e-3,
    ).params,
    "fisher_diagonal": lambda: contrib.unlearning.fisher_diagonal(
        PARAMS, lambda p, x: x @ p["kernel"], W
    ),
    "influence_unlearning": lambda: contrib.unlearning.influence_unlearning(
        PARAMS, None, loss, forget={"x": W[:2]}, retain={"x": W[2:]}
    ),
    "unmix": lambda: value(
        contrib.unmixing.unmix(jnp.abs(W), 2, max_steps=3, throw=False)
    ).abundances,
    "multitask_als": lambda: contrib.multitask.multitask_als(
        jnp.stack([jnp.eye(3)] * 2), jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), 1, steps=2
    ),
    "orientation_tuning": lambda: contrib.receptive_fields.orientation_tuning(
        jnp.ones((16, 1)), jnp.array([0.0, 1.0]), jnp.array([0.25])
    ),
}  # fmt: skip

# Operations that read numbers on the host, and so cannot be traced.
HOST = {
    "calibration", "sad", "colide", "basis_pursuit", "g_optimal", "random_nodes",
    "sara", "prune_remaining", "nested_masks", "sparsegpt", "lasso_path",
}  # fmt: skip
# What they forbid happens while a function is traced: nothing need be compiled.
TRACED = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": lambda: jax.checking_leaks(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_switches_change_no_result(name):
    operation = OPERATIONS[name]
    compiled = operation if name in HOST else jax.jit(operation)
    plain = compiled()
    for switch in TRACED.values():
        try:
            with switch():
                operation() if name in HOST else jax.eval_shape(operation)
        except ValueError as error:  # `optax.adam` divides a float by its step
            assert raised_in_optax(error)
    with jax.debug_nans(True):
        close(compiled(), plain)
    with jax.disable_jit():
        close(operation(), plain)


@pytest.mark.parametrize("name", OPERATIONS)
def test_low_precision_with_strict_dtypes(name, monkeypatch):
    low = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
    module = sys.modules[__name__]
    for each in ("X", "Y", "W", "V", "PARAMS", "DATA", "SIGNS"):
        monkeypatch.setattr(module, each, jax.tree.map(low, getattr(module, each)))
    monkeypatch.setattr(module, "params_of", partial(params_of, jnp.bfloat16))
    operation = OPERATIONS[name]
    try:
        with jax.numpy_dtype_promotion("strict"):
            operation() if name in HOST else jax.eval_shape(operation)
    except ValueError as error:  # also bfloat16 parameters plus float32 updates
        assert raised_in_optax(error)


def raised_in_optax(error):
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = [name for name in frames if "/sparsejax/" in name or "/optax/" in name]
    return "/optax/" in ours[-1]


def close(found, plain):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), found, plain)
