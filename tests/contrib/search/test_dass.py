"""Learned masks and architecture search: what alpha sees, what each stage moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import recipes
from sparsejax.contrib import search
from tests._problem import DATA, PARAMS, TEST, accuracy, loss, same

KEY = jax.random.key(4)
PLAN = sj.plan(PARAMS, sj.Unstructured(0.75))
DENSE = search.Stage(15, optax.sgd(0.1, 0.9))
SCORES = search.Stage(25, optax.sgd(0.1))


def mixed_loss(params, alpha, batch):
    """Two readings of the second layer, mixed."""
    p = jax.nn.softmax(alpha)
    h = batch["x"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"]
    h = p[0] * jax.nn.relu(h) + p[1] * jnp.sin(h)
    found = h @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()


@pytest.mark.slow
def test_second_order_is_the_derivative_through_the_step():
    """Against central differences of the validation loss after the step, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
        train, test = ({"x": np.asarray(d["x"], np.float64), "y": d["y"]} for d in (DATA, TEST))
        tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.3, 0.9))
        _, state = tx.update(params, tx.init(params), params)
        alpha = jnp.array([0.3, -0.2], jnp.float64)
        masks = PLAN.masks(sj.masks.magnitude(params))

        def value(alpha, masks):
            see = lambda w: w if masks is None else sj.masks.apply_masks(w, masks)  # noqa: E731
            return search.bilevel_gradient(
                lambda w, a: mixed_loss(see(w), a, train),
                lambda w, a: mixed_loss(see(w), a, test), params, alpha, tx, state,
            )  # fmt: skip

        gradients = []
        for given in (masks, None):
            found, h = value(alpha, given)[1], 1e-5
            for i in range(2):
                step = h * jnp.eye(2)[i]
                values = [value(alpha + s, given)[0] for s in (step, -step)]
                np.testing.assert_allclose(found[i], (values[0] - values[1]) / (2 * h), rtol=1e-3)
            gradients.append(np.asarray(found))
        # What the dense network would say is something else.
        assert np.abs(gradients[0] - gradients[1]).max() > 0.01 * np.abs(gradients[0]).max()


def test_second_order_through_adam_where_a_gradient_is_zero():
    """A pixel that is always dead: Adam moves by its rate, so that `w = 0.5 + 0.01` at alpha 1."""
    f = lambda w, a: jnp.sum((a * jnp.array([0.0, 1.0]) * w - 1) ** 2)  # noqa: E731
    w, tx = jnp.array([1.0, 0.5]), optax.adam(0.01)
    _, found = search.bilevel_gradient(f, f, w, jnp.array(1.0), tx, tx.init(w))
    np.testing.assert_allclose(found, 2 * (0.51 - 1) * 0.51, rtol=1e-4)


@pytest.mark.slow
def test_masks_of_data_with_a_dead_pixel():
    x = jax.random.normal(KEY, (16, 4)).at[:, 0].set(0.0)
    data = {"x": x, "y": x @ jnp.array([[0.0], [1.0], [-2.0], [0.5]])}
    fit = lambda p, a, b: jnp.mean((a * (b["x"] @ p["kernel"]) - b["y"]) ** 2)  # noqa: E731
    params, stage = (
        {"kernel": jnp.array([[0.1], [1.0], [-1.0], [0.1]])},
        search.Stage(4, optax.adam(0.01)),
    )
    found = search.dass(
        params, jnp.array(1.0), fit, sj.plan(params, {"kernel": sj.Unstructured(0.5)}), data, data,
        key=KEY, pretrain=stage, prune=stage, finetune=stage, batch_size=8, second_order=True,
        alpha_optimizer=optax.adam(0.01),
    )  # fmt: skip
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert found.masks["kernel"].ravel().tolist() == [False, True, True, False]


@pytest.mark.slow
def test_alpha_sees_the_network_that_the_scores_prune():
    """First order, against the network with its smallest weights set to 0 by hand."""
    alpha, scores = jnp.array([0.3, -0.2]), search.scaled_scores(PARAMS, PLAN)
    seen = lambda s, a: mixed_loss(search.apply_scores(PARAMS, s, PLAN), a, TEST)  # noqa: E731
    _, found = search.bilevel_gradient(seen, seen, scores, alpha)
    by_hand = {}
    for name, layer in PARAMS.items():
        w = np.asarray(layer["kernel"]).copy()
        w.ravel()[np.argsort(np.abs(w).ravel())[: round(0.75 * w.size)]] = 0
        by_hand[name] = {"kernel": jnp.asarray(w), "bias": layer["bias"]}
    h = 1e-2
    for i in range(2):
        ends = [float(mixed_loss(by_hand, alpha + s * h * jnp.eye(2)[i], TEST)) for s in (1, -1)]
        np.testing.assert_allclose(found[i], (ends[0] - ends[1]) / (2 * h), rtol=5e-3)


