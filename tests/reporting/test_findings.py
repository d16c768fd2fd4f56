"""Each finding: a case that triggers it and one that does not."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.masks import Plan, PlannedLeaf
from sparsejax.reporting import FINDINGS, report, training_flops

W = jax.random.normal(jax.random.key(0), (16, 8))
NM = sj.masks.topk(jnp.abs(W), sj.NM(2, 4))
FREE = sj.masks.topk(jnp.abs(W), sj.Unstructured(0.5))
FULL = jnp.ones((16, 8), bool)


def masked(mask, **others):
    """A network of one masked kernel."""
    return dict(model={"kernel": jnp.where(mask, W, 0), **others}, masks={"kernel": mask})


def planned(mask, pattern, zeros=None):
    if zeros is not None:  # sj.plan would refuse a pattern that does not fit
        return dict(
            masked(mask),
            plan=Plan((PlannedLeaf("kernel", sj.patterns.layout((16, 8)), pattern, zeros),)),
        )
    return dict(masked(mask), plan=sj.plan({"kernel": W}, pattern))


def layers(*sparsities, names=("layer_2", "layer_10", "layer_30")):
    keep = [sj.masks.topk(jnp.abs(W), sj.Unstructured(s)) for s in sparsities]
    return dict(
        model={name: {"kernel": jnp.where(m, W, 0)} for name, m in zip(names, keep)},
        masks={name: {"kernel": m} for name, m in zip(names, keep)},
    )


def moving(*kept, **options):
    """A history of masks that keep the given numbers of rows."""
    history = {i * 10: {"kernel": FULL & (jnp.arange(16) < k)[:, None]} for i, k in enumerate(kept)}
    return dict(masked(list(history.values())[-1]["kernel"]), history=history, **options)


def jumping(**options):
    rows = [FULL & ((jnp.arange(16) + i) % 16 < 8)[:, None] for i in (0, 3, 5)]
    return dict(masked(rows[-1]), history=[{"kernel": m} for m in rows], **options)


ADAM = optax.adam(1e-3).init({"kernel": W})
TWO = {"a": {"kernel": W}, "b": {"kernel": W}}
TOGETHER = sj.plan(TWO, sj.Unstructured(0.5), allocate=sj.masks.joint)
TOGETHER_MASKS = TOGETHER.masks(sj.masks.random(TWO, key=jax.random.key(0)))
COLUMNS = FULL & (jnp.arange(8) < 4)
DEAD = FREE & (jnp.arange(8) != 3) & (jnp.arange(16) != 5)[:, None]

UNUSED = FREE.at[5].set(False)


def behind_another(mask):
    """The second kernel of two: its inputs are units, not features of the data."""
    case = masked(mask)
    return {name: {"a_first": {"kernel": None}} | tree for name, tree in case.items()} | {
        "model": {"a_first": {"kernel": W}} | case["model"]
    }


# Finding: (a case that triggers it, one like it that does not).
CASES = {
    "E1": (dict(masked(NM), model={"kernel": W}), masked(NM)),
    "E2": (planned(FREE, sj.Unstructured(0.75)), planned(FREE, sj.Unstructured(0.5))),
    "E2 missing leaf": (
        dict(masked(FREE, other=jnp.ones(3)), plan=sj.plan(TWO, sj.Unstructured(0.5))),
        planned(FREE, sj.Unstructured(0.5)),
    ),
    "E2 together": (
        dict(
            model=TWO,
            masks={"a": {"kernel": FREE}, "b": {"kernel": FULL}},
            plan=TOGETHER,
        ),
        dict(model=TWO, masks=TOGETHER_MASKS, plan=TOGETHER),
    ),
    "E3": (planned(FREE, sj.NM(2, 4)), planned(NM, sj.NM(2, 4))),
    "E3 block": (
        planned(FREE, sj.Block((4, 4), 0.5)),
        planned(sj.masks.topk(jnp.abs(W), sj.Block((4, 4), 0.5)), sj.Block((4, 4), 0.5)),
    ),
    "E3 channel": (planned(FREE, sj.Channel(0.5)), planned(COLUMNS, sj.Channel(0.5))),
    "E3 groups": (
        planned(FREE, sj.Groups(jnp.arange(128).reshape(16, 8) // 8, 0.5)),
        planned(
            FULL & (jnp.arange(16) < 8)[:, None],
            sj.Groups(jnp.arange(128).reshape(16, 8) // 8, 0.5),
        ),
    ),
    "E4": (masked(jnp.zeros((16, 8), bool)), masked(FREE)),
    "E4 dead units": (masked(DEAD), masked(COLUMNS)),
    "E4 unused inputs": (behind_another(UNUSED), masked(UNUSED)),
    "E5": (planned(FREE, sj.NM(3, 6), zeros=64), planned(FREE, sj.NM(4, 8), zeros=64)),
    "E6": (
        dict(model={"kernel": W.at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))}),
        dict(model={"kernel": W}),
    ),
    "W1": (
        dict(
            model={"embedding": jnp.where(FREE, W, 0), "kernel": W},
            masks={"embedding": FREE, "kernel": None},
        ),
        dict(masked(FREE, embedding=W)),
    ),
    "W1 a weight": (
        dict(model={"embed": {"weight": W}}, masks={"embed": {"weight": FREE}}),
        dict(model={"embed": {"kernel": W}}, masks={"embed": {"kernel": FREE}}),
    ),
    "W1 bias": (
        dict(model={"bias": jnp.array([0.0, 1.0])}, masks={"bias": jnp.array([False, True])}),
        dict(model={"bias": jnp.array([0.0, 1.0])}),
    ),
    "W2": (masked(FREE, embedding=jnp.ones((16, 8))), masked(FREE, embedding=jnp.ones((2, 8)))),
    "W3": (layers(0.5, 0.5, 0.9), layers(0.5, 0.9, 0.5)),
    "W3 first": (layers(0.9, 0.5, 0.5), layers(0.5, 0.9, 0.5)),
    "W4": (masked(FREE), masked(NM)),
    "W4 claimed": (planned(FREE, sj.Unstructured(0.5)), planned(NM, sj.NM(2, 4))),
    "W5": (jumping(opt_state=ADAM), moving(16, 8, opt_state=ADAM)),
    "W6": (
        dict(model={"kernel": jnp.where(FREE, W, 1e-9)}),
        dict(model={"kernel": jnp.where(FREE, W, 0.0)}),
    ),
    "W7": (moving(16, 12, 10, 8), moving(16, 12, 8, 8)),
    "W8": (dict(masked(NM), seeds=1), dict(masked(NM), seeds=3)),
    "W9": (
        jumping(),
        jumping(training=partial(training_flops, "rigl", every=100)),
    ),
}


def codes(case):
    return {f.code for f in report(**case).findings}


@pytest.mark.parametrize("name", CASES)
def test_found_and_not_found(name):
    code = name.split()[0]
    found, not_found = CASES[name]
    assert code in codes(found)
    assert code not in codes(not_found)


def test_every_finding_is_tested():
    assert {name.split()[0] for name in CASES} == set(FINDINGS)


def test_a_clean_network_has_no_findings():
    assert report(**planned(NM, sj.NM(2, 4)), seeds=3).findings == ()


def test_findings_say_where_and_how_many():
    (error,) = [f for f in report(**CASES["E1"][0]).findings if f.code == "E1"]
    assert (error.level, error.path) == ("error", "kernel") and "64 values" in error.text
    (error,) = [f for f in report(**CASES["E4 dead units"][0]).findings if f.code == "E4"]
    assert "1 of 8 units have no inputs" in error.text and "not used" not in error.text
    (error,) = [f for f in report(**behind_another(DEAD)).findings if f.code == "E4"]
    assert "1 of 8 units have no inputs, 1 of 16 inputs are not used" in error.text
    (error,) = [f for f in report(**CASES["E6"][0]).findings if f.code == "E6"]
    assert (error.level, error.path) == ("error", "kernel")
    assert "3 of 128 values are NaN or infinite" in error.text
    (error,) = [f for f in report(**CASES["E2"][0]).findings if f.code == "E2"]
    assert "64 entries are kept, 32 are planned" in str(error)
    (warning,) = [f for f in report(**CASES["W3"][0]).findings if f.code == "W3"]
    assert warning.level == "warning" and warning.path == "layer_30/kernel"


def test_errors_come_first():
    found = [f.code for f in report(**dict(masked(FREE), model={"kernel": W}), seeds=1).findings]
    assert found == sorted(found) and {"E1", "W4", "W8"} <= set(found)


def test_the_first_layer_in_order_of_use():
    case = layers(0.9, 0.5, 0.5, names=("z_first", "m_second", "a_third"))

    def apply(p, x):
        first, second, third = (p[n]["kernel"] for n in ("z_first", "m_second", "a_third"))
        return x @ first @ second.T @ third

    found = report(**case, example=jnp.ones((1, 16)), apply=apply).findings
    (warning,) = [f for f in found if f.code == "W3"]
    assert "the first layer" in warning.text


def test_dead_units_of_convolutions_and_stacked_kernels():
    w = jnp.ones((3, 3, 4, 6)).at[..., 1, :].set(0).at[1, 1, 2].set(0).at[..., 5].set(0)
    w = w.at[0, 0, 0, 0].set(0)  # not an outer product
    model = {"a_first": {"kernel": W}, "kernel": w}
    (error,) = [f for f in report(model).findings if f.code == "E4"]
    assert "1 of 6 units have no inputs, 1 of 4 inputs are not used" in error.text
    layers = jnp.ones((2, 4, 4)).at[1, :, 2].set(0).at[0, 0, 0].set(0)
    plan = sj.plan({"kernel": layers}, sj.Unstructured(0.2, stacked=1))
    (error,) = [f for f in report({"kernel": layers}, plan=plan).findings if f.code == "E4"]
    assert "1 of 8 units have no inputs" in error.text
    layers = layers.at[1].set(0)
    (error,) = [f for f in report({"kernel": layers}, plan=plan).findings if f.code == "E4"]
    assert "no entry is kept in 1 of 2 slices, as in 1" in error.text


def test_the_last_layer_is_the_last_that_was_defined():
    # JAX sorts the keys of dicts, so that trees that went through it have no order of their own.
    layers = {"stem": jnp.ones((16, 16)), "up": jnp.ones((16, 32)), "head": jnp.ones((32, 16))}
    params = {name: {"kernel": w} for name, w in layers.items()}
    for name, expected in (("stem", ["first"]), ("up", []), ("head", ["last"])):
        plan = sj.plan(params, {f"{name}/kernel": sj.Unstructured(0.95)})
        masks = plan.masks(sj.masks.magnitude(params))
        found = sj.report(sj.masks.apply_masks(params, masks), masks, plan).findings
        assert [f.text.split()[1] for f in found if f.code == "W3"] == expected


def test_layers_in_lists_and_modules_have_the_order_of_definition():
    from sparsejax._tree import definition_order

    tree = {"b": [{"kernel": 0}, {"kernel": 1}], "a": {10: 0, 2: 1}}
    assert definition_order(tree, ["a/2", "a/10", "b/1/kernel", "b/0/kernel", "z"]) == [
        "b/0/kernel", "b/1/kernel", "a/10", "a/2", "z"]  # fmt: skip
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert definition_order(model, ["layers/1/kernel", "layers/0/kernel"])[0] == "layers/0/kernel"


def test_the_total_names_what_an_allocation_cannot_prune():
    params = {"a": {"kernel": jnp.ones((64, 64))}, "b": {"kernel": jnp.ones((128, 128))}}
    plan = sj.plan(params, {"a/kernel": sj.Unstructured(0.9)}, allocate=sj.masks.erk)
    masks = plan.masks(sj.masks.magnitude(params))
    found = sj.report(sj.masks.apply_masks(params, masks), masks, plan)
    (text,) = [f.text for f in found.findings if f.code == "W2"]
    assert "b/kernel, 80% of the parameters, is not planned" in text
