"""Plans: what they match, what they refuse, what they select."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import sparsejax as sj
from sparsejax._tree import named_leaves
from sparsejax.contrib import sara


def params_of(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 16)), "bias": jnp.ones(16)},
        "b": {"kernel": 3 * jax.random.normal(keys[1], (16, 4)), "bias": jnp.ones(4)},
        "embedding": {"weight": jax.random.normal(keys[2], (5, 8))},
    }


def test_the_first_rule_counts_and_none_means_dense():
    plan = sj.plan(params_of(), {"^a/kernel": None, "kernel$": sj.NM(2, 4)})
    assert [leaf.name for leaf in plan.leaves] == ["b/kernel"]
    masks = plan.masks(sj.masks.magnitude(params_of()))
    assert masks["a"] == {"kernel": None, "bias": None} and int(masks["b"]["kernel"].sum()) == 32


def test_one_pattern_means_the_kernels():
    plan = sj.plan(params_of(), sj.Unstructured(0.5))
    assert [leaf.name for leaf in plan.leaves] == ["a/kernel", "b/kernel"]
    assert plan.sparsity == 0.5 and len(plan) == 2 and "a/kernel" in plan
    assert plan["a/kernel"].kept == 64 and hash(plan) == hash(
        sj.plan(params_of(), sj.Unstructured(0.5))
    )


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 16, rngs=rngs, decode=False)
        self.norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.attention(x))


def test_names_are_the_same_with_and_without_variables():
    model = Attention(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    names = set(named_leaves(nnx.as_pure(state)))
    assert names == set(named_leaves(state))
    assert {"attention/value/kernel", "attention/value/bias", "norm/scale"} <= names
    rules = {
        r"attention/(query|key|value)/kernel$": sj.NM(2, 4, axis=0),
        r"attention/out/kernel$": sj.NM(2, 4, axis=(0, 1)),
    }
    plans = {
        sj.plan(x, rules)
        for x in (model, state, nnx.as_pure(state), jax.eval_shape(lambda: nnx.as_pure(state)))
    }
    assert len(plans) == 1
    (plan,) = plans
    masks = plan.masks(sj.masks.magnitude(state))
    assert isinstance(masks["attention"]["value"]["kernel"], nnx.Param)
    by_name = named_leaves(masks)
    heads = np.asarray(by_name["attention/query/kernel"]).reshape(4, 4, 16)
    np.testing.assert_array_equal(heads.sum(1), 2)
    out = np.asarray(by_name["attention/out/kernel"]).reshape(4, 4, 16)
    np.testing.assert_array_equal(out.sum(1), 2)


def test_linen_and_sequences():
    variables = linen.Dense(4).init(jax.random.key(0), jnp.ones((1, 8)))
    assert sj.plan(variables, sj.NM(2, 4))["params/kernel"].kept == 16
    assert sj.plan([{"kernel": jnp.ones((4, 4))}], sj.Unstructured(0.5))["0/kernel"].kept == 8


def test_partial_trees_are_looked_up_by_path():
    plan = sj.plan(params_of(), sj.Unstructured(0.5))
    part = {"b": {"kernel": params_of()["b"]["kernel"]}}
    masks = plan.masks(sj.masks.magnitude(part))
    assert int(masks["b"]["kernel"].sum()) == 32
    assert plan.masks({}) == {}


def test_global_selection_compares_all_leaves():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.75), allocate=sj.masks.joint)
    masks = named_leaves(plan.masks(sj.masks.magnitude(params)))
    scores = {k: np.abs(np.asarray(v)) for k, v in named_leaves(params).items() if k in masks}
    whole = np.concatenate([scores[k].ravel() for k in ("a/kernel", "b/kernel")])
    threshold = np.sort(whole)[::-1][48 - 1]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, scores[name] >= threshold)
    half = named_leaves(plan.masks(sj.masks.magnitude(params), jnp.float32(0.5)))
    assert sum(int(m.sum()) for m in half.values()) == 192 - 72


def test_random_masks_depend_on_the_path_only():
    params = params_of()
    plan = sj.plan(params, sj.Unstructured(0.5))
    key = jax.random.key(7)
    masks = plan.masks(sj.masks.random(params, key=key))
    part = {"b": params["b"]}
    np.testing.assert_array_equal(
        plan.masks(sj.masks.random(part, key=key))["b"]["kernel"], masks["b"]["kernel"]
    )
    assert int(masks["a"]["kernel"].sum()) == 64
    other = plan.masks(sj.masks.random(params, key=jax.random.key(8)))
    assert (masks["a"]["kernel"] != other["a"]["kernel"]).any()


def test_bernoulli_masks_have_binomial_counts():
    params = {
        "a": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)},
        "b": {"kernel": jnp.ones((8, 6))},
    }
    plan = sj.plan(params, {"a/kernel": sj.Unstructured(0.8), "b/": sj.Block((2, 3), 0.5)})
    draw = lambda key: sj.masks.random(params, plan, key=key, exact=False)  # noqa: E731
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))
    assert found["a"]["bias"] is None
    each = np.asarray(found["a"]["kernel"], float).reshape(2000, 100)
    np.testing.assert_allclose(each.mean(0), 0.2, atol=0.05)
    np.testing.assert_allclose((each.sum(1).mean(), each.sum(1).var()), (20, 16), rtol=0.1)
    together = np.cov(each.T) - np.diag(np.full(100, 0.16))
    assert np.abs(together).max() < 0.03
    blocks = np.asarray(found["b"]["kernel"]).reshape(2000, 4, 2, 2, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    counts = blocks[:, :, 0, :, 0].sum((1, 2))
    np.testing.assert_allclose((counts.mean(), counts.var()), (4, 2), rtol=0.1)
    assert not (found["b"]["kernel"] == found["b"]["kernel"][0]).all()


def test_random_masks_of_a_plan():
    params, key = {"kernel": jnp.ones((8, 8))}, jax.random.key(0)
    plan = sj.plan(params, sj.Unstructured(0.7))
    exact = sj.masks.random(params, plan, key=key)["kernel"]
    scores = sj.masks.random(params, key=key)
    np.testing.assert_array_equal(exact, plan.masks(scores)["kernel"])
    for sparsity, kept in ((0.0, 64), (1.0, 0)):
        at = sj.plan(params, sj.Unstructured(sparsity))
        assert int(sj.masks.random(params, at, key=key, exact=False)["kernel"].sum()) == kept
    with pytest.raises(ValueError, match="exact=False needs the plan"):
        sj.masks.random(params, key=key, exact=False)
    for pattern in (sj.NM(2, 4), sj.patterns.FanIn(0.5), sj.Block((2, 2), 0.5, balanced=True)):
        with pytest.raises(ValueError, match="of kernel fixes how many are kept"):
            sj.masks.random(params, sj.plan(params, pattern), key=key, exact=False)


def test_saliency_movement_and_grasp():
    w, g = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 0.25, -1.0])
    np.testing.assert_allclose(sj.masks.saliency(w, g), [0.5, 0.5, 3.0])
    np.testing.assert_allclose(sj.masks.movement(w, g), [-0.5, 0.5, 3.0])
    a = jnp.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])
    score = sj.masks.grasp(w, lambda w: 0.5 * w @ a @ w)
    np.testing.assert_allclose(score, w * (a @ a @ w), rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(3,\) and its gradient shape \(1,\)"):
        sj.masks.saliency(w, jnp.ones(1))
    with pytest.raises(ValueError, match="its gradient nothing"):
        sj.masks.movement({"w": w}, {})


def test_counts_at_two_to_the_31_entries():
    tree = {
        "big": {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)},
        "odd": {"kernel": jax.ShapeDtypeStruct((2**16 + 1, 2**15 - 1), jnp.bfloat16)},
    }
    plan = sj.plan(tree, sj.Unstructured(0.9))
    for leaf in plan.leaves:
        assert leaf.kept == leaf.size - round(leaf.size * 0.9)
    shared = sj.plan(tree, sj.Unstructured(0.9), allocate=sj.masks.erk)
    total = sum(leaf.size for leaf in shared.leaves)
    assert sum(leaf.kept for leaf in shared.leaves) == total - round(total * 0.9)
    shapes = jax.eval_shape(plan.masks, tree, jax.ShapeDtypeStruct((), jnp.float32))
    assert shapes["big"]["kernel"].shape == (2**16, 2**15)


def test_printing():
    plan = sj.plan(params_of(), sj.Unstructured(0.9), allocate=sj.masks.erk)
    assert "a/kernel" in str(plan) and "sparsity 0.8" in str(plan).replace("0.9010", "0.8")
    assert "a/kernel" in plan._repr_html_()


# ruff: noqa: E501
BAD = [
    (lambda p: sj.plan(p, {"kernle$": sj.Unstructured(0.5)}), ValueError, "'kernle.' matches nothing; the leaves are a/bias"),
    (lambda p: sj.plan(p, {"kernel$": sj.NM(2, 4), "a/kernel$": None}), ValueError, "shadowed by an earlier rule for a/kernel"),
    (lambda p: sj.plan(p, {"kernel$": 0.9}), TypeError, r"sj.Unstructured\(0.9\)"),
    (lambda p: sj.plan(p, [0.9]), TypeError, "rules"),
    (lambda p: sj.plan({}, sj.Unstructured(0.5)), ValueError, "no leaves"),
    (lambda p: sj.plan({"w": jnp.ones((2, 2))}, sj.Unstructured(0.5)), ValueError, "named kernel or weight"),
    (lambda p: sj.plan({"kernel": jnp.ones((4, 4), int)}, sj.Unstructured(0.5)), ValueError, "kernel .* holds int32"),
    (lambda p: sj.plan(p, {"kernel$": sj.NM(2, 5)}), ValueError, r"(?s)a/kernel \(8, 16\).*b/kernel \(16, 4\)"),
    (lambda p: sj.plan(p, {"a/kernel": sj.Block((4, 4), 0.5), "b/kernel": sj.Unstructured(0.5)}, allocate=sj.masks.erk), ValueError, "different entries per unit"),
    (lambda p: sj.plan(p, sj.Unstructured(0.5), allocate=lambda t, s: dict.fromkeys(t, 1.5)), ValueError, "sparsity of 1.5"),
    (lambda p: sj.plan(p, sj.Unstructured(0.9), allocate=sj.masks.joint, min_kept=11), ValueError, "min_kept keeps 22 units of a/kernel, b/kernel, and the patterns only 19"),
    (lambda p: sj.plan(p, sj.Unstructured(0.5), min_kept=-1), ValueError, "min_kept=-1 must"),
    (lambda p: sj.plan(p, sj.Unstructured(0.5), rounding="ceil"), ValueError, 'rounding must be "nearest", "down" or "up"'),
    (lambda p: sj.plan(p, sj.Unstructured(0.5)).masks({"a": {"kernel": jnp.ones((8, 8))}}), ValueError, r"a/kernel was planned with shape \(8, 16\)"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(params_of())


def test_nan_scores_rank_last_in_a_plan():
    params = {"kernel": jnp.array([[jnp.nan, 1.0], [2.0, jnp.nan]])}
    masks = sj.plan(params, sj.Unstructured(0.5)).masks(sj.masks.magnitude(params))
    assert masks["kernel"].tolist() == [[False, True], [True, False]]


def test_trees_with_odd_leaves():
    """Equinox keeps activations and numbers among the leaves; Haiku has slashes in its keys."""
    tree = {"kernel": jnp.ones((4, 4)), "rate": 0.1, "activation": jax.nn.relu}
    assert len(sj.plan(tree, sj.NM(2, 4))) == 1
    twice = {"a/b": {"kernel": jnp.ones((2, 2))}, "a": {"b": {"kernel": jnp.ones((4, 4))}}}
    with pytest.raises(ValueError, match="same path a/b/kernel"):
        sj.plan(twice, sj.Unstructured(0.5))
    with pytest.raises(ValueError, match="not a regular expression"):
        sj.plan(tree, {"(": sj.NM(2, 4)})


def test_a_kernel_is_a_matrix_whatever_the_module_is_called():
    names = ("time_embedding", "normalizing_flow", "patch_embed")
    tree = {name: {"kernel": jnp.ones((8, 8))} for name in names}
    tree |= {name: {"weight": jnp.ones((8, 8))} for name in ("layer_norm", "Embedding_0", "mlp")}
    plan = sj.plan(tree, sj.NM(2, 4), layout="in_out")
    planned = {leaf.name for leaf in plan.leaves}
    assert planned == {f"{name}/kernel" for name in names} | {"mlp/weight"}


def test_arguments_of_a_wrong_kind_raise():
    params = {"kernel": jnp.ones((4, 4))}
    plan = sj.plan(params, sj.NM(2, 4))
    with pytest.raises(TypeError, match="erk"):
        sj.plan(params, sj.Unstructured(0.5), allocate="erk")
    assert (sj.masks.straight_through(params, plan)["kernel"] == 1).sum() == 8
    with pytest.raises(TypeError, match="compress: plan must be a plan"):
        sj.compress.__wrapped__(params, params)  # as without the type checks of the tests
    with pytest.raises(TypeError, match=r"sj.NM\(2, 4\)"):
        sj.plan(params, {"kernel$": "2:4"})
    with pytest.raises(TypeError, match=r"sj.Unstructured\(0.9\)"):
        sj.plan(params, {"kernel$": 0.9})
    with pytest.raises(ValueError, match="the plan is for kernel but the leaves are weight"):
        plan.masks({"weight": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match="but the leaves are one array without a path; make"):
        plan.masks(jnp.ones((4, 4)))
    with pytest.raises(KeyError, match="plan has no 'zz'; it has kernel"):
        plan["zz"]
    with pytest.raises(TypeError, match="takes masks, got a Plan"):
        sj.masks.apply_masks(params, plan)
    with pytest.raises(TypeError, match="takes masks, got a Plan"):
        sj.optim.keep_masked(plan)
    for transform in (sj.optim.prune, sj.optim.track_masks, sj.optim.sr_ste, sj.optim.movement):
        with pytest.raises(TypeError):
            transform({"kernel$": sj.NM(2, 4)})
    with pytest.raises(ValueError, match="schedule=2.0 must be a fraction"):
        sj.optim.prune(plan, 2.0)


def test_a_bias_is_no_kernel():
    with pytest.raises(ValueError, match=r"dense/bias \(8,\).*kernel\$"):
        sj.plan({"dense": {"bias": jnp.ones(8)}}, {"bias": sj.NM(2, 4)})


def test_scores_leave_keys_and_counters_alone():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "key": jax.random.key(0), "n": jnp.array(3)}
    network = lambda p: p["kernel"] ** 2  # noqa: E731
    for scores in (
        sj.masks.magnitude(params),
        sj.masks.synflow(params, network),
        sj.masks.grasp(params, lambda p: network(p).sum()),
    ):
        assert scores["kernel"].shape == (1, 2) and scores["key"].dtype == params["key"].dtype
    assert sara.below_threshold(params, fraction=0.5)["n"] is None
    masks = sj.plan(params, sj.Unstructured(0.5)).masks(sj.masks.magnitude(params))
    seen = sj.masks.straight_through(params, sj.plan(params, sj.Unstructured(0.5)))
    np.testing.assert_array_equal(seen["kernel"], jnp.where(masks["kernel"], params["kernel"], 0))


def test_thresholds_of_what_is_no_number():
    params = {"a": jnp.array([0.1, jnp.nan]), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"a \(2,\) holds NaN"):
        sara.below_threshold(params, fraction=0.5)
    assert sara.below_threshold(params, 2.0, where="b")["b"].all()
    with pytest.raises(ValueError, match="one of theta and fraction"):
        sara.below_threshold(params, 0.1, fraction=0.1)


@pytest.mark.parametrize("allocate", [sj.masks.erk, sj.masks.joint])
def test_an_allocation_of_fixed_patterns_is_refused(allocate):
    params = {"kernel": jnp.ones((8, 8))}
    with pytest.raises(ValueError, match=r"nothing to allocate, NM\(.*omit allocate"):
        sj.plan(params, sj.NM(2, 4), allocate=allocate)
    mixed = {"a": {"kernel": jnp.ones((8, 8))}, "b": {"kernel": jnp.ones((8, 8))}}
    rules = {"a": sj.NM(2, 4), "b": sj.Unstructured(0.75)}
    assert sj.plan(mixed, rules, allocate=allocate)["b/kernel"].kept == 16


TINY = {"a": {"kernel": jnp.zeros((3, 3, 1, 4))}, "b": {"kernel": jnp.ones((64, 64))}}


@pytest.mark.parametrize(
    "pattern, options, kept",
    [
        (sj.Unstructured(0.99), {}, [0, 41]),
        (sj.Unstructured(0.99), {"min_kept": 1}, [1, 41]),
        (sj.Unstructured(0.99), {"min_kept": 50}, [36, 50]),
        (sj.Unstructured(0.99), {"rounding": "down"}, [1, 41]),
        (sj.Unstructured(0.99), {"rounding": "up"}, [0, 40]),
        (sj.Unstructured(0.99), {"allocate": sj.masks.uniform, "min_kept": 2}, [2, 39]),
        (sj.Unstructured(0.99), {"allocate": sj.masks.joint, "min_kept": 2}, [2, 39]),
        (sj.Unstructured(0.99), {"allocate": sj.masks.erk, "rounding": "up"}, [3, 38]),
        (sj.Channel(0.99), {"min_kept": 2}, [18, 128]),
        (sj.patterns.FanIn(0.99), {"min_kept": 1}, [4, 64]),
        (sj.patterns.FanIn(0.99), {"rounding": "up"}, [0, 0]),
        (sj.NM(1, 1), {"min_kept": 4}, [36, 4096]),
    ],
)
def test_rounding_and_the_least_number_kept(pattern, options, kept):
    """The scores of the small leaf are lower: one selection of both leaves would empty it."""
    plan = sj.plan(TINY, pattern, **options)
    assert [leaf.kept for leaf in plan.leaves] == kept
    assert [int(m.sum()) for m in jax.tree.leaves(plan.masks(TINY))] == kept


def test_each_slice_keeps_the_least_number():
    params = {"kernel": jnp.arange(40.0).reshape(4, 10)}
    for allocate in (None, sj.masks.erk, sj.masks.joint):
        plan = sj.plan(
            params, {"kernel": sj.Unstructured(0.9, stacked=1)}, allocate=allocate, min_kept=1
        )
        assert plan.masks(params)["kernel"].sum(1).tolist() == [1, 1, 1, 1]


def test_modules_may_hold_names_among_their_arrays():
    eqx = pytest.importorskip("equinox")
    norm = eqx.nn.BatchNorm(8, "batch", mode="ema")
    model = {"norm": norm, "linear": eqx.nn.Linear(8, 4, key=jax.random.key(0))}
    assert [leaf.name for leaf in sj.plan(model, {"linear/weight": sj.NM(2, 4)}).leaves] == [
        "linear/weight"
    ]
    for wrong in ({"kernel": "words"}, "words", [jnp.ones(2), object()]):
        with pytest.raises(TypeError, match="params must be a tree of arrays|must be a tree"):
            sj.plan(wrong, sj.NM(2, 4))


def test_masks_of_a_wrong_shape_by_a_pattern_are_told():
    class Wrong(sj.patterns.Pattern):
        free = False

        def units(self, layout):
            return 16

        def zeros(self, layout):
            return 0

        def select(self, scores, layout, zeros, fraction=1.0):
            return jnp.ones((3, 3), bool) if scores.shape == (4, 4) else scores

    for shape in ((4, 4), (2, 8)):
        params = {"layer": {"kernel": jnp.ones(shape)}}
        with pytest.raises(ValueError, match=r"layer/kernel .*Wrong.select must give booleans"):
            sj.plan(params, Wrong()).masks(params)
        with pytest.raises(ValueError, match=r"topk: scores .*Wrong.select must give booleans"):
            sj.masks.topk(jnp.ones(shape), Wrong())


def test_a_rule_of_layouts_that_matches_nothing_is_told():
    params = {"fc": {"weight": jnp.ones((4, 8))}}
    with pytest.raises(ValueError, match=r"layout: the rule 'fcx' matches nothing; .* fc/weight"):
        sj.plan(params, sj.NM(2, 4), layout={"fcx": "out_in"})
