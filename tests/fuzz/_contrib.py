"""Rows of sparsejax.contrib."""

# ruff: noqa: E501

import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import (
    activation_sparsity,
    bandits,
    bayes,
    dag,
    hidden_states,
    iso_flop,
    jepa,
    linear_attention,
    lora_limits,
    multitask,
    private,
    random_support,
    receptive_fields,
    reprogramming,
    sara,
    search,
    sparse_attention,
    unlearnable,
    unlearning,
    unmixing,
    update_sparsity,
)

from ._core import GRAPH, KEY, LAYER, LLAMA, TOKENS, M, P
from ._training import DATA, LOOP, SGD, loss
from ._values import row

LINEAR = linear_attention.linear_attention_step(TOKENS, TOKENS, TOKENS)[1]
EYE, W = jnp.eye(3), jnp.array([0.1, 0.0, 1.0])
NET = bandits.sparse_net(3, 1, 0.5)
DAG = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
G = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
SAMPLES = jax.random.normal(KEY, (20, 3))
PICTURES = jax.random.uniform(KEY, (2, 2, 2, 1))
TOKENS_OF = jnp.ones((3, 4, 1))
VIT = jepa.PatchEncoder(4, 1, 4, 1, 1, rngs=nnx.Rngs(0))
GUESS = jepa.Predictor(4, 4, 4, 2, 1, 1, rngs=nnx.Rngs(0))
BAYES = bayes.BayesLinear(4, 2, rngs=nnx.Rngs(0))
BPLAN = sj.plan(BAYES, {r"mu$": sj.Unstructured(0.5)})
MECHANISM = private.moment_mechanism(3, 10, 1.0, 1e-6)
FAST = {"path": (0.1,), "shifts": (1.0,), "max_steps": (2,), "check_every": 2, "throw": False}
BOUNDS = {"epsilon": 1.0, "bound_x": 1.0, "bound_y": 1.0}
PIXELS = jnp.abs(jax.random.normal(KEY, (3, 12)))
IMAGE = jax.random.normal(KEY, (8, 8))
PROBABILITIES, CLASSES = jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([0, 1])
KERNEL = {"kernel": P["kernel"]}
KPLAN, KMASK = sj.plan(KERNEL, sj.Unstructured(0.5)), {"kernel": M["kernel"]}
STAGE = search.Stage(1, SGD)
AT = {"kernel": jnp.array([0, 3])}


IDS = np.array([[1, 2, 3]])
LAW = activation_sparsity.ActivationLaw("silu", 1.0, 0.0, 0.1, 0.4)
COUNTS = activation_sparsity.count_values(W)
STORED = sj.kernels.KeyBlocks.from_mask(np.eye(2) > 0, (2, 2))
CONFIG = sj.models.LlamaConfig(
    vocabulary=9, width=8, hidden=8, layers=1, heads=2, key_heads=1, head_size=4
)
EVICTING = {"capacity": 9, "window": 4, "kernel": 3, "local": 2, "sinks": 1, "prompt": 0.5}
HEADS = jax.random.normal(KEY, (4, 2, 3))
HIDDEN = np.array([True, True, True, False])
LORA = lora_limits.add_lora(KERNEL, 2, key=KEY)
TRAJECTORY = activation_sparsity.greedy_allocation(lambda s: float(s.sum()), [1.0, 2.0], step=0.5)


def nll(p, batch):
    return jnp.mean((batch["x"] @ p["kernel"] - batch["y"]) ** 2)


def logits(p, x):
    return x @ p["kernel"]


def sampler(key, task, n):
    x = jax.random.normal(key, (n, 4))
    return x, x[:, 0]


