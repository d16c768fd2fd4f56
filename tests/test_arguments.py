"""Wrong arguments raise a ValueError or TypeError that names them, in every room."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, Float
from numpy import nan

import sparsejax as sj
from sparsejax import prox, solve
from sparsejax._arguments import checked
from sparsejax.contrib import (
    activation_sparsity,
    bayes,
    dag,
    jepa,
    multitask,
    receptive_fields,
    reprogramming,
    retrieval,
    sara,
    search,
    unlearnable,
    unlearning,
)
from sparsejax.contrib.update_sparsity import update_partition, update_sparsity

pytestmark = pytest.mark.whole  # short, so all of it is in `make test`

KEY = jax.random.key(0)
X = jnp.arange(12.0).reshape(4, 3)
P = {"kernel": X.at[0, 0].set(0.5), "bias": jnp.zeros(3)}
PLAN = sj.plan(P, sj.Unstructured(0.5))
SGD = optax.sgd(0.1)
SIX = jnp.array([0, 1, 2, 0, 1, 2])
AT = {"kernel": jnp.array([0, 3])}
NM = sj.formats.NMArray.fromdense(jnp.ones((4, 4)), 2, 4)


def loss(p, batch):
    return jnp.mean(p["kernel"] ** 2) + 0 * jnp.sum(batch)


def sample(key):
    return PLAN.masks(sj.masks.random(P, key=key))


def search_of(loss, **more):
    return search.random_search(P, loss, sample, key=KEY, candidates=3, **more)


def unlearn(method="ascent", forget=X, retain=X, **more):
    return unlearning.unlearn(
        P, None, method, loss, SGD, forget=forget, retain=retain, steps=2, key=KEY, **more
    )


def trained(**more):
    return sj.recipes.train_masked(P, None, loss, SGD, X, **{"steps": 2, "key": KEY} | more)


def mapped(predicted=SIX, labels=SIX, sources=4, targets=3):
    return reprogramming.frequency_mapping(predicted, labels, sources, targets)


def tuned(**more):
    return sara.sara(P, lambda p, key: loss(p, X), key=KEY, theta=1.0, steps=1, **more)


# The name that the message must hold, and the call.
CALLS = [
    ("loss", lambda: search_of(lambda p, masks: p["kernel"].sum(0))),
    ("candidates", lambda: search.random_search(P, loss, sample, key=KEY, candidates=0)),
    ("batch_size", lambda: search_of(lambda p, masks: 0.0, batch_size=0)),
    ("chunk", lambda: search_of(lambda p, masks: 0.0, chunk=0)),
    ("power", lambda: sj.masks.erk(P, 0.5, power=nan)),
    ("power", lambda: sj.masks.erk(P, 0.5, power=None)),
    ("power", lambda: sj.masks.erk(P, 0.5, power=1e9)),
    ("sparsity", lambda: sj.masks.erk(P, nan)),
    ("sparsity", lambda: sj.masks.uniform(P, -0.5)),
    ("a must be", lambda: prox.soft_threshold(X, -1.0)),
    ("a must be", lambda: prox.soft_threshold(X, nan)),
    ("a must be", lambda: prox.hard_threshold(X, -1.0)),
    ("a", lambda: prox.hard_threshold(X, None)),
    ("low", lambda: prox.firm_threshold(X, -1.0, 1.0)),
    ("high", lambda: prox.firm_threshold(X, 1.0, 0.5)),
    ("high", lambda: prox.firm_threshold(X, 1.0, nan)),
    ("axis", lambda: prox.group_lasso(0.1, axis="x")),
    ("axis", lambda: prox.l1_ball(1.0, axis=nan)),
    ("axis", lambda: prox.hard_k(1, axis="x")),
    ("axis", lambda: prox.total_variation(0.1, axis=nan)),
    ("axis", lambda: prox.slope(jnp.ones(3), axis="x")),
    ("axis", lambda: prox.l1_minus_l2(1.0, axis=(0, 1))),
    ("axis", lambda: prox.nm(1, 2, axis="x")),
    ("stacked", lambda: prox.nm(1, 2, stacked=None)),
    ("num_groups", lambda: prox.group_lasso(0.1, groups=SIX, num_groups=nan)),
    ("num_groups", lambda: prox.group_lasso(0.1, axis=0, num_groups=-1)),
    ("fraction", lambda: sj.masks.energy_threshold(jnp.ones(3), nan)),
    ("fraction", lambda: sj.masks.energy_threshold(jnp.ones(3), -1.0)),
    ("learning_rate", lambda: tuned(learning_rate=-1.0)),
    ("weight_decay", lambda: tuned(learning_rate=0.1, weight_decay=nan)),
    ("strength", lambda: sj.optim.sr_ste(PLAN, nan)),
    ("strength", lambda: sj.optim.sr_ste(PLAN, float("inf"))),
    ("strength", lambda: sj.optim.sr_ste(PLAN, None)),
    ("exploration", lambda: sj.optim.top_kast(SGD, PLAN, PLAN, exploration=-1.0)),
    ("exploration", lambda: sj.optim.top_kast(SGD, PLAN, PLAN, exploration=nan)),
    ("every", lambda: sj.optim.prune(PLAN, every=None)),
    ("every", lambda: sj.optim.prune(PLAN, every=nan)),
    ("begin", lambda: sj.optim.prune(PLAN, begin=None)),
    ("every", lambda: sj.optim.top_kast(SGD, PLAN, PLAN, every=None)),
    ("every", lambda: sj.optim.rigl(SGD, PLAN, every=None, end=10, key=KEY)),
    ("every", lambda: sj.optim.iterative_shrinkage(PLAN, 0.5, every=None, prune_steps=4)),
    ("prune_steps", lambda: sj.optim.iterative_shrinkage(PLAN, 0.5, prune_steps=None)),
    ("total", lambda: sj.optim.stage_schedule(2, total=None)),
    ("forget", lambda: unlearn(forget=None)),
    ("retain", lambda: unlearn("finetune", retain=None)),
    ("forget", lambda: unlearn(forget={})),
    ("strength", lambda: unlearn("l1", strength=nan)),
    ("method", lambda: unlearn(None)),
    ("out_dtype", lambda: sj.matmul(jnp.ones((2, 4)), NM, out_dtype=jnp.int32)),
    ("out_dtype", lambda: sj.matmul(jnp.ones((2, 4)), jnp.ones((4, 4)), out_dtype=bool)),
    ("rules", lambda: sj.plan(P, {})),
    ("rules", lambda: sj.plan(P, None)),
    ("labels", lambda: mapped(labels=SIX - 1)),
    ("labels", lambda: mapped(labels=SIX + 1)),
    ("predicted", lambda: mapped(predicted=SIX + 2)),
    ("labels", lambda: mapped(labels=SIX[:1])),
    ("steps", lambda: trained(steps=-1)),
    ("steps", lambda: trained(steps=None)),
    ("batch_size", lambda: trained(batch_size=0)),
    ("key", lambda: trained(key=None)),
    ("chunk", lambda: trained(chunk=-1)),
    ("weights", lambda: sj.recipes.uniform_soup([P, P], [nan, 1.0])),
    ("masks", lambda: sj.recipes.uniform_soup([jnp.eye(4), 1 - jnp.eye(4)])),
    ("X", lambda: solve.lasso(X * nan, X[:, 0], 0.1)),
    ("strength", lambda: solve.lasso(X, X[:, 0], -1.0)),
    ("max_steps", lambda: solve.sparse_code(X, X.T, prox.l1(0.1), max_steps=None)),
    ("tol", lambda: solve.sparse_code(X, X.T, prox.l1(0.1), tol=nan)),
    ("atoms", lambda: solve.dictionary_learning(X[None], None, prox.l1(0.1), key=KEY)),
    ("learning_rate", lambda: solve.dictionary_learning(
        X[None], 4, prox.l1(0.1), key=KEY, learning_rate=-1.0)),
    # By the number of arguments of a function, a dtype, each element, and shared axes.
    (r"loss must be called as loss\(params, batch\)", lambda: sj.recipes.train_masked(
        P, None, lambda p: 0.0, SGD, X, steps=1, key=KEY)),
    ("callback", lambda: trained(callback=lambda: None)),
    ("sampler must be a function of 3 arguments", lambda: multitask.active_mtl(
        lambda: 0, (X, X[:, 0]), tasks=1, k=1, budget=4, key=KEY)),
    ("noise", lambda: dag.sample_sem(jnp.eye(3) * 0, 4, noise=lambda: 0.0, key=KEY)),
    ("dtype", lambda: sj.reporting.bytes_of((4, 4), "text")),
    ("dtype", lambda: sj.reporting.bytes_of((4, 4), None)),
    ("out_dtype", lambda: sj.matmul(jnp.ones((2, 4)), NM, out_dtype=object())),
    ("forget", lambda: unlearning.unlearning_report((X, None), (X, SIX), (X, SIX))),
    ("curve", lambda: sj.reporting.plot_reliability({"a": 1.0})),
    ("labels .* must agree", lambda: mapped(labels=SIX[:1])),
    ("X .* must agree", lambda: solve.dictionary_step(jnp.eye(3), X, X[:2], 1.0)),
    ("codes", lambda: receptive_fields.active_units(jnp.float32(1))),
    ("others .* must agree", lambda: unlearning.membership_attack(X, X[:, :2], X)),
    ("shift", lambda: dag.logdet_acyclicity(jnp.zeros((2, 2)), -1.0)),
    ("weights", lambda: dag.logdet_acyclicity(jnp.zeros((2, 3)))),
    ("scale", lambda: dag.sample_sem(jnp.eye(3) * 0, 4, jnp.ones(2), key=KEY)),
    ("pattern", lambda: sj.formats.compress_matrix("2:4", X, X > 0)),
    ("w must be", lambda: sj.formats.multiply("text", X)),
    ("x must be", lambda: sj.kernels.explain("text", NM)),
    ("bias", lambda: sj.matmul(jnp.ones((2, 4)), NM, bias=jnp.ones((3, 1, 4)))),
    ("precision", lambda: sj.matmul(jnp.ones((2, 4)), NM, precision=object())),
    ("steps", lambda: search.Stage(-1, SGD)),
    ("optimizer", lambda: search.Stage(1, optax.sgd)),
    ("opt_state", lambda: search.bilevel_gradient(
        lambda w, a: w, lambda w, a: w, jnp.ones(()), 1.0, SGD, optax.adam(1.0).init(X))),
    ("values", lambda: sara.write_back(P, {"kernel": jnp.ones(3)}, AT)),
    ("values", lambda: sara.select_gradients(P, {"other": jnp.ones(2)}, AT)),
    ("indices", lambda: sara.gather_values(P, {"kernel": X})),
    ("not booleans", lambda: sj.metrics.mask_change(P, P)),
    ("history", lambda: sj.metrics.flip_rate([nan, {"kernel": X > 0}])),
    ("trees", lambda: sj.recipes.soup_geometry([P, nan])),
    ("operator", lambda: solve.operator_norm("text", X[0])),
    ("lower", lambda: prox.box([], 1.0)),
    ("n must be at least 0", lambda: prox.nm(-1, 4)),
    ("first", lambda: sj.masks.uniform_plus(P, 0.5, first="zz")),
    ("platforms", lambda: sj.kernels.implement("matmul", type(NM), "own", platforms=["abacus"])),
    ("platform", lambda: sj.kernels.lowering_for("abacus")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises((ValueError, TypeError), match=name):
        call()


def test_values_that_fit_are_taken():
    assert prox.box(-np.inf, np.ones(3)).lower == -np.inf
    assert sj.formats.compress_matrix(sj.NM(2, 4), jnp.ones((4, 3)), jnp.ones((4, 3), bool) & False)
    assert sj.matmul(jnp.ones((2, 4)), NM, bias=jnp.ones((2, 1))).shape == (2, 4)
    assert sj.reporting.bytes_of((4, 4), "bfloat16") == sj.reporting.bytes_of((4, 4), np.float16)
    assert sj.formats.compress_matrix.register is not None


def test_lists_are_taken_as_arrays():
    rows = [[1.0] * 4, [0.0] * 4, [2.0] * 4, [0.0] * 4]
    found = sj.formats.NMArray.fromdense(rows, 2, 4)  # pyright: ignore[reportArgumentType]
    assert found.todense().tolist() == rows
    assert sj.formats.unit_major(rows, 1).shape == (4, 1, 4)  # pyright: ignore
    assert activation_sparsity.reuse_ratio(rows) == 0  # pyright: ignore[reportArgumentType]


def test_variables_of_models_are_taken_as_their_values():
    kernel = nnx.Linear(8, 4, rngs=nnx.Rngs(0)).kernel
    expected = sj.formats.NMArray.fromdense(kernel[...], 2, 4).values
    found = jax.jit(lambda kernel: sj.formats.NMArray.fromdense(kernel, 2, 4).values)
    assert (found(kernel) == expected).all()
    assert (solve.lasso(kernel, jnp.ones(8), nnx.Variable(jnp.array(9.0))).value == 0).all()


def test_arrays_that_change_in_place_are_compared_as_they_were():
    def checkpoints():
        tree = {"w": np.zeros(4)}
        for _ in range(3):
            yield tree
            tree["w"] += [0, 0, 1, 2]

    assert update_partition(checkpoints()) == (0.5, 0.0, 0.5)


def test_layers_are_numbered_by_the_end_of_their_names():
    before = {f"conv2d_{i}": {"kernel": jnp.zeros(2)} for i in range(2)}
    after = {"conv2d_0": {"kernel": jnp.ones(2)}, "conv2d_1": before["conv2d_1"]}
    assert update_sparsity(before, after).per_layer == {0: 0.0, 1: 1.0}


def test_a_sequence_of_arrays_is_not_stacked():
    @checked()
    def lengths(
        parts: Sequence[Float[Array, "..."]],
        pair: tuple[Float[Array, "..."], ...],
        x: Float[Array, " m"],
    ):
        return [p.shape for p in (*parts, *pair)], x.shape

    parts = [jnp.ones(2), jnp.ones(3)]
    assert lengths(parts, tuple(parts), [1.0, 2.0]) == ([(2,), (3,), (2,), (3,)], (2,))
    with pytest.raises(TypeError, match="parts must be a sequence, each an array"):
        lengths(["a"], (), [1.0])


FOUR = jnp.arange(4.0) + 1
INSIDE_JIT = {
    "flops_loss": lambda: retrieval.flops_loss(X[:, :2], FOUR[:2]),
    "ndcg": lambda: retrieval.ndcg(SIX[None], SIX[None, :1], jnp.ones((1, 1))),
    "snr": lambda: bayes.snr(FOUR, FOUR),
    "masked_step": lambda: unlearnable.masked_step(
        X[None, ..., None] / 99, X[None, ..., None], X[None, ..., None] / 99, eps=1.0, step=0.1
    ),
    "firm_threshold": lambda: prox.firm_threshold(X, FOUR[:3], FOUR[:3] + 1),
    "multi_information": lambda: jepa.multi_information(jnp.diag(FOUR), SIX[:4]),
    "label_noise": lambda: activation_sparsity.label_noise(SIX, 0.5, 3, key=KEY),
    "input_noise": lambda: activation_sparsity.input_noise(FOUR / 9, "gaussian", 1, key=KEY),
    "accept_length": lambda: activation_sparsity.accept_length(X, SIX[:4], 0.1),
    "uniform_soup": lambda: sj.recipes.uniform_soup([P, P]),
    "sample_sem": lambda: dag.sample_sem(jnp.triu(jnp.ones((3, 3)), 1), 2, key=KEY),
}


@pytest.mark.parametrize("name", INSIDE_JIT)
def test_known_arrays_are_checked_inside_jit_too(name):
    """They are constants there, but what JAX computes of them is traced."""
    found = jax.jit(lambda z: (INSIDE_JIT[name](), z))(0.0)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, INSIDE_JIT[name]()
    )
