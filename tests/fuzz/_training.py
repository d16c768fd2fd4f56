"""Rows of optim, solve, recipes and reporting."""

# ruff: noqa: E501

import tempfile

import jax.numpy as jnp
import optax

import sparsejax as sj
from sparsejax import optim, prox, recipes, reporting, solve

from ._core import HISTORY, KEY, L1, LAYER, PLAN, M, P
from ._values import row

SGD = optax.sgd(0.1)
A = 2 * jnp.eye(4)
Y = jnp.array([4.0, 1.0, 0.0, -2.0])
W0 = jnp.zeros(4)
DATA = {"x": jnp.ones((4, 4)), "y": jnp.ones((4, 3))}


def loss(p, batch):
    return jnp.mean((batch["x"] @ p["kernel"] + p["bias"] - batch["y"]) ** 2)


def train(p, masks, key):
    return sj.masks.apply_masks(p, masks)


def smooth(w):
    return jnp.sum((w - Y) ** 2) / 2


LOOP = {"callback": lambda done: None, "resume": None, "progress": False}
LASSO = {"X": A, "y": Y, "strength": 0.5}
DONE = recipes.Progress(P, M, 1, {})
REPORT = reporting.report(P, M)
PAGE = f"{tempfile.mkdtemp()}/report.html"
FIT = {"tol": 1e-4, "max_steps": 5, "throw": False}

