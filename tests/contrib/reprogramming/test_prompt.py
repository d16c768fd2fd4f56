"""Label mappings and prompts against plain loops; probes against scikit-learn's optimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.contrib import reprogramming
from sparsejax.contrib.reprogramming._prompt import random_mapping
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


def greedy(table):
    table, mapping = table.astype(float), np.zeros(table.shape[1], int)
    for _ in range(table.shape[1]):
        s, t = np.unravel_index(np.argmax(table), table.shape)
        mapping[t] = s
        table[s], table[:, t] = -1, -1
    return mapping


@pytest.mark.slow
def test_mapping_by_frequency_is_a_plain_greedy_loop():
    rng = np.random.default_rng(0)
    for sources, targets, n in ((7, 3, 40), (5, 5, 12), (4, 1, 3), (6, 4, 2)):
        predicted, labels = rng.integers(0, sources, n), rng.integers(0, targets, n)
        table = np.zeros((sources, targets), int)
        np.add.at(table, (predicted, labels), 1)
        found = reprogramming.frequency_mapping(
            jnp.asarray(predicted), jnp.asarray(labels), sources, targets
        )
        np.testing.assert_array_equal(found, greedy(table))
        assert len(set(found.tolist())) == targets


def test_the_border():
    delta = jax.random.normal(KEY, (4, 5, 2))
    expected = np.array(jnp.broadcast_to(jax.nn.sigmoid(delta), (32, 4, 5, 2)))
    expected[:, 1:3, 2:4] = X  # ceil(2 / 2) = 1 above, ceil(3 / 2) = 2 on the left
    np.testing.assert_allclose(reprogramming.prompt_images(X, delta), expected, rtol=1e-6)


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
    with pytest.raises(ValueError, match="empty"):
        reprogramming.linear_probe(jnp.ones((0, 3)), jnp.ones(0, int), classes=2, steps=1, key=KEY)
    with pytest.raises(TypeError, match=r"network\(x\)"):
        reprogramming.visual_prompt(lambda: 0, X, Y, size=(4, 5), classes=2, key=KEY)