def test_first_order_leaves_the_step_out():
    alpha = jnp.array([0.3, -0.2])
    validation = lambda w, a: mixed_loss(w, a, TEST)  # noqa: E731
    value, grads = search.bilevel_gradient(validation, validation, PARAMS, alpha)
    exact = jax.value_and_grad(lambda a: mixed_loss(PARAMS, a, TEST))(alpha)
    np.testing.assert_allclose(value, exact[0])
    np.testing.assert_allclose(grads, exact[1], rtol=1e-6)
    with pytest.raises(ValueError, match="state of the optimizer"):
        search.bilevel_gradient(validation, validation, PARAMS, alpha, optax.sgd(0.1))


@pytest.mark.slow
def test_score_prune_learns_scores_and_then_weights():
    run = jax.jit(
        lambda key: search.score_prune(
            PARAMS, loss, PLAN, DATA, key=key, pretrain=DENSE, prune=SCORES, finetune=DENSE,
            batch_size=32,
        )
    )  # fmt: skip
    found = run(KEY)
    assert [x.shape for x in found.losses] == [(15,), (25,), (15,)]
    for name in PARAMS:
        mask = np.asarray(found.masks[name]["kernel"])
        assert mask.sum() == PLAN[f"{name}/kernel"].kept
        np.testing.assert_array_equal(np.asarray(found.params[name]["kernel"]) == 0, ~mask)
        top = sj.masks.topk(jnp.abs(found.scores[name]["kernel"]), sj.Unstructured(0.75))
        np.testing.assert_array_equal(mask, top)
    assert float(accuracy(found.params, TEST)) > 0.6


@pytest.mark.slow
def test_learned_scores_beat_the_magnitudes_they_start_from():
    weights = recipes.train_masked(
        PARAMS, None, loss, DENSE.optimizer, DATA, steps=100, key=KEY, batch_size=32
    )
    magnitude = sj.masks.apply_masks(weights, PLAN.masks(sj.masks.magnitude(weights)))
    still = search.score_prune(
        weights, loss, PLAN, DATA, key=KEY, prune=search.Stage(0, optax.sgd(0.1)), batch_size=32
    )
    assert same(still.params, magnitude)
    learned = search.score_prune(
        weights, loss, PLAN, DATA, key=KEY, prune=search.Stage(200, optax.sgd(0.1)), batch_size=32
    )
    kept = {n: jnp.where(learned.masks[n]["kernel"], weights[n]["kernel"], 0) for n in PARAMS}
    for name in PARAMS:  # the weights were frozen
        np.testing.assert_array_equal(learned.params[name]["kernel"], kept[name])
    assert float(loss(learned.params, DATA)) < 0.8 * float(loss(magnitude, DATA))


@pytest.mark.slow
def test_dass_moves_alpha_in_every_stage_and_no_optimizer_but_its_own_does():
    alpha = jnp.zeros(2)
    options = dict(key=KEY, pretrain=DENSE, prune=SCORES, finetune=DENSE, batch_size=32)
    still = search.dass(PARAMS, alpha, mixed_loss, PLAN, DATA, TEST,
                         alpha_optimizer=optax.set_to_zero(), **options)  # fmt: skip
    np.testing.assert_array_equal(still.alpha, alpha)
    moved = [
        search.dass(PARAMS, alpha, mixed_loss, PLAN, DATA, TEST,
                     alpha_optimizer=optax.adam(0.1), **(options | left)).alpha
        for left in ({}, {"finetune": None}, {"finetune": None, "pretrain": None})
    ]  # fmt: skip
    assert all(float(jnp.abs(a).max()) > 0.1 for a in moved)
    assert not np.array_equal(moved[0], moved[1]) and not np.array_equal(moved[1], moved[2])
    assert [x.shape for x in still.validation] == [(15,), (25,), (15,)]


@pytest.mark.slow
def test_dass_without_alpha_is_score_prune():
    options = dict(key=KEY, prune=SCORES, finetune=DENSE, batch_size=32)
    plain = search.score_prune(PARAMS, loss, PLAN, DATA, **options)
    found = search.dass(PARAMS, None, lambda p, a, b: loss(p, b), PLAN, DATA, None, **options)
    assert same(plain.params, found.params) and found.alpha is None


def test_mistakes():
    with pytest.raises(TypeError, match=r"loss\(params, batch\)"):
        search.score_prune(PARAMS, mixed_loss, PLAN, DATA, key=KEY, prune=SCORES)
    with pytest.raises(ValueError, match="give both, or neither"):
        search.dass(PARAMS, jnp.zeros(2), mixed_loss, PLAN, DATA, None, key=KEY, prune=SCORES)
    together = sj.plan(PARAMS, sj.Unstructured(0.5), allocate=sj.masks.joint)
    with pytest.raises(ValueError, match="compared within a leaf"):
        search.score_prune(PARAMS, loss, together, DATA, key=KEY, prune=SCORES)