ROWS = [
    row(optim.acdc, optimizer=SGD, plan=PLAN, phases=((2, 4),)),
    row(optim.acdc_phases, steps=100, warmup=0.1, length=0.05, last=0.15),
    row(optim.add_penalty, penalty=L1, keep=None),
    row(optim.add_pruned_decay, plan=PLAN, strength=2e-4),
    row(optim.drop_and_grow, optimizer=SGD, plan=PLAN, key=KEY, when=lambda t: t > 0,
        fraction=0.3, drop=lambda p, g, k: p, grow=lambda p, g, k: p),
    row(optim.every_until, every=10, end=100),
    row(optim.iterative_shrinkage, plan=PLAN, alpha=0.95, prune_steps=10, every=1),
    row(optim.keep_masked, masks=M),
    row(optim.mask_decay_schedule, kind="linear", rate=0.1, begin=0, end=10),
    row(optim.movement, plan=PLAN, schedule=1.0, learning_rate=0.01),
    row(optim.proximal, penalty=L1, learning_rate=0.1),
    row(optim.proximal_adam, learning_rate=0.1, penalty=L1, b1=0.9, b2=0.999, eps=1e-8),
    row(optim.proximal_sgd, learning_rate=0.1, penalty=L1, momentum=0.9, nesterov=False),
    row(optim.prune, plan=PLAN, schedule=1.0, every=1, begin=0, end=10, score=sj.masks.magnitude),
    row(optim.rigl, optimizer=SGD, plan=PLAN, key=KEY, end=10, every=2, drop_fraction=0.3),
    row(optim.sparse_evolution, optimizer=SGD, plan=PLAN, key=KEY, end=10, every=2,
        drop_fraction=0.3),
    row(optim.soft_movement, plan=sj.plan(P, sj.Unstructured(0.5)), threshold=0.1, strength=0.0, learning_rate=0.01),
    row(optim.stage_schedule, stages=2, total=100, dense=0, fine_tune=0),
    row(optim.subset, optimizer=SGD, masks=M, compact=False),
    row(optim.top_kast, optimizer=SGD, plan=PLAN, backward=sj.plan(P, sj.Unstructured(0.25)),
        every=10, exploration=1e-4),
    row(optim.track_masks, plan=PLAN, schedule=1.0, pruned_scale=0.5),
    row(optim.get_masks, opt_state=optim.prune(PLAN).init(P)),
    row(solve.basis_pursuit, W=jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]), w=jnp.ones(2),
        rtol=1e-6),
    row(solve.dictionary_learning, batches=jnp.ones((2, 3, 4)), atoms=4, penalty=L1, key=KEY,
        learning_rate=0.5, max_steps=3, tol=0.0, w0=None, throw=False, chunk=2, **LOOP),
    row(solve.dictionary_step, dictionary=jnp.eye(2), X=jnp.ones((1, 2)), codes=jnp.ones((1, 2)),
        learning_rate=1.0),
    row(solve.duality_gap, **LASSO, w=W0, weights=jnp.ones(4), positive=False, l2=0.0),
    row(solve.enet, **LASSO, ratio=0.5),
    row(solve.group_lasso, **LASSO, groups=[[0, 1], [2, 3]], weights=jnp.ones(2), w0=W0, **FIT),
    row(solve.iht, smooth=smooth, projection=prox.hard_k(2), w0=W0, step=0.5, **FIT),
    row(solve.lasso, **LASSO, w0=W0, working_set=4, weights=jnp.ones(4), positive=False, l2=0.0,
        implementation=None, **FIT),
    row(solve.lasso_host, **LASSO, w0=W0, weights=jnp.ones(4), positive=False, l2=0.0,
        loss="huber", delta=1.35, intercept=False, groups=[0, 1, 2, 3], implementation=None,
        **FIT),
    row(solve.lasso_path, X=A, y=Y, strengths=jnp.array([2.0, 1.0]), n_strengths=2, eps=0.1,
        throw=False),
    row(solve.lasso_path_host, X=A, y=Y, strengths=jnp.array([2.0, 1.0]), n_strengths=2, eps=0.1,
        weights=jnp.ones(4), positive=False, l2=0.0, implementation=None, **FIT),
    row(solve.logistic_lasso, X=A, y=jnp.array([1.0, -1.0, 1.0, -1.0]), strength=0.1, w0=W0, **FIT),
    row(solve.match_strength, run=lambda s: 10 / s, low=0.1, high=100.0, target=5.0, tol=0.01,
        max_runs=30),
    row(solve.max_strength, X=A, y=Y, weights=jnp.ones(4), positive=False),
    row(solve.multitask_lasso, X=A, Y=A, strength=0.5, w0=A, **FIT),
    row(solve.operator_norm, operator=A, like=W0, steps=5),
    row(solve.penalized_regression, X=A, y=Y, penalty=L1, loss="squared", w0=W0, **FIT),
    row(solve.proximal_gradient, smooth=smooth, penalty=L1, w0=W0, step=0.5, operator=None,
        accelerate=True, monotone=None, criterion=None, **FIT),
    row(solve.sparse_code, X=A, dictionary=A, penalty=L1, step=0.1, max_steps=3, tol=0.0, w0=A,
        throw=False),
    row(recipes.greedy_soup, trees=[P, P], score=lambda p: 1.0, allow_union=False),
    row(recipes.iterative_prune, params=P, train=train, plan=PLAN, key=KEY, rounds=1,
        rewind="none", rewind_step=0, trained=True, score=None, evaluate=None, **LOOP),
    row(recipes.nested_masks, scores=P, plan=PLAN, sparsities=[0.25, 0.75]),
    row(recipes.prune_remaining, plan=PLAN, scores=P, masks=PLAN.full_masks(P), progress=0.5),
    row(recipes.retraining_schedule, kind="llr", steps=10, history=[0.1] * 50, warmup=0, drop=None,
        pruned=None),
    row(recipes.sequential_prune, model=LAYER, batches=[jnp.ones((8, 4))],
        plan=sj.plan(LAYER, sj.NM(2, 4)), method="sparsegpt", blocks=None, call=None, block=128,
        damping=0.01, **LOOP),
    row(recipes.soup_geometry, trees=[P, P]),
    row(recipes.sparse_model_soup, params=P, train=train,
        plan=PLAN, key=KEY, phases=1, copies=2, settings=None, soup="uniform", evaluate=None,
        recalibrate=None, parallel="loop", **LOOP),
    row(recipes.sparsegpt, params={"kernel": P["kernel"]}, inputs={"kernel": jnp.eye(4)},
        plan=sj.plan({"kernel": P["kernel"]}, sj.NM(2, 4)), block=128, damping=0.01),
    row(recipes.sparsity_sweep, params=P, evaluate=lambda p: 1.0, sparsities=(0.0, 0.5),
        rules=None, patterns=None, joint=True, allocate=None, score=None, finetune=None, seeds=1,
        key=KEY, **LOOP),
    row(recipes.ticket, progress=recipes.iterative_prune(P, train, PLAN, key=KEY, rounds=1)),
    row(recipes.train_masked, params=P, masks=M, loss=loss, optimizer=SGD, data=DATA, steps=2,
        key=KEY, batch_size=2, start=0, chunk=2, **LOOP),
    row(recipes.uniform_soup, trees=[P, P], weights=[1.0, 1.0], allow_union=False),
    row(reporting.advise, trained=True, training=False, hardware="gpu", sparsity=0.5,
        goal="speed"),
    row(reporting.bytes_of, mask=jnp.eye(4, dtype=bool), dtype=jnp.float32, format="dense",
        kept=None),
    row(reporting.fit_pattern, mask=jnp.eye(4, dtype=bool), axis=None, stacked=0),
    row(reporting.flops, model=LAYER, example=jnp.ones((1, 4)), masks=None, apply=None,
        positions=None),
    row(reporting.plot_masks, masks=M, columns=4),
    row(reporting.plot_reliability, curve=sj.metrics.reliability(
        jnp.array([[0.8, 0.2]]), jnp.array([0]))),
    row(reporting.plot_sparsity, report=PLAN),
    row(reporting.plot_training, history=HISTORY, metrics=None),
    row(reporting.plot_tradeoff, {"ylabel": "text", "baseline": "-1"}, curves={"a": {0.5: 0.9}},
        ylabel="accuracy", baseline=0.9),
    row(reporting.save_reports, {"path": "text"}, path=PAGE, reports={"a": REPORT}, figures=None),
    row(reporting.report, model=P, masks=M, plan=PLAN, example=None, apply=None, positions=None,
        history=HISTORY, training=None, opt_state=None, compiled=None, seeds=None),
    row(reporting.taxonomy, history=HISTORY, dense_weights=False),
    row(reporting.training_flops, kind="rigl", dense=1.0, sparse=0.1, steps=1, every=100,
        schedule=None, scoring=0.0),
]  # fmt: skip
