"""The report: counts by the rules of the spec, for every kind of model."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.experimental import pallas

import sparsejax as sj
from sparsejax.reporting import report, training_flops


class Network(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 16, rngs=rngs)
        self.dense = nnx.Linear(16, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.out = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, tokens):
        return self.out(nnx.relu(self.norm(self.dense(self.embed(tokens)))))


RULES = {"dense/kernel": sj.NM(2, 4), "out/kernel": sj.Unstructured(0.75)}


@pytest.fixture(scope="module")
def pruned():
    model = Network(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    plan = sj.plan(model, RULES)
    masks = plan.masks(sj.masks.magnitude(params))
    nnx.update(model, sj.masks.apply_masks(params, masks))
    return model, masks, plan


@pytest.mark.slow
def test_the_counts(pruned):
    model, masks, plan = pruned
    found = report(model, masks, plan, example=jnp.zeros((2, 5), int))
    dense, out = found["dense/kernel"], found["out/kernel"]
    assert (dense.size, dense.kept, dense.planned, dense.value_zeros) == (512, 256, 256, 256)
    assert (out.size, out.kept, out.sparsity) == (256, 64, 0.75)
    assert (dense.claimed, dense.fits, out.claimed) == ("2:4", "2:4", "unstructured")
    size = 20 * 16 + 512 + 32 + 2 * 32 + 256 + 8
    assert found.size == size and found.kept == size - 256 - 192
    assert found.sparsity == (256 + 192) / 768  # pooled, not the mean of the layers
    assert found.total_sparsity == (256 + 192) / size
    assert found.dense_leaves == ("embed/embedding",)
    assert found.flops_dense == 2 * 768 * 10 and found.flops_sparse == 2 * (256 + 64) * 10
    assert dense.bytes["2:4"] == 256 * 4 + 256 * 2 // 8
    assert dense.storage == ("2:4", 1088) and found.bytes_dense == 4 * size
    assert found.asked == plan.sparsity and not found.activation_flops


def test_text_html_dict_and_file(pruned, tmp_path):
    model, masks, plan = pruned
    found = report(model, masks, plan)
    text = str(found)
    for part in (
        "dense/kernel",
        "16x32",
        "2:4",
        "0.5833",
        "of all 1,192",
        "dense: embed/embedding",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 140
    html = found._repr_html_()
    assert html.count("<tr>") + html.count('<tr class="total">') == 5 and "58.33%" in html
    data = json.loads(json.dumps(found.as_dict()))
    assert data["sparsity"] == found.sparsity and data["leaves"][0]["path"] == found.leaves[0].path
    assert data["leaves"][0]["shape"] == [16, 32] or data["leaves"][0]["shape"]
    with pytest.raises(ValueError, match="report.html"):
        found.save(tmp_path / "report.json")
    found.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "dense/kernel" in page


def test_names_in_html_are_escaped():
    html = report({"<b>": {"kernel": jnp.ones((4, 4))}})._repr_html_()
    assert "<b>/kernel" not in html and "&lt;b&gt;/kernel" in html


def test_every_kind_of_model_counts_the_same(pruned):
    model, masks, plan = pruned
    state = nnx.state(model, nnx.Param)
    reference = report(model, masks, plan)
    for same in (state, nnx.as_pure(state), jax.tree.map(np.asarray, nnx.as_pure(state))):
        assert report(same, masks, plan) == reference
    assert report(model, jax.tree.map(np.asarray, masks), plan) == reference


def test_a_report_from_the_optimizer():
    model = Network(nnx.Rngs(0))
    tx = optax.chain(optax.adam(1e-3), sj.optim.prune(sj.plan(model, RULES), every=1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: m(jnp.zeros((2, 5), int)).sum())(model))

    step(model, optimizer)
    found = report(model, sj.get_masks(optimizer.opt_state), opt_state=optimizer.opt_state)
    assert found.sparsity == (256 + 192) / 768 and found["dense/kernel"].claimed is None
    moments = 2 * found.size * 4
    masks, counters = 768, 4 * 3
    assert moments + masks <= found.optimizer_bytes <= moments + masks + counters


def test_linen_and_equinox_layouts():
    model = linen.Dense(8)
    params = model.init(jax.random.key(0), jnp.ones((1, 16)))["params"]
    masks = sj.plan(params, sj.NM(2, 4)).masks(sj.masks.magnitude(params))
    apply = lambda p, x: model.apply({"params": p}, x)  # noqa: E731
    found = report(params, masks, example=jnp.ones((3, 16)), apply=apply)
    assert found["kernel"].fits == "2:4" and found["kernel"].positions == 3

    layer = eqx.nn.Linear(16, 8, key=jax.random.key(0))
    mask = sj.masks.topk(jnp.abs(layer.weight), sj.NM(2, 4, axis=1))
    pruned = eqx.tree_at(lambda m: m.weight, layer, jnp.where(mask, layer.weight, 0))
    masks = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (mask, None))
    assert report(pruned, masks)["weight"].fits == "2:4"
    nested = report({"enc": [pruned]}, {"enc": [masks]})
    assert nested["enc/0/weight"].fits == "2:4"


def test_without_masks_the_zeros_count_and_it_says_so(pruned):
    model, masks, plan = pruned
    found = report(model)
    assert found.kept == report(model, masks, plan).kept and "zeros of the values" in str(found)
    assert found["norm/bias"].kept == 32  # zeros of a bias are values, not structure
    assert found["norm/bias"].value_zeros == 32


def test_accidental_zeros_do_not_count():
    params = {"kernel": jnp.array([[0.0, 1.0], [2.0, 3.0]])}
    masks = {"kernel": jnp.array([[True, True], [True, False]])}
    found = report(params, masks)["kernel"]
    assert (found.kept, found.value_zeros) == (3, 1)


def test_a_fit_by_accident_is_not_shown():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 256))}
    masks = sj.plan(params, sj.Unstructured(0.97)).masks(sj.masks.magnitude(params))
    found = report(sj.masks.apply_masks(params, masks), masks)
    assert found["kernel"].chance > 0.5 and found["kernel"].fits == "4:8"
    assert "4:8" not in str(found) and "unstructured" in str(found)
    assert "W4" in {f.code for f in found.findings}


def test_shapes_beyond_32_bits():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((2**17, 2**16), jnp.bfloat16),
        "bias": jax.ShapeDtypeStruct((2**16,), jnp.bfloat16),
    }
    plan = sj.plan(shapes, sj.NM(2, 4))
    found = report(shapes, plan=plan)
    assert found.prunable_size == 2**33 and found.prunable_kept == 2**32
    assert found.flops_sparse == 2**33 and "in the absence of values" in found.source
    assert found["kernel"].value_zeros is None
    assert report(shapes).sparsity == 0 and "shapes" in report(shapes).source


def test_counts_of_large_leaves_are_exact():
    n = 2**24 + 5  # float32 cannot count this far
    mask = np.ones((1, n), bool)
    mask[0, :3] = False
    assert report({"kernel": np.ones((1, n), np.int8)}, {"kernel": mask})["kernel"].kept == n - 3


def test_prunable_leaves():
    params = {
        "a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones((2, 2))},
        "w": jnp.ones((4, 4)),
        "embedding": jnp.ones((8, 4)),
    }
    half = jnp.arange(16).reshape(4, 4) < 8
    found = report(params, {"a": None, "w": half, "embedding": None})
    # The kernel without a mask is dense, but it does count.
    assert {x.path for x in found.leaves if x.prunable} == {"a/kernel", "w"}
    assert found.sparsity == 0.25
    plan = sj.plan(params, {"embedding": sj.Unstructured(0.5)})
    assert {x.path for x in report(params, plan=plan).leaves if x.prunable} == {"embedding"}


def test_stacked_layers_and_stages():
    layers = jax.random.normal(jax.random.key(0), (3, 16, 64))
    plan = sj.plan({"kernel": layers}, sj.patterns.nm_stages("stepwise", 1, 4, stacked=1))
    masks = plan.masks({"kernel": jnp.abs(layers)})
    found = report({"kernel": jnp.where(masks["kernel"], layers, 0)}, masks, plan)
    assert found["kernel"].claimed == found["kernel"].fits == "1:4" and not found.findings


@dataclass(frozen=True)
class Compressed(sj.formats.Matrix):
    """A format of one's own: what it must offer."""

    values: Any
    mask: Any

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    nbytes = property(lambda self: 1234)

    def todense(self):
        return jnp.where(self.mask, self.values, 0)


