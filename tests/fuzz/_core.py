"""Rows of prox, patterns, select, masks, formats, kernels, metrics and nn."""

# ruff: noqa: E501

import inspect
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sparsejax as sj
from sparsejax import formats, kernels, masks, metrics, models, nn, patterns, prox, select
from sparsejax.nn import surgery

from ._values import named, row

KEY = jax.random.key(0)
P = {"kernel": jnp.arange(12.0).reshape(4, 3) - 5.5, "bias": jnp.zeros(3)}
M = {"kernel": P["kernel"] > 0, "bias": None}
PLAN = sj.plan(P, sj.Unstructured(0.5))
X = jnp.arange(16.0).reshape(4, 4) / 8 - 1
V = X[0]
NM = formats.NMArray.fromdense(jnp.ones((4, 4)), 2, 4)
BLOCK = formats.BlockArray.fromdense(jnp.eye(8), (4, 4))
LAYER = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
NORM = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
TOKENS = jax.random.normal(KEY, (4, 2, 3))
KEYS = kernels.KeyBlocks.from_mask(np.eye(2) > 0, (2, 2))
PAGES = kernels.KeyBlocks(jnp.zeros((2, 1, 1), int), jnp.ones((2, 1), int), (1, 2))
LLAMA = models.Llama(
    models.LlamaConfig(
        vocabulary=9, width=8, hidden=8, layers=1, heads=2, key_heads=1, head_size=4
    ),
    rngs=nnx.Rngs(0),
)
SAVED = f"{tempfile.mkdtemp()}/fuzz.safetensors"  # rows run in any order
nn.save(SAVED, P)
L1 = prox.l1(0.1)
LABELS = np.array([0, 1, 0, 1])
ACTIVE = select.TopK(2).set(V)
GROUPED = {"axis": 0, "groups": None, "num_groups": None, "weights": None}
SCALAR = {"0": "0", "-1": "-1"}
OWN = {}
PROBABILITIES, CLASSES = jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([0, 1])
THREE = {name: {"kernel": jnp.ones((4, 4))} for name in "abc"}
GRAPH = surgery.channel_graph(
    {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((4, 3))}}
)
TWO = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((4, 3))}}
HISTORY = [{"a": jnp.array([True, False])}, {"a": jnp.array([False, True])}]


def penalty_rows():
    numbers = {"strength": 0.5, "group_strength": 0.5, "l1_strength": 0.5, "radius": 1.0}
    more = {
        "elastic_net": {"ratio": 0.5}, "berhu": {"delta": 1.0}, "huber": {"delta": 1.0},
        "capped_l1": {"theta": 1.0}, "cel0": {"a": 1.0}, "exponential": {"sigma": 1.0},
        "firm": {"mu": 1.0}, "geman": {"eps": 1.0}, "log_sum": {"eps": 1.0}, "lp": {"p": 0.5},
        "mcp": {"gamma": 3.0}, "scad": {"a": 3.7}, "transformed_l1": {"a": 1.0},
        "group_lp": {"p": 0.5}, "group_mcp": {"gamma": 3.0}, "group_scad": {"a": 3.7},
        "l1_minus_l2": {"alpha": 1.0}, "k_support_norm": {"k": 2}, "hard_k": {"k": 2},
        "group_hard_k": {"k": 2, "axis": 0}, "sef": {"k": 2}, "gsef": {"k": 2, "axis": 0},
        "wgsef": {"k": 2, "axis": 0}, "max_rank": {"r": 2},
        "box": {"lower": 0.0, "upper": 1.0}, "nm": {"n": 2, "m": 4, "axis": 0, "stacked": 0},
        "affine": {"matrix": X[:2], "offset": V[:2]},
        "half_space": {"normal": V, "offset": 1.0}, "hyperplane": {"normal": V, "offset": 1.0},
        "slope": {"strength": jnp.array([2.0, 1.0])},
    }  # fmt: skip
    by_group = "group_lasso group_l0 group_mcp group_scad group_lp l1_inf sparse_group_lasso exclusive_lasso"
    plain = (
        "berhu capped_l1 cel0 elastic_net exponential firm geman huber k_support_norm l0 l1 l1_ball"
        " l1_minus_l2 l2 l2_ball l_half l_two_thirds linf log_sum lp mcp nuclear rank ridge scad sef"
        " simplex slope total_variation transformed_l1 fused_lasso hard_k group_hard_k gsef wgsef "
        "max_rank box nm affine half_space hyperplane " + by_group
    )
    for name in plain.split():
        f = getattr(prox, name)
        own = {n: numbers[n] for n in inspect.signature(f).parameters if n in numbers}
        arguments = own | more.get(name, {}) | ({"axis": 0} if name in by_group.split() else {})
        yield row(f, {"*": "vector, rank, scalar"}, **arguments)  # one strength for each entry


