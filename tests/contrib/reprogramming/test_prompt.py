"""Label mappings and prompts against plain loops; probes against scikit-learn's optimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.contrib import reprogramming
from sparsejax.contrib.reprogramming._mapping import random_mapping
from tests._problem import DATA, same

KEY = jax.random.key(3)
W = jax.random.normal(KEY, (4 * 5 * 2, 6)) * 0.5
X = jax.random.uniform(jax.random.key(1), (32, 2, 2, 2))
Y = (X.sum((1, 2, 3)) > 4).astype(jnp.int32)


def network(x):
    return jnp.tanh(x.reshape(x.shape[0], -1)) @ W


learn = partial(
    reprogramming.visual_prompt, network, X, Y, size=(4, 5), classes=2, key=KEY, batch_size=8
)


def greedy(table, k=1):
    table, mapping = table.astype(float), [[] for _ in table.T]
    for _ in range(k * table.shape[1]):
        s, t = np.unravel_index(np.argmax(table), table.shape)
        mapping[t].append(s)
        table[s] = -1
        if len(mapping[t]) == k:
            table[:, t] = -1
    return np.array(mapping)


@pytest.mark.slow
def test_mapping_by_frequency_is_a_plain_greedy_loop():
    rng = np.random.default_rng(0)
    for sources, targets, n, k in (
        (7, 3, 40, 1),
        (5, 5, 12, 1),
        (6, 4, 2, 1),
        (7, 3, 40, 2),
        (6, 2, 3, 3),
    ):
        predicted, labels = rng.integers(0, sources, n), rng.integers(0, targets, n)
        table = np.zeros((sources, targets), int)
        np.add.at(table, (predicted, labels), 1)
        found = reprogramming.frequency_mapping(
            jnp.asarray(predicted), jnp.asarray(labels), sources, targets, per_class=k
        )
        expected = greedy(table, k)
        np.testing.assert_array_equal(found, expected[:, 0] if k == 1 else expected)
        assert len(set(found.ravel().tolist())) == k * targets


def test_the_border():
    delta = jax.random.normal(KEY, (4, 5, 2))
    expected = np.array(jnp.broadcast_to(jax.nn.sigmoid(delta), (32, 4, 5, 2)))
    expected[:, 1:3, 2:4] = X  # ceil(2 / 2) = 1 above, ceil(3 / 2) = 2 on the left
    np.testing.assert_allclose(reprogramming.prompt_images(X, delta), expected, rtol=1e-6)


@pytest.mark.parametrize("width, inner", [(1, np.s_[1:3, 1:4]), (2, np.s_[:0])])
def test_a_frame_covers_the_outer_rows(width, inner):
    image, delta = jnp.ones((1, 4, 5, 2)), jax.random.normal(KEY, (4, 5, 2))
    expected = 1 + np.array(delta)
    expected[inner] = 1
    found = reprogramming.prompt_images(image, delta, frame=width)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_a_frame_is_trained_with_two_sources_a_class():
    images = jnp.pad(X, ((0, 0), (1, 1), (1, 2), (0, 0)))
    found = reprogramming.visual_prompt(
        network, images, Y, size=(4, 5), classes=2, key=KEY, batch_size=32, epochs=1,
        optimizer=optax.sgd(0.5), frame=1, per_class=2,
    )  # fmt: skip
    predicted = np.asarray(network(images).argmax(-1))
    table = np.zeros((6, 2), int)
    np.add.at(table, (predicted, np.asarray(Y)), 1)
    mapping = greedy(table, 2)
    np.testing.assert_array_equal(found.mapping, mapping)
    ring = np.ones((4, 5, 1))
    ring[1:3, 1:4] = 0

    def loss(delta):
        logits = network(images + delta * ring)
        logits = (logits[:, mapping[:, 0]] + logits[:, mapping[:, 1]]) / 2
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    np.testing.assert_allclose(found.prompt, -0.5 * jax.grad(loss)(jnp.zeros((4, 5, 2))), atol=1e-6)
    expected = network(images + found.prompt * ring)[:, mapping].mean(-1)
    np.testing.assert_allclose(found.logits(network, images), expected, rtol=1e-5)


@pytest.mark.slow
def test_training_is_a_plain_loop_with_the_mapping_of_each_epoch():
    found = learn(epochs=3, optimizer=optax.sgd(0.5))
    delta = jnp.zeros((4, 5, 2))
    for e in range(3):
        predicted = network(reprogramming.prompt_images(X, delta)).argmax(-1)
        mapping = reprogramming.frequency_mapping(predicted, Y, 6, 2)
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(KEY, e + 1), 0), 32)
        for rows in order.reshape(4, 8):

            def loss(d, rows=rows, mapping=mapping):
                logits = network(reprogramming.prompt_images(X[rows], d))[:, mapping]
                return optax.softmax_cross_entropy_with_integer_labels(logits, Y[rows]).mean()

            delta = delta - 0.5 * jax.grad(loss)(delta)
    np.testing.assert_array_equal(found.mapping, mapping)
    np.testing.assert_allclose(found.prompt, delta, rtol=1e-4, atol=1e-6)
    logits = network(reprogramming.prompt_images(X, found.prompt))[:, found.mapping]
    np.testing.assert_array_equal(found.logits(network, X), logits)


@pytest.mark.parametrize("mapping", ["frequency", "random"])
def test_other_mappings_stay(mapping):
    seen = []
    found = learn(epochs=3, mapping=mapping, callback=seen.append)
    assert all(same(found.mapping, s.params.mapping) for s in seen)
    # The image covers the middle: nothing is learned there.
    assert jnp.all(found.prompt[1:3, 2:4] == 0) and jnp.any(found.prompt != 0)


def test_a_run_that_was_killed_resumes_to_the_same_result():
    seen = []
    whole = learn(epochs=4, callback=seen.append)
    assert len(seen) == 4
    assert same(learn(epochs=4, resume=seen[1]), whole)


@pytest.mark.slow
def test_a_probe_reaches_the_optimum():
    sklearn = pytest.importorskip("sklearn.linear_model")
    decay = 0.1  # a strongly convex problem, so that the optimum is reached
    decayed = optax.masked(optax.add_decayed_weights(decay), {"kernel": True, "bias": False})
    tx = optax.chain(decayed, optax.sgd(0.05, 0.9))
    head = reprogramming.linear_probe(
        DATA["x"], DATA["y"], classes=4, steps=1500, key=KEY, optimizer=tx, batch_size=128
    )
    x, y = np.asarray(DATA["x"]), np.asarray(DATA["y"])
    best = sklearn.LogisticRegression(C=1 / (decay * len(y)), tol=1e-8, max_iter=2000).fit(x, y)
    np.testing.assert_allclose(head["kernel"], best.coef_.T, atol=5e-3)


def test_few_shots():
    y = np.array([0] * 10 + [1] * 3 + [2] * 7)
    rows = reprogramming.few_shot(y, 5, key=KEY)
    assert np.bincount(y[rows]).tolist() == [5, 3, 5] and len(set(rows)) == 13


def test_what_is_refused():
    with pytest.raises(ValueError, match="cannot be mapped"):
        random_mapping(3, 4, key=KEY)
    with pytest.raises(ValueError, match="no border"):
        reprogramming.visual_prompt(network, X, Y, size=(2, 2), classes=2, key=KEY)
    with pytest.raises(ValueError, match="labels must be from 0 to .*, got 0 to 1"):
        reprogramming.visual_prompt(network, X, Y, size=(4, 5), classes=1, key=KEY)
    with pytest.raises(ValueError, match="do not fit"):
        reprogramming.prompt_images(X, jnp.zeros((1, 5, 2)))
    for images, width, what in (
        (X, 1, "size of the prompt"),
        (jnp.ones((1, 4, 5, 2)), 3, "1 to 2"),
    ):
        with pytest.raises(ValueError, match=what):
            reprogramming.prompt_images(images, jnp.zeros((4, 5, 2)), frame=width)
    with pytest.raises(ValueError, match="2 target classes, 4 each, cannot be mapped to 6"):
        learn(per_class=4)
    with pytest.raises(ValueError, match="empty"):
        reprogramming.linear_probe(jnp.ones((0, 3)), jnp.ones(0, int), classes=2, steps=1, key=KEY)
    with pytest.raises(TypeError, match=r"network\(x\)"):
        reprogramming.visual_prompt(lambda: 0, X, Y, size=(4, 5), classes=2, key=KEY)