jax.tree_util.register_dataclass(Compressed, ["values", "mask"], [])


def test_compressed_kernels():
    w = jax.random.normal(jax.random.key(0), (16, 8))
    mask = sj.masks.topk(jnp.abs(w), sj.NM(2, 4))
    found = report({"dense": {"kernel": Compressed(w, mask), "bias": jnp.ones(8)}})
    leaf = found["dense/kernel"]
    assert (leaf.kept, leaf.fits, leaf.storage) == (64, "2:4", ("stored", 1234))
    assert found.bytes_sparse == 1234 + 32
    traced = report(
        {"dense": {"kernel": Compressed(w, mask), "bias": jnp.ones(8)}},
        example=jnp.ones((3, 16)),
        apply=lambda p, x: x @ p["dense"]["kernel"].todense() + p["dense"]["bias"],
    )
    assert traced["dense/kernel"].positions == 3 and traced.flops_sparse == 2 * 64 * 3


def test_a_compressed_matrix_is_read_in_the_shape_of_its_kernel():
    w = jax.random.normal(jax.random.key(0), (16, 2, 4))
    plan = sj.plan({"kernel": w}, sj.NM(2, 4, axis=0))
    mask = plan.masks({"kernel": jnp.abs(w)})["kernel"]
    packed = {"kernel": Compressed(w.reshape(16, 8), mask.reshape(16, 8))}
    found = report(packed, plan=plan)
    assert found["kernel"].shape == (16, 2, 4) and found["kernel"].fits == "2:4"
    assert not found.findings


