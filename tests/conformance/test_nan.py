"""NaN never gives a good number: the result is NaN, or an error where NaN would decide."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import metrics, prox
from sparsejax.contrib import (
    activation_sparsity,
    bayes,
    dag,
    iso_flop,
    receptive_fields,
    retrieval,
    sara,
    search,
    unlearnable,
    unlearning,
    unmixing,
    update_sparsity,
)
from tests.conformance.test_transformations import MEMBERS

NAN, KEY = jnp.nan, jax.random.key(0)
PARAMS = {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2)}
LOST = jax.tree.map(lambda w: w * NAN, PARAMS)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.5))
ROW = jnp.array([NAN, 1.0])

SKIPPING = sj.formats.Skipping(jnp.ones((2, 3)))
GATES = {
    "of inputs": activation_sparsity.InputGate(sj.select.TopK(1)),
    "of activations": activation_sparsity.ActivationGate(sj.select.Threshold(0.1)),
    "of neurons": activation_sparsity.NeuronGate(jnp.full(2, 0.5)),
    "of the largest neurons": activation_sparsity.NeuronTopK(1),
}


def top_k_mlp(**how):
    layer = activation_sparsity.TopKMLP(2, 4, 1, rngs=nnx.Rngs(0), **how)
    layer.first.kernel[...] = layer.first.kernel[...].at[0, 3].set(NAN)
    return layer(jnp.ones((1, 2)))


OUT = {
    "nuclear": lambda: prox.nuclear(1.0).value(jnp.eye(3).at[0, 0].set(NAN)),
    "nuclear of infinity": lambda: prox.nuclear(1.0).value(jnp.eye(3).at[0, 0].set(jnp.inf)),
    "usage": lambda: prox.sef(1).usage(ROW)[0],
    "fenchel_young_gap": lambda: prox.fenchel_young_gap(prox.sef(1), ROW, jnp.ones(2)),
    "traced strength": lambda: jax.jit(lambda s: prox.l0(s).prox(jnp.ones(2)))(NAN),
    "traced bound": lambda: jax.jit(lambda b: prox.box(0.0, b).prox(jnp.ones(2)))(NAN),
    "step of a conjugate": lambda: prox.conjugate(prox.l1(1.0)).prox(jnp.ones(2), NAN),
    "essential_sparsity": lambda: metrics.essential_sparsity([0.0, 0.5], [NAN, 1.0]),
    "calibration": lambda: jax.jit(metrics.expected_calibration_error)(
        jnp.full((2, 2), NAN), jnp.array([0, 1])
    ),
    "max_softmax_probability": lambda: metrics.max_softmax_probability(ROW),
    "fgsm": lambda: metrics.fgsm(lambda x: NAN * x.sum(), jnp.ones(2), 0.1, bounds=(0.0, 1.0)),
    "gradient_noise": lambda: metrics.gradient_noise({"kernel": ROW[None]}),
    "energy_threshold": lambda: sj.masks.energy_threshold(ROW),
    "energy_threshold of infinity": lambda: sj.masks.energy_threshold(jnp.array([jnp.inf, 1.0])),
    **{
        f"gate {name}": lambda gate=gate: gate("", lambda y: y, ROW)[:1]
        for name, gate in GATES.items()
    },
    "gated_products": lambda: sj.kernels.gated_products(
        jnp.array([[NAN, 1.0]]), [SKIPPING], [(jnp.ones(2), jnp.float32(0.5))], implementation="xla"
    )[0],
    "native gated_products": lambda: sj.kernels.gated_products(
        jnp.array([[NAN, 1.0]]),
        [SKIPPING],
        [(jnp.ones(2), jnp.float32(0.5))],
        implementation=["native", "xla"],
    )[0],
    "TopKMLP": lambda: top_k_mlp(gather=False),
    "TopKMLP, gathered": lambda: top_k_mlp(gather=True),
    "update_rank": lambda: update_sparsity.update_rank(PARAMS, LOST)["kernel"],
    "hoyer_sparsity": lambda: unmixing.hoyer_sparsity(ROW),
    "hoyer_sparsity of one": lambda: unmixing.hoyer_sparsity(ROW[:1]),
    "spectral_angle": lambda: unmixing.spectral_angle(ROW, jnp.ones(2)),
    "active_units": lambda: receptive_fields.active_units(ROW),
    "circular_variance": lambda: receptive_fields.circular_variance(ROW, jnp.array([0.0, 1.0])),
    "orientation_tuning": lambda: receptive_fields.orientation_tuning(
        jnp.full((16, 1), NAN), jnp.zeros(1), jnp.array([0.5])
    ),
}


@pytest.mark.parametrize("name", OUT)
def test_nan_in_nan_out(name):
    assert np.all(np.isnan(OUT[name]()))


def stages(**losses):
    loss = lambda p, batch: NAN * jnp.sum(batch @ p["kernel"])  # noqa: E731
    stage = search.Stage(2, optax.sgd(0.1))
    return search.score_prune(PARAMS, loss, PLAN, jnp.ones((4, 4)), key=KEY, prune=stage)


REFUSED = {
    "masks: 4 scores of kernel": lambda: PLAN.masks(sj.masks.saliency(PARAMS, LOST)),
    "masks: 4 scores of kernel .*": stages,
    "masks: .* of b": lambda: sj.plan(
        {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}, {".": sj.Unstructured(0.25)},
        allocate=sj.masks.joint,
    ).masks({"a": jnp.ones((2, 2)), "b": jnp.full((2, 2), NAN)}),
    "masks: fraction": lambda: PLAN.masks(PARAMS, NAN),
    "topk: 2 scores": lambda: sj.masks.topk(jnp.full((4, 2), NAN), sj.NM(1, 4)),
    "topk: fraction": lambda: sj.masks.topk(jnp.ones(4), sj.Unstructured(0.5), NAN),
    "above: 1 scores": lambda: sj.masks.above(ROW * NAN),
    "above: threshold": lambda: sj.masks.above(jnp.ones(2), NAN),
    "iterative": lambda: sj.masks.iterative(lambda p: LOST, PLAN, PARAMS, rounds=2),
    "update_mask: tol": lambda: sj.masks.update_mask(PARAMS, PARAMS, NAN),
    "masks: 4 scores": lambda: sj.recipes.nested_masks(LOST, PLAN, [0.5]),
    "prune_remaining": lambda: sj.recipes.prune_remaining(PLAN, LOST, PLAN.full_masks(PARAMS), 1.0),
    "greedy_soup": lambda: sj.recipes.greedy_soup([PARAMS, PARAMS], lambda p: NAN),
    "knee": lambda: metrics.knee([0.0, 0.5, 1.0], [1.0, NAN, 0.0]),
    "abrupt_change": lambda: metrics.abrupt_change([0.0, NAN, 3.0, 4.0]),
    "sparsities": lambda: metrics.essential_sparsity([0.0, NAN], [1.0, 1.0]),
    "probabilities": lambda: metrics.reliability(jnp.full((2, 2), NAN), jnp.array([0, 1])),
    "live_units: incoming": lambda: metrics.live_units(ROW[None]),
    "live_units: bias": lambda: metrics.live_units(jnp.ones((1, 2)), ROW),
    "not booleans": lambda: metrics.mask_similarity(ROW, jnp.ones(2)),
    "threshold_to_dag": lambda: dag.threshold_to_dag(jnp.full((2, 2), NAN)),
    "genotype": lambda: search.genotype(jnp.full((2, 2), NAN), ["a", "b"], 1),
    "random_search": lambda: search.random_search(
        PARAMS, lambda p, m: jnp.asarray(NAN), lambda k: PLAN.masks(PARAMS), key=KEY, candidates=2
    ),
    "match_flops": lambda: iso_flop.match_flops(lambda s: float("nan"), 300),
    "unmixing_errors": lambda: unmixing.unmixing_errors(
        jnp.full((2, 2), NAN), jnp.eye(2), jnp.eye(2), jnp.eye(2)
    ),
    "sample_sem: weights": lambda: dag.sample_sem(jnp.full((2, 2), jnp.inf), 3, key=KEY),
    "acyclic": lambda: dag.sample_sem(jnp.full((2, 2), 0.5), 3, key=KEY),
    "threshold_to_dag: weights .* infinity": lambda: dag.threshold_to_dag(
        jnp.full((2, 2), jnp.inf)
    ),
    "prune_vectors: w .* infinity": lambda: retrieval.prune_vectors(
        jnp.array([jnp.inf, 1.0]), 0.1
    ),
    "flops_loss: idf .* infinity": lambda: retrieval.flops_loss(
        jnp.ones((1, 2)), jnp.array([jnp.inf, 1.0])
    ),
    "deviations >= 0": lambda: bayes.snr(jnp.ones(2), -jnp.ones(2)),
    r"masked_step: images must be in \[0, 1\]": lambda: unlearnable.masked_step(
        jnp.zeros((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1)), jnp.full((1, 1, 2, 1), 255.0),
        eps=0.1, step=0.1,
    ),
    "expected_scale: samples .* infinity": lambda: sj.sae.expected_scale(
        jnp.array([[jnp.inf, 1.0]])
    ),
    "expected_scale: samples .* all be 0": lambda: sj.sae.expected_scale(jnp.zeros((2, 2))),
    "allocation_at: trajectory": lambda: activation_sparsity.allocation_at(
        activation_sparsity.greedy_allocation(lambda s: float(s.sum()), [1.0])._replace(
            sparsity=np.array([NAN])
        ), 0.5,
    ),
    "robustness: predict returns NaN": lambda: activation_sparsity.robustness(
        lambda x: jnp.where(x == 1, 0.5, NAN), jnp.ones((2, 2)), jnp.array([0, 1]), key=KEY
    ),
    "essential_sparsity: eps": lambda: metrics.essential_sparsity([0.0, 0.5], [1.0, 1.0], eps=NAN),
    "error_at_activity: target": lambda: receptive_fields.error_at_activity(
        jnp.array([4.0, 16.0]), jnp.array([0.4, 0.1]), NAN
    ),
    "alpha": lambda: unlearning.fisher_forgetting(
        PARAMS, None, lambda p, x: x @ p["kernel"], jnp.ones((3, 4)), key=KEY, alpha=-1.0
    ),
    "sara: the loss is nan": lambda: sara.sara(
        PARAMS, lambda p, key: NAN * jnp.sum(p["kernel"]), key=KEY, theta=3.0, steps=2,
        learning_rate=1e-3,
    ),
    "prune: schedule|masks: fraction": lambda: run(
        sj.optim.prune(PLAN, lambda step: step * NAN), jit=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_nan_that_would_decide_is_refused(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


def run(tx, jit=True):
    state = tx.init(PARAMS)
    return (jax.jit(tx.update) if jit else tx.update)(PARAMS, state, PARAMS)[0]["kernel"]


late = lambda step: jnp.where(step > 0, NAN, 0.1)  # noqa: E731
SCHEDULES = {
    "prune": sj.optim.prune(PLAN, lambda step: step * NAN),
    "prune by score": sj.optim.prune(PLAN, score=lambda p: jax.tree.map(lambda w: w * NAN, p)),
    "track_masks": sj.optim.track_masks(PLAN, late),
    "drop_and_grow": sj.optim.drop_and_grow(
        optax.sgd(0.1), PLAN, key=KEY, when=lambda step: step >= 0, fraction=lambda s: s * NAN
    ),
    "movement": sj.optim.movement(PLAN, late),
    "learning rate": sj.optim.movement(PLAN, learning_rate=lambda step: step * NAN),
    "soft_movement": sj.optim.soft_movement(PLAN, late),
    "iterative_shrinkage": optax.chain(
        sj.optim.iterative_shrinkage(PLAN, lambda step: step * NAN, prune_steps=5)
    ),
    "proximal_sgd": sj.optim.proximal_sgd(lambda step: step * NAN, prox.l0(0.5)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_nan_does_not_train_a_dense_network(name):
    assert name in MEMBERS or name in ("learning rate", "prune by score")
    assert jnp.isnan(run(SCHEDULES[name])).any()