ROWS = [
    row(activation_sparsity.balanced_l1, active=SAMPLES[:2], used=2.0),
    row(activation_sparsity.beam_step, logits=SAMPLES[:2], scores=np.zeros(2, np.float32), stop=np.array([1]),
        temperature=0.6, sure=0.9),
    row(activation_sparsity.choose_decoder, dense=LLAMA, candidates={"other": LLAMA}, prompt=[1, 2], steps=1, rounds=1),
    row(activation_sparsity.fast_decoder, model=LLAMA, int8=False),
    row(activation_sparsity.input_noise, images=np.full((2, 2), 0.5, np.float32), kind="shot", severity=2, key=KEY),
    row(activation_sparsity.label_noise, labels=np.array([0, 1, 2]), fraction=0.5, classes=3, key=KEY),
    row(activation_sparsity.mlp_flops, width=4, hidden=8, active=2.0, gated=False, candidates=3.0),
    row(activation_sparsity.neuron_activity, model=LLAMA, batches=[IDS], where="gate$"),
    row(activation_sparsity.robustness, predict=lambda x: jax.nn.softmax(x), images=np.full((2, 3), 0.5, np.float32),
        labels=np.array([0, 1]), key=KEY),
    row(activation_sparsity.target_factor, sparsity=0.5, initial=0.1, growth=1.2),
    row(activation_sparsity.accept_length, logits=SAMPLES[:2], tokens=np.array([0, 1]), threshold=0.1, temperature=0.6),
    row(activation_sparsity.coarse_sparse, model=LLAMA, prompt=np.array([1, 2]), density=0.5),
    row(activation_sparsity.corrected_generate, full=LLAMA, sparse=LLAMA, prompt=[1, 2], steps=2, period=2,
        threshold=0.1, temperature=0.6, stop=(2,), width=1, sure=0.9, rewrite=True),
    row(activation_sparsity.effective_density, density=0.5, period=4, advance_length=2.0),
    row(activation_sparsity.fine_sparse, model=LLAMA, density=0.5, shared=False),
    row(activation_sparsity.griffin_scores, z=EYE),
    row(activation_sparsity.activation_law, law=LAW, tokens=np.ones(2)),
    row(activation_sparsity.cett, z=EYE, w_out=EYE, epsilon=0.5),
    row(activation_sparsity.cett_mask, z=EYE, w_out=EYE, epsilon=0.5),
    row(activation_sparsity.cett_threshold, z=EYE, w_out=EYE, target=0.5, candidates=9, quantile=0.9),
    row(activation_sparsity.fit_activation_law, tokens=np.arange(1.0, 7), ratios=np.arange(6) / 9, kind="silu"),
    row(activation_sparsity.perplexity_sparsity, model=LLAMA, batches=[IDS], rise=0.1, tol=0.6, where="down$"),
    row(activation_sparsity.activation_locality, logits=EYE, segments=np.array([0, 0, 1]), steepness=100.0),
    row(activation_sparsity.adaptive_factor, initial=0.1, warmup=2, every=2, least=1.025, most=4.0, interpolate=True),
    row(activation_sparsity.chunk_sparsification, normed=EYE, valid=np.array([True, True, False]), chunk=3, epsilon=1e-5),
    row(activation_sparsity.chunk_sparsity, weights=EYE, length=2, valid=np.array([True, True, False])),
    row(activation_sparsity.reuse_ratio, weights=EYE),
    row(activation_sparsity.activation_counts, model=LLAMA, batches=[IDS], where="gate$",
        activation=jax.nn.silu),
    row(activation_sparsity.activation_gates, model=LLAMA, sparsity=0.5, where="gate$",
        activation=jax.nn.silu),
    row(activation_sparsity.allocation_at, trajectory=TRAJECTORY, target=0.5),
    row(activation_sparsity.block_sparsities, model=LLAMA, batches=[IDS], sparsity=0.5, weighted="", step=0.9),
    row(activation_sparsity.count_values, samples=W, limit=9),
    row(activation_sparsity.greedy_allocation, error=lambda s: 0.0, sizes=[1.0, 2.0], target=0.5, step=0.5),
    row(activation_sparsity.input_counts, model=LLAMA, batches=[IDS], where="", weighted=""),
    row(activation_sparsity.input_gates, model=LLAMA, sparsity=0.5, where="", weighted="", dense_prefix=0.1),
    row(activation_sparsity.input_scores, x=W, norms=W),
    row(activation_sparsity.kernel_norms, kernel=EYE),
    row(activation_sparsity.orthogonalize, model=LLAMA),
    row(activation_sparsity.pooled_quantile, counts=COUNTS, q=0.5),
    row(activation_sparsity.skip_inputs, model=LLAMA, where="", int8=False),
    row(bandits.exhaustive_bandit, X=EYE, reward=W, candidates=NET),
    row(bandits.g_optimal, X=EYE, tol=0.01, max_steps=10, throw=False),
    row(bandits.lasso_bandit, X=EYE, reward=W, s=1, n_queries=2, eps=0.0, key=KEY, refit=True,
        tol=1e-4, max_steps=10, throw=False),
    row(bandits.ols_bandit, X=EYE, reward=W, tol=0.01, max_steps=10, throw=False),
    row(bandits.parameter_elimination, X=EYE, reward=W, candidates=NET, eps=0.1, h=0.5,
        eps_stat=0.0, max_queries=5, throw=False),
    row(bandits.sparse_net, d=3, s=1, h=0.5, ball=False),
    row(bandits.sphere_net, s=1, h=0.5),
    row(bayes.GaussianKernel, mu=EYE, sigma=0.1, prior_std=1.0, mask=EYE > 0),
    row(bayes.BayesLinear, in_features=4, out_features=2, prior_std=1.0, sigma=0.1,
        mask=np.ones((4, 2), bool), use_bias=True, kernel_init=nnx.initializers.he_normal(),
        rngs=nnx.Rngs(0)),
    row(bayes.BayesConv, in_features=1, out_features=2, kernel_size=(3, 3), strides=(1, 1),
        padding="SAME", prior_std=1.0, sigma=0.1, use_bias=True,
        kernel_init=nnx.initializers.he_normal(), rngs=nnx.Rngs(0)),
    *(row(f, mu=W, sigma=W) for f in (bayes.e_abs, bayes.snr, bayes.snr_abs)),
    row(bayes.e_exp_abs, mu=W, sigma=W, rate=1.0),
    row(bayes.kl, model=BAYES),
    row(bayes.draw, model=BAYES, key=KEY),
    row(bayes.predict, model=BAYES, x=jnp.ones((2, 4)), samples=2, key=KEY),
    row(bayes.set_masks, model=BAYES, masks={"kernel": {"mu": jnp.ones((4, 2), bool)}}),
    row(bayes.ssvi, optimizer=SGD, plan=BPLAN, key=KEY, end=10, every=2, drop_fraction=0.3,
        criterion=bayes.snr, new_sigma=0.1),
    row(bayes.train_ssvi, model=BAYES, plan=BPLAN, nll=lambda m, b, k: m(b, k).sum(),
        optimizer=SGD, data=jnp.ones((4, 4)), steps=2, key=KEY, batch_size=2, every=1,
        drop_fraction=0.3, end_fraction=0.75, criterion=bayes.snr, new_sigma=0.1, kl_scale=0.1,
        warmup=0.5, chunk=1, **LOOP),
    row(dag.colide, samples=SAMPLES, strength=0.05, equal_variance=True, precomputed=False,
        threshold=0.3, learning_rate=3e-4, scale_floor=0.01, tol=1e-3, **FAST, **LOOP),
    row(dag.dagma, samples=SAMPLES, strength=0.05, precomputed=False, threshold=0.3,
        learning_rate=3e-4, tol=1e-3, **FAST, **LOOP),
    row(dag.concomitant_lasso, X=SAMPLES, y=SAMPLES[:, 0], strength=0.1, floor=0.01, w0=W,
        tol=1e-4, max_steps=10, throw=False),
    row(dag.cpdag, graph=G),
    *(row(f, estimate=G, truth=G) for f in (dag.edge_scores, dag.shd, dag.shd_cpdag, dag.sid)),
    row(dag.edge_weights, adjacency=DAG != 0, low=0.5, high=2.0, key=KEY),
    row(dag.erdos_renyi_dag, nodes=4, edges=3, key=KEY),
    row(dag.scale_free_dag, nodes=4, per_node=1, key=KEY),
    *(row(f, weights=DAG) for f in (dag.expm_acyclicity, dag.polynomial_acyclicity)),
    row(dag.logdet_acyclicity, weights=DAG, shift=1.0),
    row(dag.is_acyclic, adjacency=DAG),
    row(dag.is_m_matrix, matrix=EYE, tol=0.0),
    row(dag.noise_scale, residual=SAMPLES, floor=0.0),
    row(dag.sample_sem, weights=DAG, n_samples=5, scale=1.0, noise=jax.random.normal, key=KEY),
    row(dag.threshold_to_dag, weights=DAG, threshold=0.3),
    *(row(f, h=SAMPLES, mask=SAMPLES[:, 0] > 0)
      for f in (hidden_states.normalise, hidden_states.matrix_entropy)),
    row(hidden_states.matrix_nuclear_norm, h=SAMPLES, mask=SAMPLES[:, 0] > 0, top=2,
        per_token=True),
    row(hidden_states.nuclear_norm, h=SAMPLES, mask=SAMPLES[:, 0] > 0, per_token=True),
    row(hidden_states.score_dataset, apply=lambda ids: EYE[ids], batches=[IDS[:, :2]],
        score=hidden_states.matrix_nuclear_norm, valid=lambda ids: ids > 0),
    row(iso_flop.doped_rank, inputs=16, outputs=16, sparsity=0.5, taps=1),
    row(iso_flop.factorized_rank, inputs=16, outputs=16, sparsity=0.5, taps=1, first_only=False),
    row(iso_flop.log2_masks, size=4, kept=2),
    row(iso_flop.match_flops, flops=lambda s: 100 + 400 * (1 - s), budget=300.0, tol=1e-3),
    row(iso_flop.parallel_branches, sparsity=0.5),
    row(iso_flop.wide_width, width=16, sparsity=0.5),
    row(iso_flop.Parallel, layer=LAYER, sparsity=0.75, rngs=nnx.Rngs(1)),
    row(iso_flop.Factorized, layer=LAYER, sparsity=0.5, activation=jax.nn.relu, rngs=nnx.Rngs(1)),
    row(iso_flop.Doped, layer=LAYER, sparsity=0.5, rngs=nnx.Rngs(1)),
    row(jepa.GroupedLinear, latents=3, groups=2, group_dim=2, rngs=nnx.Rngs(0)),
    row(jepa.Predictor, patches=4, width=4, latents=4, groups=2, layers=1, heads=1,
        rngs=nnx.Rngs(0)),
    row(jepa.PatchEncoder, patches=4, patch_dim=1, width=4, layers=1, heads=1, rngs=nnx.Rngs(0)),
    row(jepa.block_masks, grid=(2, 2), target=(1, 1), targets=1, context=(2, 2), key=KEY),
    row(jepa.features, encoder=VIT, patches=TOKENS_OF),
    row(jepa.groups_per_latent, kernel=jnp.ones((2, 3, 2))),
    row(jepa.jepa_loss, encoder=VIT, target=VIT, predictor=GUESS, patches=TOKENS_OF,
        blocks=jepa.Blocks(jnp.zeros((3, 1), int), jnp.ones((3, 1, 1), int))),
    row(jepa.multi_information, covariance=EYE, groups=np.array([0, 0, 1])),
    row(jepa.patches_of, images=PICTURES, size=1),
    row(jepa.row_sparsity, kernel=jnp.ones((2, 3, 2))),
    row(jepa.train_jepa, encoder=VIT, predictor=GUESS, patches=TOKENS_OF, grid=(2, 2),
        block=(1, 1), steps=1, key=KEY, blocks=1, strength=0.1, learning_rate=0.01,
        weight_decay=0.1, momentum=0.9, batch_size=2, chunk=1, **LOOP),
    row(multitask.active_mtl, sampler=sampler, target=(jnp.ones((30, 4)), jnp.ones(30)), tasks=2,
        k=1, budget=40, key=KEY, method="l1", n0=10, n_min=0, n_rounds=1, strength=0.1),
    row(multitask.allocate_samples, relevance=W, total=10, power=1.0, n_min=0, costs=jnp.ones(3)),
    row(multitask.design_value, W=EYE, w=W, shares=jnp.ones(3)),
    row(multitask.multitask_als, grams=jnp.stack([EYE] * 2), moments=jnp.ones((2, 3)), k=1, steps=2),
    row(multitask.task_relevance, W=EYE, w=W, kind="l1", strength=0.1, costs=jnp.ones(3),
        tol=1e-6, throw=False),
    row(private.clip_entries, x=W, bound=1.0),
    row(private.clip_l2, x=W, radius=1.0),
    row(private.gaussian_delta, epsilon=1.0, mu=1.0),
    row(private.gaussian_sigma, sensitivity=1.0, epsilon=1.0, delta=1e-5, method="analytic"),
    row(private.l2_randomizer, v=W / 2, radius=1.0, epsilon=1.0, key=KEY),
    row(private.ldp_iht, X=SAMPLES / 9, y=SAMPLES[:, 0] / 9, key=KEY, k=1, **BOUNDS, rounds=2,
        step=1.0, kept=1, norm_bound=1.0, out_of_range="refuse", throw=False),
    row(private.moment_mechanism, features=3, users=10, epsilon=1.0, delta=1e-6, radius=1.0,
        bound_x=1.0, bound_y=1.0, clip="both", share=0.5, accounting="gdp", split="budget",
        public=False),
    row(private.nldp_message, x=W / 4, y=0.5, mechanism=MECHANISM, key=KEY, part="both",
        out_of_range="refuse"),
    row(private.nldp_regression, X=SAMPLES / 9, y=SAMPLES[:, 0] / 9, key=KEY, epsilon=1.0,
        delta=1e-6, public=SAMPLES, strength=0.1, norm_bound=1.0, eig_floor=0.1,
        out_of_range="clip", throw=False),
    row(private.nldp_server, mean_second=jnp.array([1.0, 0, 0, 1, 0, 1]), mean_cross=W, users=10,
        mechanism=MECHANISM, strength=0.1, norm_bound=1.0, eig_floor=0.1, throw=False),
    row(private.privacy_audit, first=np.arange(50.0), second=np.arange(50.0), delta=0.0,
        confidence=0.95),
    row(private.soft_thresholded_ols, X=2 * EYE, y=W, strength=0.1),
    row(linear_attention.attention_entropy, weights=PROBABILITIES),
    row(linear_attention.linear_attention, fq=TOKENS, fk=TOKENS, v=TOKENS, mask=np.array([True, True, True, False]), causal=True,
        rotated=(TOKENS, TOKENS), eps=0.1, chunk=2),
    row(linear_attention.linear_attention_step, fq=TOKENS, fk=TOKENS, v=TOKENS, state=LINEAR, rotated=(TOKENS, TOKENS), eps=0.1,
        chunk=2),
    row(linear_attention.linear_attention_weights, fq=HEADS, fk=HEADS, causal=True, eps=0.1),
    row(linear_attention.norm_aware, q=HEADS, k=HEADS, map="cos", lam=3.0, tau=0.5, key_power=3.0, sharpness=9.0),
    row(linear_attention.rotary_angles, positions=SAMPLES[:, :1], size=4, base=100.0),
    row(linear_attention.rotate, features=HEADS[..., :2], angles=SAMPLES[:4, :1]),
    row(lora_limits.add_lora, model=KERNEL, rank=2, where="kernel", alpha=4.0, dtype=jnp.float32, key=KEY),
    row(lora_limits.attention_gradients, x=SAMPLES, wq=EYE, wk=EYE, wv=EYE, target=SAMPLES, method="auto", degree=2,
        eps=0.1, scale=0.1, center=True, chunk=4),
    row(lora_limits.attention_norm, q=HEADS, k=HEADS, mask=HIDDEN, scale=0.5, center=True, exact=True, chunk=2),
    row(lora_limits.degree_for, bound=1.0, eps=0.1),
    row(lora_limits.merge_lora, model=LORA),
    row(lora_limits.polynomial_attention, q=HEADS, k=HEADS, v=HEADS, degree=2, method="exact", eps=0.1, mask=HIDDEN,
        scale=0.5, center=True, chunk=2),
    row(lora_limits.polynomial_features, x=HEADS, degree=2),
    row(lora_limits.unmerge_lora, merged=KERNEL, adapted=LORA),
    row(random_support.random_reference, X=SAMPLES, m=1, key=KEY, rtol=1e-6),
    row(random_support.random_support_lasso, X=SAMPLES, y=SAMPLES[:, 0], k=1, key=KEY, m=1,
        strength=0.1, sigma=None, delta=0.25, n_restarts=1, intercept=False, rtol=1e-6,
        solver=sj.solve.lasso, throw=False),
    row(receptive_fields.active_units, codes=SAMPLES),
    row(receptive_fields.circular_variance, responses=jnp.ones((4, 2)), angles=jnp.arange(4.0)),
    row(receptive_fields.error_at_activity, active=jnp.array([4.0, 16.0]),
        error=jnp.array([0.4, 0.1]), target=8.0),
    row(receptive_fields.orientation_tuning, atoms=jnp.ones((16, 2)), angles=jnp.arange(3.0),
        frequencies=jnp.array([0.5]), phases=4),
    row(receptive_fields.sample_patches, image=IMAGE, count=3, size=4, key=KEY),
    row(receptive_fields.whiten_image, image=IMAGE, cutoff=0.4),
    row(reprogramming.few_shot, labels=jnp.array([0, 1, 0, 1]), shots=1, key=KEY),
    row(reprogramming.frequency_mapping, predicted=CLASSES, labels=CLASSES, sources=3, targets=2),
    row(reprogramming.linear_probe, X=SAMPLES, y=jnp.arange(20) % 2, classes=2, steps=2, key=KEY,
        optimizer=SGD, batch_size=4, chunk=2, **LOOP),
    row(reprogramming.prompt_images, images=jnp.ones((1, 2, 2, 1)), prompt=jnp.zeros((4, 4, 1))),
    row(reprogramming.visual_prompt, network=lambda x: jnp.stack([x.sum((1, 2, 3))] * 2, -1),
        images=jnp.ones((2, 1, 1, 1)), labels=CLASSES, size=(2, 2), classes=2, key=KEY,
        mapping="iterative", optimizer=SGD, epochs=1, batch_size=2, **LOOP),
    row(sara.below_threshold, params=P, theta=0.1, where=""),
    row(sara.gather_values, params=KERNEL, indices=AT),
    row(sara.indices_of, masks=KMASK),
    row(sara.select_gradients, params=KERNEL, values={"kernel": jnp.ones(2)}, indices=AT),
    row(sara.write_back, params=KERNEL, values={"kernel": jnp.ones(2)}, indices=AT),
    row(sara.vlhi, fid=W + 1, clip=W + 1),
    row(sara.sara, params=P, loss=lambda p, key: loss(p, DATA), key=KEY, fraction=0.5, where="",
        steps=2, progressive_step=1, learning_rate=0.01, weight_decay=0.01, rank_strength=0.0,
        rank_min_dim=64, rank_of_all=False, chunk=1, **LOOP),
    row(search.Stage, steps=1, optimizer=SGD),
    row(search.Scored, layer=LAYER, pattern=sj.NM(2, 4)),
    row(search.MixedOp, ops=[jnp.zeros_like, lambda x: x]),
    row(search.apply_scores, params=KERNEL, scores=KERNEL, plan=KPLAN),
    row(search.bilevel_gradient, train_loss=lambda w, a: (w - a) ** 2, validation_loss=lambda w, a: w,
        params=jnp.array(1.0), alpha=jnp.array(3.0), optimizer=SGD,
        opt_state=SGD.init(jnp.array(1.0))),
    row(search.compare_random_search, start=lambda key: KERNEL, sample=lambda key, p, s: KMASK,
        loss=lambda p, m: 1.0, train=lambda p, m, k: 1.0, key=KEY, sparsities=(0.5,), trials=2,
        candidates=2, **LOOP),
    row(search.darts_ops, channels=4, stride=1, rngs=nnx.Rngs(0)),
    row(search.dass, params=KERNEL, alpha=jnp.zeros(2), loss=lambda p, a, b: nll(p, b) + a.sum(),
        plan=KPLAN, data=DATA, validation=DATA, key=KEY, pretrain=STAGE, prune=STAGE,
        finetune=STAGE, alpha_optimizer=SGD, second_order=False, batch_size=2, chunk=2, **LOOP),
    row(search.genotype, alpha=jnp.ones((5, 3)), op_names=["none", "skip", "conv"], nodes=2,
        none="none"),
    row(search.random_nodes, graph=GRAPH, sparsity=0.75, key=KEY),
    row(search.random_search, params=KERNEL, loss=lambda p, m: p["kernel"].sum(),
        sample=lambda key: KMASK, key=KEY, candidates=2, batch_size=1, chunk=1, **LOOP),
    row(search.scaled_scores, params=KERNEL, plan=KPLAN),
    row(search.score_mask, scores=W, pattern=sj.Unstructured(0.5)),
    row(search.score_prune, params=KERNEL, loss=nll, plan=KPLAN, data=DATA, key=KEY,
        pretrain=STAGE, prune=STAGE, finetune=STAGE, batch_size=2, chunk=2, **LOOP),
    row(sparse_attention.AdaSnapKV, **EVICTING, least=0.2),
    row(sparse_attention.BlockTopK, block=16, top=4),
    row(sparse_attention.Quest, budget=16, page=8, shared=True),
    row(sparse_attention.SnapKV, **EVICTING),
    row(sparse_attention.VerticalSlash, vertical=8, slash=8, probe=4, sinks=1, local=2, tile=4),
    row(sparse_attention.computed_density, blocks=STORED, length=4),
    row(sparse_attention.decoder_flops, config=CONFIG, tokens=4, sparsity=0.5, decode=False,
        method=sparse_attention.Quest(16, 8)),
    row(sparse_attention.fit_scaling_law, size=np.arange(1.0, 7), length=np.arange(2.0, 8),
        compression=np.arange(1.0, 7), accuracy=np.full(6, 0.5)),
    row(sparse_attention.isoflops, configs=types.MappingProxyType({"small": CONFIG}), lengths=[4], sparsities=[0.5],
        evaluate=lambda model, length, sparsity: 0.5, decode=False),
    row(sparse_attention.pair_density, mask=np.eye(3) > 0),
    row(sparse_attention.pareto_front, cost=np.ones(2), value=np.ones(2)),
    row(sparse_attention.tolerable_sparsity, dense=np.ones(3), sparse={0.5: np.ones(3)}, level=0.05),
    row(unlearnable.masked_step, noise=PICTURES * 0, grads=PICTURES, images=PICTURES, eps=0.1,
        step=0.01, ratio=0.5, mask=PICTURES > 0.5),
    row(unlearnable.perturbation_report, noise=PICTURES),
    row(unlearnable.release, images=PICTURES, noise=PICTURES),
    row(unlearnable.top_pixel_mask, grads=PICTURES, ratio=0.5),
    row(unlearnable.unlearnable_noise, params=jnp.ones((4, 2)),
        logits=lambda p, x: x.reshape(len(x), -1) @ p, images=PICTURES, labels=CLASSES, eps=0.1,
        step=0.01, ratio=0.5, mask="step", where=PICTURES > 0.5, classwise=False,
        attack="min-min", optimizer=SGD, inner_steps=1, weight_steps=1, batch_size=2, rounds=1,
        min_rounds=1, stop=0.1, **LOOP),
    row(unlearning.fisher_diagonal, params=KERNEL, logits=logits, x=jnp.ones((2, 4)), chunk=2),
    row(unlearning.fisher_forgetting, params=KERNEL, masks=KMASK, logits=logits,
        retain=jnp.ones((2, 4)), key=KEY, alpha=1e-7, output="kernel", chunk=2),
    row(unlearning.forget_split, labels=CLASSES, label=1),
    row(unlearning.influence_unlearning, params=KERNEL, masks=KMASK, loss=nll, forget=DATA,
        retain=DATA, alpha=1.0, damping=1.0, samples=4),
    row(unlearning.membership_attack, members=W, others=W, targets=W, attack="threshold"),
    row(unlearning.membership_features, probabilities=PROBABILITIES, labels=CLASSES),
    row(unlearning.unlearn, params=KERNEL, masks=KMASK, method="ascent", loss=nll,
        optimizer=SGD, forget=DATA, retain=DATA, steps=1, key=KEY, strength=5e-4, batch_size=2,
        chunk=1, **LOOP),
    row(unlearning.unlearning_report, **dict.fromkeys(
        ("forget", "retain", "test"), (PROBABILITIES, CLASSES)), attack="threshold"),
    row(unmixing.channel_noise, pixels=PIXELS),
    row(unmixing.clean_channels, pixels=PIXELS),
    row(unmixing.fcls, pixels=PIXELS, endmembers=EYE, weight=15.0, steps=2),
    row(unmixing.hoyer_sparsity, x=PIXELS, axis=-1),
    row(unmixing.irls_weights, residual=PIXELS, axis=-1, floor=1e-8),
    row(unmixing.learn_guidance, guidance=jnp.zeros(12), abundances=PIXELS, largest=0.8),
    row(unmixing.pure_pixels, pixels=PIXELS, count=2),
    row(unmixing.spa, pixels=PIXELS, count=2),
    row(unmixing.vca, pixels=PIXELS, count=2, key=KEY),
    row(unmixing.spatial_guidance, image=jnp.ones((2, 2, 3)), width=0.1, largest=0.8),
    row(unmixing.spectral_angle, a=W, b=W),
    row(unmixing.unmix, pixels=PIXELS, count=2, strength=0.05, robust=True, guidance=None, w0=None,
        tol=1e-5, max_steps=2, sum_weight=1.0, largest_guidance=0.8, warm_up=1, every=1, floor=1e-8,
        throw=False, chunk=1, **LOOP),
    row(unmixing.unmixing_errors, endmembers=EYE, abundances=PIXELS, true_endmembers=EYE,
        true_abundances=PIXELS),
    row(update_sparsity.update_overlap, base=P, first=P, second=P, tol=1e-5),
    row(update_sparsity.update_partition, checkpoints=[P, P, P], tol=0.0),
    row(update_sparsity.update_rank, before=P, after=P),
    row(update_sparsity.update_sparsity, before=P, after=P, tol=1e-5),
]  # fmt: skip