ROWS = [
    *penalty_rows(),
    row(prox.concave, value=jnp.log1p, derivative=lambda b: 1 / (1 + b), strength=0.5),
    row(prox.conjugate, penalty=L1),
    row(prox.fenchel_young_gap, penalty=L1, v=V, x=V, step=1.0),
    row(prox.firm_threshold, x=V, low=0.5, high=1.0),
    row(prox.hard_threshold, x=V, a=0.5),
    row(prox.soft_threshold, x=V, a=0.5),
    row(prox.group_labels, params=P, kind="neuron", axis=None),
    row(prox.masked, penalty=L1, mask=M),
    row(prox.moreau_envelope, penalty=L1, smoothing=1.0),
    row(named("nested", lambda penalties: prox.nested(penalties, L1)), penalties=L1),
    row(prox.nonneg, penalty=L1),
    row(prox.on_norm, penalty=L1, axis=0),
    row(prox.on_singular_values, penalty=L1),
    row(prox.scale, penalty=L1, factor=2.0),
    row(prox.separable_sum, penalties={"a": L1}),
    row(prox.shift, penalty=L1, center=V),
    row(sj.Unstructured, sparsity=0.5, stacked=0),
    row(sj.NM, n=2, m=4, axis=0, stacked=0),
    row(sj.Block, shape=(4, 4), sparsity=0.5, axis=0, stacked=0, pool_by="mean", balanced=True),
    row(sj.Channel, sparsity=0.5, axis=0, stacked=0, pool_by="mean"),
    row(sj.Groups, labels=np.array([0, 1, 0, 1]), sparsity=0.5, stacked=0, pool_by="mean"),
    row(patterns.FanIn, sparsity=0.5, axis=0, stacked=0, rounding="nearest"),
    row(patterns.Stages, patterns=(sj.NM(3, 4), sj.NM(2, 4))),
    row(patterns.filter_groups, shape=(3, 3, 4, 8), n=2, taps=False),
    row(patterns.layout, shape=(3, 3, 4, 8), axis=None, stacked=0, order="in_out"),
    row(patterns.nm_stages, kind="stepwise", n=1, m=4, axis=None, stacked=0, stages=3),
    row(sj.plan, model=P, rules=sj.Unstructured(0.5), allocate=masks.erk and None, layout=None,
        min_kept=0, rounding="nearest"),
    row(select.BatchTopK, k=2),
    row(select.TopK, k=2),
    row(masks.above, scores=V, threshold=0.01, at_least=1),
    row(masks.apply_masks, params=P, masks=M),
    row(masks.energy_threshold, scores=V, fraction=0.1),
    row(masks.erdos_renyi, params=P, sparsity=0.5, fixed={"kernel": 0.5}),
    row(masks.erk, params=P, sparsity=0.5, fixed={"kernel": 0.5}, power=1.0),
    row(masks.uniform, params=P, sparsity=0.5, fixed={"kernel": 0.5}),
    row(masks.uniform_plus, params=THREE, sparsity=0.2, first="a/kernel", last=None,
        last_sparsity=0.4, exact_budget=True),
    row(masks.joint, params=P, sparsity=0.5),
    row(masks.fisher, params=P, second_moments=P),
    row(masks.from_scores, scores=P),
    row(masks.grasp, params=P, loss_fn=lambda p: (p["kernel"] ** 2).sum()),
    row(masks.synflow, params=P, output_fn=lambda p: p["kernel"]),
    row(masks.iterative, score=masks.magnitude, plan=sj.plan(TWO, sj.NM(2, 4)), params=TWO,
        rounds=2),
    row(masks.magnitude, params=P),
    row(masks.movement, params=P, grads=P),
    row(masks.saliency, params=P, grads=P),
    row(masks.random, params=P, key=KEY),
    row(masks.straight_through, params=P, masks=M, pruned_scale=0.0, pruned_gradient="full",
        decay=0.0),
    row(masks.topk, scores=V, pattern=sj.Unstructured(0.5), fraction=1.0),
    row(masks.update_mask, before=P, after=P, tol=0.0),
    row(masks.wanda, params={"kernel": P["kernel"]}, inputs={"kernel": jnp.eye(4)},
        plan=sj.plan({"kernel": P["kernel"]}, sj.Unstructured(0.5))),
    row(formats.BlockArray.fromdense, w=jnp.eye(8), block=(4, 4)),
    row(formats.NMArray.fromdense, w=X, n=2, m=4),
        row(formats.choose_output_block, w=jnp.eye(8)),
    row(named("compress_matrix", lambda pattern, matrix, mask: formats.compress_matrix(
        pattern, matrix, mask)), pattern=sj.NM(2, 4), matrix=X, mask=jnp.array([[True] * 4] * 2 + [[False] * 4] * 2)),
    row(formats.convert_block, w=BLOCK, block=(2, 2)),
    row(named("multiply", lambda w, x: formats.multiply(w, x)), w=NM, x=X),
    row(models.llama_specs, model=LLAMA, fsdp="fsdp", tensor="tensor"),
    row(nn.save, {"path": "text"}, path=SAVED, model=P),
    row(nn.load, {"path": "text"}, path=SAVED, model=P),
    row(formats.to_bcoo, w=NM),
    row(formats.to_bcsr, w=NM),
    row(formats.to_scipy, w=NM),
    row(formats.trainable, tree={"w": NM}),
    row(formats.unit_major, kernel=X, axis=0, size=1),
    row(sj.compress, model=P, plan=PLAN, masks=None),
    row(sj.matmul, x=X, w=NM, implementation="xla", precision=None, out_dtype=None, bias=V,
        activation=jax.nn.relu),
    row(kernels.gated_products, x=X, kernels=[formats.Skipping(X)], limits=[(V, np.float32(0.5))],
        implementation="xla"),
    row(kernels.gated_mlp, x=X, kernels=[formats.Skipping(X)] * 3, limits=[(V, np.float32(0.5))] * 3,
        by_neuron=False, implementation="xla"),
    row(kernels.gated_layer, x=np.ones((2, 2)), cache=(np.ones((2, 3, 1, 2)),) * 2, counts=np.zeros(2, int),
        angles=np.ones((2, 1)), norms=(np.ones(2),) * 2, kernels=[formats.Skipping(np.ones((2, 2)))] * 7,
        limits=[(np.ones(2), np.float32(0.5))] * 7, heads=1, epsilon=1e-5, interleaved=False,
        by_neuron=False, implementation="xla"),
    row(kernels.active_expand, x=X, w=X, s=ACTIVE, scale=X[:, :2], activation=jax.nn.relu,
        implementation="xla"),
    row(kernels.active_reduce, v=X, w=X, s=ACTIVE, scale=X[:, :2], gathered=False, implementation="xla"),
    row(kernels.active_ffn, x=X, w_up=X, w_down=X, s=ACTIVE, activation=jax.nn.relu,
        w_gate=X, scale=X[:, :2], implementation="xla"),
    row(kernels.block_sparse_attention, q=TOKENS, k=TOKENS, v=TOKENS, blocks=KEYS, causal=True, window=2,
        sinks=1, scale=0.5, implementation="xla"),
    row(kernels.paged_attention, {"length": "scalar"}, q=TOKENS[0], keys=TOKENS, values=TOKENS, pages=PAGES, length=np.array(3),
        scale=0.5, implementation="xla"),
    row(kernels.explain, x=X, w=NM, implementation=None),
    row(kernels.group_conv, x=jnp.ones((1, 2, 4, 4)), w=formats.BlockArray.fromdense(
        jnp.ones((8, 4)), (4, 4)), window=(2, 2), strides=(1, 1), padding="SAME"),
    row(kernels.implement, operation="matmul", format=formats.NMArray,
        platforms=("cpu",), automatic=True, **{"name": "mine"}),
    row(kernels.lowering_for, platform="cpu"),
    row(kernels.measure, calls={"one": lambda: 0}, rounds=1, seconds=0.001),
    row(kernels.names, operation="matmul", format=formats.NMArray),
    row(kernels.pointwise, x=jnp.ones((4, 2, 2)), w=NM, bias=V, clamp=(0.0, 6.0), implementation="xla"),
    row(metrics.abrupt_change, counts=jnp.array([1.0, 1.0, 9.0]), factor=2.0),
    row(metrics.essential_sparsity, sparsities=jnp.array([0.0, 0.5]), scores=jnp.array([1.0, 0.9]),
        eps=0.01, dense=None, relative=False, interpolate=False),
    row(metrics.knee, sparsities=jnp.array([0.0, 0.5, 0.9]), scores=jnp.array([1.0, 0.9, 0.1])),
    *(row(f, probabilities=PROBABILITIES, labels=CLASSES, bins=5) for f in (
        metrics.expected_calibration_error, metrics.maximum_calibration_error, metrics.reliability)),

    row(metrics.exploration_rate, history=HISTORY),
    row(metrics.flip_rate, history=HISTORY),
    row(metrics.fgsm, loss_fn=jnp.sum, inputs=X, epsilon=0.1, bounds=(-1.0, 1.0)),
    row(metrics.gradient_noise, grads={"kernel": jnp.stack([P["kernel"]] * 2)}, masks=None),
    row(metrics.live_units, incoming=X, bias=V, outgoing=X, axis=-1, outgoing_axis=None),
    row(metrics.mask_change, old=M, new=M),
    row(metrics.mask_similarity, a=M, b=M, kind="cosine"),
    row(metrics.sad, masks_a=M, masks_b=M, normalize=None),
    row(metrics.max_softmax_probability, logits=X),
    row(models.cache_aware_width, cache_bytes=2**20, strip=16, dtype=jnp.float32),
    row(models.LlamaConfig, vocabulary=9, width=8, hidden=8, layers=1, heads=2, key_heads=1,
        head_size=4, theta=10.0, epsilon=1e-5, tied=False, interleaved=False, scaling=(),
        positions=8),
    row(models.generate, model=LLAMA, prompts=[[1, 2]], steps=2, temperature=0.0, stop=(2,), attention=None, key=KEY),
    row(models.perplexity, model=LLAMA, tokens=[1, 2, 3], window=4, stride=None, attention=None),
    row(models.token_losses, model=LLAMA, tokens=[1, 2, 3], window=4, stride=None, attention=None),
    row(models.mobilenet_v1, channels=3, classes=2, width=0.25, stem=(8, 2), blocks=((8, 1),),
        divisor=8, rngs=nnx.Rngs(0)),
    row(models.mobilenet_v2, channels=3, classes=2, width=0.25, stem=(8, 2),
        stages=((1, 8, 1, 1),), head=16, widest=None, divisor=8, rngs=nnx.Rngs(0)),
    row(named("linear_layer", lambda layer: nn.linear_layer(layer)), layer=LAYER),
    row(nn.recalibrate, model=NORM, batches=[jnp.ones((2, 4))], fraction=1.0, momentum=None, call=None),
    row(nn.input_grams, model=LAYER, batches=[jnp.ones((2, 4))], call=None),
    row(nn.learned_threshold, params={"kernel": X}, logits={"kernel": V[:, None]}),
    row(nn.observe, path="a", x=X),
    row(named("record", lambda model, where, reduce, combine, call: nn.record(
        model, where, jnp.ones((2, 4)), reduce=reduce, combine=combine, call=call)),
        model=LAYER, where="", reduce=None, combine=None, call=None),
    row(nn.replace, model=LAYER, taps={"": lambda x: x}),
    row(surgery.channel_graph, model=TWO, layers=None, layout=None),
    row(surgery.mask_channels, params=TWO, graph=GRAPH, keep={"a": np.array([True] * 3 + [False])}),
    row(surgery.permute_channels, model=TWO, graph=GRAPH, permutations={"a": np.arange(4)}),
    row(surgery.rearrange, model=TWO, graph=GRAPH, plan=sj.plan(TWO, sj.NM(2, 4)), method="l1"),
    row(surgery.remove_channels, model=TWO, graph=GRAPH,
        keep={"a": np.array([True] * 3 + [False])}, fold_bias=False),
]  # fmt: skip
