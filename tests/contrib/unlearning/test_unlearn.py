"""Unlearners against closed forms and dense linear algebra; splits; attacks on membership."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import sparsejax as sj
from sparsejax.contrib import unlearning
from tests._problem import DATA, logits, loss, mlp, same

KEY = jax.random.key(3)
PARAMS = mlp(jax.random.key(4), (8, 4, 4))
PLAN = sj.plan(PARAMS, sj.Unstructured(0.5))
MASKS = PLAN.masks(sj.masks.magnitude(PARAMS))
FORGET, RETAIN = (
    jax.tree.map(lambda x, r=rows: x[r], DATA)
    for rows in unlearning.forget_split(DATA["y"], label=1)
)
run = partial(
    unlearning.unlearn,
    PARAMS,
    MASKS,
    loss=loss,
    forget=FORGET,
    retain=RETAIN,
    key=KEY,
    batch_size=999,
)


def masked(tree):
    return sj.masks.apply_masks(tree, MASKS)


def close(a, b, **tol):
    jax.tree.map(partial(np.testing.assert_allclose, **tol), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method, sign", [("finetune", -1), ("ascent", 1)])
def test_one_step_of_full_batches_by_hand(method, sign):
    found = run(method=method, optimizer=optax.sgd(0.1), steps=1)
    batch = FORGET if method == "ascent" else RETAIN
    grads = jax.grad(loss)(masked(PARAMS), batch)
    expected = masked(jax.tree.map(lambda p, g: p + sign * 0.1 * g, PARAMS, grads))
    close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("free, gammas", [(0, (0.3, 0.2, 0.1)), (1, (0.3, 0.15, 0)), (3, (0,) * 3)])
def test_l1_adds_signs_that_fall_by_epoch(free, gammas):
    found = run(method="l1", optimizer=optax.sgd(0.1), steps=3, strength=0.3, free_epochs=free)
    params = masked(PARAMS)
    for gamma in gammas:  # a full batch is an epoch
        grads = jax.grad(loss)(params, RETAIN)
        params = jax.tree.map(lambda p, g, c=gamma: p - 0.1 * (g + c * jnp.sign(p)), params, grads)
        params = masked(params)
    close(found, params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_influence_against_a_dense_solve():
    found = unlearning.influence_unlearning(
        PARAMS, MASKS, loss, forget=FORGET, retain=RETAIN, damping=0.5, alpha=2.0
    )
    theta, unravel = ravel_pytree(masked(PARAMS))
    flat = jax.jit(lambda b: ravel_pytree(masked(jax.grad(loss)(unravel(theta), b)))[0])
    n_f, n_r = len(FORGET["y"]), len(RETAIN["y"])
    each = [flat(jax.tree.map(lambda x, i=i: x[i : i + 1], RETAIN)) for i in range(n_r)]
    g = np.stack(each).astype(np.float64)
    h = 0.5 * np.eye(theta.size) + g.T @ g / n_r
    v = n_f / (n_f + n_r) * (flat(FORGET) - flat(RETAIN))
    expected = np.asarray(theta) + 2.0 * np.linalg.solve(h, v)
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-3, atol=1e-5)


def test_the_cheap_recursion_is_that_of_the_authors():
    theta, some = jnp.array([0.5, -1.0, 2.0]), lambda n: jax.random.normal(KEY, (n, 3))
    square = lambda w, batch: jnp.mean((batch @ w - 1) ** 2) / 2  # noqa: E731
    found = unlearning.influence_unlearning(
        theta, None, square, forget=some(4), retain=some(9), samples=7, method="woodfisher_cheap"
    )
    w = np.asarray(theta, np.float64)
    each = lambda x: np.asarray(x, np.float64) * (np.asarray(x, np.float64) @ w - 1)[:, None]  # noqa: E731
    retained = each(some(9))
    k = 4 / 13 * (each(some(4)).mean(0) - retained.mean(0))
    o = retained[0].copy()
    for g in retained[1:7]:
        t = o @ g
        k -= (k @ g) / (7 + t) * o
        o -= t / (7 + t) * o
    np.testing.assert_allclose(found, w + k, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_batchwise_fisher_diagonal_of_softmax_regression(chunk):
    x, w = DATA["x"][:10], jax.random.normal(KEY, (8, 4))
    found = unlearning.fisher_diagonal(w, lambda w, x: x @ w, x, batch_size=4, chunk=chunk)
    p, x = np.asarray(jax.nn.softmax(x @ w)), np.asarray(x)
    total = 0
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        for c in range(4):
            gradient = x[rows].T @ (p[rows] - np.eye(4)[c]) / len(x[rows])
            total = total + p[rows, c].mean() * gradient**2 / 3
    np.testing.assert_allclose(found, total, rtol=1e-3, atol=1e-6)


def test_the_fisher_diagonal_of_softmax_regression():
    x = DATA["x"][:10]
    w = jax.random.normal(KEY, (8, 4))
    found = unlearning.fisher_diagonal(w, lambda w, x: x @ w, x, chunk=3)
    # d(-log p_c) / d w_ij = x_i (p_j - [c = j]), so the expectation is x_i^2 p_j (1 - p_j).
    p = np.asarray(jax.nn.softmax(x @ w))
    expected = np.mean(np.asarray(x)[:, :, None] ** 2 * (p * (1 - p))[:, None, :], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_fisher_noise_has_the_variance_said():
    w = {"hidden": jnp.zeros((2, 4000)), "output": jnp.zeros((2, 4000))}
    nothing = lambda p, x: jnp.zeros((x.shape[0], 2)) * p["hidden"].sum()  # noqa: E731
    found = unlearning.fisher_forgetting(
        w, None, nothing, jnp.ones((1, 1)), key=KEY, alpha=1e-3, output="output"
    )
    # F = 0: the bounds 1e3 and 1e2 are met, the output layer times ten.
    assert float(found["hidden"].std()) == pytest.approx(1.0, rel=0.05)
    assert float(found["output"].std()) == pytest.approx(1.0, rel=0.05)


def test_a_forgotten_class_becomes_noise_in_the_output_layer():
    w = {
        "hidden": jnp.ones((2000, 3)),
        "output": {"kernel": jnp.ones((4000, 3)), "bias": jnp.ones(3)},
    }
    forget = partial(
        unlearning.fisher_forgetting, w, None,
        lambda p, x: x @ p["hidden"], jnp.ones((1, 2000)), key=KEY, alpha=0.0, output="output",
    )  # fmt: skip
    found = forget(label=1)
    kernel = np.asarray(found["output"]["kernel"])
    assert (kernel[:, [0, 2]] == 1).all() and (found["hidden"] == 1).all()
    assert (np.asarray(found["output"]["bias"]) == 1).tolist() == [True, False, True]
    assert kernel[:, 1].std() == pytest.approx(1e-3**0.5, rel=0.05)
    assert abs(kernel[:, 1].mean()) < 2e-3
    for bad, match in ((dict(label=3), "label=3 must be below 3"), (dict(label=1, output=None),
                       "needs the output layer")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            forget(**bad)


@pytest.mark.slow
def test_masks_hold_and_nothing_to_forget_changes_nothing():
    empty = jax.tree.map(lambda x: x[:0], FORGET)
    none = unlearning.unlearn(
        PARAMS, MASKS, "l1", loss, optax.sgd(0.1), forget=empty, retain=RETAIN, steps=3, key=KEY
    )
    assert same(none, masked(PARAMS))
    noisy = unlearning.fisher_forgetting(PARAMS, MASKS, logits, RETAIN["x"], key=KEY, alpha=1e-3)
    moved = unlearning.influence_unlearning(PARAMS, MASKS, loss, forget=FORGET, retain=RETAIN)
    trained = run(method="l1", optimizer=optax.sgd(0.1, 0.9), steps=5)
    for tree, name in itertools.product((noisy, moved, trained), PARAMS):
        assert jnp.all(jnp.where(MASKS[name]["kernel"], 0, tree[name]["kernel"]) == 0)


def test_splits():
    forget, retain = unlearning.forget_split(DATA["y"], fraction=0.1, key=KEY)
    assert len(forget) == 13 and len(retain) == 115
    assert sorted([*forget, *retain]) == list(range(128))


def test_the_attack_by_brute_force():
    rng = np.random.default_rng(0)
    members, others, targets = rng.beta(5, 1, 40), rng.beta(2, 2, 30), rng.random(25)
    best = max(
        np.unique(np.r_[members, others]),
        key=lambda t: (np.mean(members >= t) + np.mean(others < t), -t),
    )
    found = unlearning.membership_attack(*map(jnp.asarray, (members, others, targets)))
    assert found == pytest.approx(np.mean(targets < best))
    # 2/3 + 1 and 1 + 2/3 differ in floats: the lowest of equal thresholds, 2, classifies.
    equal = map(jnp.asarray, ([2.0, 3.0, 3.0], [0.0, 1.0, 2.0], [2.0]))
    assert unlearning.membership_attack(*equal) == 0


def test_the_attack_of_the_paper():
    svm = pytest.importorskip("sklearn.svm")
    rng = np.random.default_rng(1)
    a, b, t = (rng.beta(*s, 50) for s in ((5, 1), (2, 2), (3, 1)))
    machine = svm.SVC(C=3, gamma=1.0).fit(np.r_[a, b][:, None], [1] * 50 + [0] * 50)
    expected = np.mean(machine.predict(t[:, None]) == 0)
    assert unlearning.membership_attack(a, b, t, attack="svc") == pytest.approx(expected)


def test_reports_and_their_gap():
    p = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels = jnp.array([0, 1, 1])
    report = unlearning.unlearning_report((p[2:], labels[2:]), (p, labels), (p[:2], labels[:2]))
    assert report.unlearning == 1 and report.test == 1 and report.retain == pytest.approx(2 / 3)
    other = report._replace(unlearning=0.5, test=0.9)
    assert report.gap(other) == pytest.approx((0.5 + 0.1) / 4)
    empty = unlearning.unlearning_report((p[:0], labels[:0]), (p, labels), (p, labels))
    assert np.isnan(empty.unlearning) and np.isnan(empty.membership)


def test_what_is_refused():
    with pytest.raises(ValueError, match="no sample has class 7"):
        unlearning.forget_split(DATA["y"], label=7)
    with pytest.raises(ValueError, match="one of the two"):
        unlearning.forget_split(DATA["y"])
    with pytest.raises(ValueError, match="nothing would be retained"):
        unlearning.forget_split(jnp.zeros(3, int), label=0)
    nothing = jax.tree.map(lambda x: x[:0], RETAIN)
    with pytest.raises(ValueError, match="retain is empty"):
        unlearning.unlearn(
            PARAMS, None, "finetune", loss, optax.sgd(0.1), forget=FORGET, retain=nothing,
            steps=1, key=KEY,
        )  # fmt: skip
    with pytest.raises(TypeError, match=r"loss\(params, batch\)"):
        unlearning.influence_unlearning(PARAMS, None, lambda p: 0.0, forget=FORGET, retain=RETAIN)
    with pytest.raises(ValueError, match="matches none"):
        unlearning.fisher_forgetting(PARAMS, None, logits, RETAIN["x"], key=KEY, output="head")
    influence = partial(
        unlearning.influence_unlearning, PARAMS, None, loss, forget=FORGET, retain=RETAIN
    )
    wrong = {"'exact' or 'woodfisher_cheap'": dict(method="cg"),
             "must be 1 with": dict(method="woodfisher_cheap", damping=0.5)}  # fmt: skip
    for match, bad in wrong.items():
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(influence.func)(*influence.args, **influence.keywords, **bad)
    p = jnp.ones((0, 2))
    with pytest.raises(ValueError, match="retain is empty"):
        unlearning.unlearning_report(*[(p, jnp.zeros(0, int))] * 3)


def test_influence_keeps_the_dtype_and_solves_in_float32():
    data = {"forget": jnp.array([3.0]), "retain": jnp.array([1.0, 1.25])}

    def run(dtype):
        square = lambda w, batch: jnp.mean((batch - w.sum()) ** 2)  # noqa: E731
        return unlearning.influence_unlearning(jnp.ones(2, dtype), None, square, **data)

    found = run(jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, run(jnp.float32).astype(jnp.bfloat16))


def test_labels_that_are_no_class_are_refused():
    p = jnp.ones((2, 2)) / 2
    with pytest.raises(ValueError, match="forget: labels go from 0 to 2"):
        unlearning.unlearning_report(
            (p, jnp.array([0, 2])), (p, jnp.array([0, 1])), (p, jnp.array([0, 1]))
        )


def test_rows_that_are_no_probabilities_are_refused():
    labels = jnp.array([0, 1])
    good = jax.nn.softmax(jax.random.normal(KEY, (2, 1000)).astype(jnp.bfloat16))
    unlearning.unlearning_report(*[(good, labels)] * 3)
    good = jnp.eye(2)
    for bad, what in (
        (jnp.array([[0.5, 0.5], [jnp.nan, 1.0]]), "row 1 .* not finite"),
        (jnp.array([[3.0, -2.0], [0.5, 0.5]]), "row 0 .* negative"),
        (jnp.array([[3.0, 2.0], [0.5, 0.5]]), "row 0 .* sum 5, .*softmax"),
    ):
        with pytest.raises(ValueError, match=f"forget: {what}"):
            unlearning.unlearning_report((bad, labels), *[(good, labels)] * 2)
    with pytest.raises(ValueError, match="targets .* finite"):
        unlearning.membership_attack(jnp.ones(1), jnp.zeros(1), jnp.array([jnp.nan]))


def test_labels_are_one_class_a_sample():
    with pytest.raises(ValueError, match=r"argmax"):
        inspect.unwrap(unlearning.forget_split)(np.eye(3), label=1)
    with pytest.raises(TypeError, match=r"label='3' must be a class .* label=3"):
        inspect.unwrap(unlearning.forget_split)(np.arange(4), label="3")


@pytest.mark.slow
def test_ascent_does_not_look_at_what_is_retained():
    nothing = jax.tree.map(lambda x: x[:0], RETAIN)
    found = unlearning.unlearn(
        PARAMS, MASKS, "ascent", loss, optax.sgd(0.1), forget=FORGET, retain=nothing, steps=1,
        key=KEY,
    )  # fmt: skip
    assert same(found, run(method="ascent", optimizer=optax.sgd(0.1), steps=1))