@pytest.mark.slow
def test_compressed_models_count_as_their_masked_ones():
    class Attention(nnx.Module):
        def __init__(self, rngs):
            self.query = nnx.LinearGeneral(16, (2, 8), rngs=rngs)
            self.up = nnx.Linear(16, 64, rngs=rngs)
            self.down = nnx.Linear(64, 16, rngs=rngs)

        def __call__(self, x):
            x = self.query(x).reshape(*x.shape[:-1], 16)
            return self.down(nnx.relu(self.up(x)))

    model = Attention(nnx.Rngs(0))
    rules = {
        "query/kernel": sj.NM(2, 4, axis=0),
        "up/kernel": sj.NM(1, 4),
        "down/kernel": sj.Block((8, 8), 0.5),
    }
    plan = sj.plan(model, rules)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    masks = plan.masks(sj.masks.magnitude(params))
    x = jnp.ones((2, 5, 16))
    masked = report(
        sj.masks.apply_masks(params, masks),
        masks,
        plan,
        positions=dict.fromkeys(("query/kernel", "up/kernel", "down/kernel"), 10),
    )
    fast = report(sj.compress(model, plan), plan=plan, example=x)
    tree = report(sj.compress(params, plan), plan=plan)
    counted = ("shape", "kept", "fits", "claimed", "flops_dense", "flops_sparse")
    for leaf in masked.leaves:
        for name in counted:
            assert getattr(fast[leaf.path], name) == getattr(leaf, name), (leaf.path, name)
        assert tree[leaf.path].kept == leaf.kept and tree[leaf.path].fits == leaf.fits
    assert fast.source == tree.source == "the entries stored by compressed kernels"
    stored = sj.compress(model, plan).up.kernel[...].nbytes
    assert fast["up/kernel"].bytes["stored"] == stored and not fast.uncounted


def test_kernels_that_cannot_be_seen_through_are_named():
    def matmul(x, w):
        def body(x, w, o):
            o[...] = x[...] @ w[...]

        shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
        return pallas.pallas_call(body, shape)(x, w)

    def apply(params, x):
        return matmul(x, params["kernel"])

    params, x = {"kernel": jnp.ones((8, 8))}, jnp.ones((4, 8))
    found = report(params, example=x, apply=apply)
    assert found.uncounted == ("kernel",) and "not counted: kernel (pass positions=)" in str(found)
    told = report(params, example=x, apply=apply, positions={"kernel": 4})
    assert told.uncounted == () and told.flops_dense == 2 * 64 * 4


def test_training_compiled_and_history():
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}
    plan = sj.plan(params, sj.Unstructured(0.9))
    masks = [plan.masks(sj.masks.random(params, key=jax.random.key(i))) for i in range(3)]
    x = jnp.ones((4, 16))
    compiled = jax.jit(lambda w: x @ w).lower(params["kernel"]).compile()
    found = report(
        sj.masks.apply_masks(params, masks[-1]),
        masks[-1],
        plan,
        positions={"kernel": 4},
        history=masks,
        training=partial(training_flops, "rigl", every=100),
        compiled=compiled,
    )
    sparse, dense = found.flops_sparse, found.flops_dense
    assert found.training_cost == pytest.approx((302 * sparse + dense) / 101 / (3 * dense))
    assert found.compiled_flops == found.flops_dense == 2 * 16 * 8 * 4
    assert str(found.taxonomy) == "during training, sparse-to-sparse, dynamic"
    assert str(found.taxonomy) in str(found) and "compiled 1.02k" in str(found)
    json.dumps(found.as_dict())


def test_tied_weights_count_once():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(8, 8, rngs=rngs)
            self.b = self.a

        def __call__(self, x):
            return self.b(self.a(x))

    found = report(nnx.eval_shape(lambda: Tied(nnx.Rngs(0))), example=jnp.ones((1, 8)))
    assert found.size == 72 and found.flops_dense == 2 * 2 * 64


def test_mistakes_are_named():
    params = {"dense": {"kernel": jnp.ones((4, 4))}}
    with pytest.raises(ValueError, match="a mask for other/kernel but no such parameter"):
        report(params, {"other": {"kernel": jnp.ones((4, 4), bool)}})
    with pytest.raises(ValueError, match=r"dense/kernel has shape \(4, 4\) and its mask shape"):
        report(params, {"dense": {"kernel": jnp.ones((4,), bool)}})
    with pytest.raises(TypeError, match="True means kept"):
        report(params, {"dense": {"kernel": jnp.ones((4, 4))}})
    with pytest.raises(ValueError, match="must have parameters"):
        report({})
    plan = sj.plan({"dense": {"kernel": jnp.ones((8, 4))}}, sj.NM(2, 4))
    with pytest.raises(KeyError, match="report has no 'zz'; it has dense/kernel"):
        report({"dense": {"kernel": jnp.ones((8, 4))}})["zz"]
    with pytest.raises(ValueError, match=r"planned with shape \(8, 4\) and now has shape \(4, 4\)"):
        report(params, plan=plan)


def test_eight_devices_count_the_same():
    w = jax.random.normal(jax.random.key(0), (16, 8))
    mask = sj.masks.topk(jnp.abs(w), sj.NM(2, 4))
    w = jnp.where(mask, w, 0)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = jax.device_put(
        (w, mask), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    )
    one = report({"kernel": w}, {"kernel": mask})
    assert report({"kernel": spread[0]}, {"kernel": spread[1]}) == one


def test_planned_leaves_of_any_name_count_flops():
    params = {"w1": jnp.ones((32, 16)), "b": jnp.ones(16)}
    plan = sj.plan(params, {"w1": sj.Unstructured(0.75)}, layout="in_out")
    found = sj.report(params, plan.masks(sj.masks.magnitude(params)), plan)
    assert (found.flops_dense, found.flops_sparse) == (2 * 512, 2 * 128)
    assert "inf" not in str(sj.report({"b": jnp.ones(3)}))


def test_many_leaves_print_briefly():
    params = {f"layer_{i}": {"kernel": jnp.zeros((4, 4))} for i in range(200)}
    plan = sj.plan(params, sj.Unstructured(0.5))
    masks = plan.masks(sj.masks.magnitude(params))
    found = sj.report(params, masks, plan)
    assert len(str(found).splitlines()) < 70 and "160 more" in str(found)
    assert len(str(plan).splitlines()) < 60 and "160 more" in str(plan)
    progress = sj.recipes.Progress(params, masks, 3, {"losses": jnp.ones(1000)})
    assert len(repr(progress)) < 200 and "step=3" in repr(progress)
    X = jnp.eye(50)
    fit = sj.solve.lasso_path(X, jnp.ones(50), jnp.geomspace(0.02, 0.01, 40))
    assert len(repr(fit)) < 300 and "float32[40, 50]" in repr(fit)


def test_reports_in_one_page(tmp_path):
    params = {"kernel": jnp.ones((8, 8))}
    found = sj.report(params)
    page = tmp_path / "all.html"
    sj.reporting.save_reports(page, {"<first>": found, "second": found}, {"bars": found.plot()})
    text = page.read_text()
    assert "<h3>&lt;first&gt;</h3>" in text and "<h3>second</h3>" in text
    assert text.count("data:image/png;base64,") == 1
    with pytest.raises(ValueError, match=r"does not end in \.html"):
        sj.reporting.save_reports(tmp_path / "all.pdf", {"first": found})
    with pytest.raises(ValueError, match="reports is empty"):
        sj.reporting.save_reports(page, {})
