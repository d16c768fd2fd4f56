"""How groups are said: axes, labels, index lists, trees, kinds of network structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import prox

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
COLUMNS = np.broadcast_to(np.arange(6), (4, 6))


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda **g: prox.group_lasso(0.6, **g),
        lambda **g: prox.group_mcp(0.6, 2.0, **g),
        lambda **g: prox.wgsef(2, 0.6, weights=np.linspace(1, 2, 6), **g),
        lambda **g: prox.group_hard_k(2, **g),
        lambda **g: prox.exclusive_lasso(0.6, **g),
        lambda **g: prox.l1_inf(0.6, weights=np.linspace(1, 2, 6), **g),
        lambda **g: prox.sparse_group_lasso(0.1, 0.6, **g),
    ],
)
def test_axes_labels_and_trees_mean_the_same(make):
    by_axis = make(axis=0)
    by_label = make(groups=COLUMNS)
    tree = {"a": X[:1], "b": X[1:]}
    by_tree = make(groups={"a": COLUMNS[:1], "b": COLUMNS[1:]})
    expected = by_axis.prox(X, 0.8)
    same(by_label.prox(X, 0.8), expected)
    joined = by_tree.prox(tree, 0.8)
    same(jnp.concatenate([joined["a"], joined["b"]]), expected)
    for value in (by_label.value(X), by_tree.value(tree)):
        np.testing.assert_allclose(value, by_axis.value(X), rtol=1e-5)
    # Traced labels need the number of groups, and then work.
    traced = jax.jit(lambda labels: make(groups=labels, num_groups=6).prox(X, 0.8))
    same(traced(COLUMNS), expected)
    with pytest.raises(ValueError, match="num_groups is required"):
        jax.jit(lambda labels: make(groups=labels).prox(X))(COLUMNS)


@pytest.mark.slow
def test_group_lasso_weights():
    """By default the root of the size; 0 leaves a group alone; scalars mean all."""
    labels = np.array([0, 0, 0, 1])
    x = np.array([1.0, 2.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(
        prox.group_lasso(0.1, groups=labels).value(x), 0.1 * (np.sqrt(3) * 3 + 3), rtol=1e-6
    )
    free = prox.group_lasso(100.0, groups=labels, weights=np.array([1.0, 0.0]))
    assert free.prox(x).tolist() == [0.0, 0.0, 0.0, 3.0]
    same(
        prox.group_lasso(0.1, groups=labels, weights=2.0).prox(x),
        prox.group_lasso(0.2, groups=labels, weights=1.0).prox(x),
    )
    squeezed = prox.group_lasso(0.5, axis=1, weights=np.arange(4.0))
    kept = prox.group_lasso(0.5, axis=1, weights=np.arange(4.0)[:, None])
    same(squeezed.prox(X), kept.prox(X))


def test_index_lists():
    lists = prox.group_lasso(0.5, groups=[[0, 2], [1, 3, 4]])
    labels = prox.group_lasso(0.5, groups=np.array([0, 1, 0, 1, 1]))
    same(lists.prox(X[0, :5]), labels.prox(X[0, :5]))
    with pytest.raises(ValueError, match="overlap: index 2"):
        prox.group_lasso(0.5, groups=[[0, 2], [1, 2]])
    with pytest.raises(ValueError, match="must cover"):
        prox.group_lasso(0.5, groups=[[0, 2], [3]])
    assert prox.group_lasso(0.5, groups=[0, 1, 0]).partition.num_groups == 2


@pytest.mark.slow
def test_huge_and_tiny_groups_side_by_side():
    x = np.array([[1e30, 1e-20], [-1e30, 1e-20], [1e-30, 0]], np.float32)
    u = prox.group_lasso(1e-22, axis=0, weights=1.0).prox(x)
    np.testing.assert_allclose(u[:, 1], x[:, 1], rtol=0.02)
    np.testing.assert_array_equal(u[:, 0], x[:, 0])
    # An infinite entry stays infinite and is no NaN.
    u = prox.group_lasso(1.0, axis=0).prox(jnp.array([[jnp.inf], [1.0]]))
    assert u[:, 0].tolist() == [np.inf, 1.0]


def test_what_a_label_tree_must_be():
    labels = {"kernel": np.zeros((2, 3), int), "bias": None}
    penalty = prox.group_lasso(0.5, groups=labels)
    x = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    out = penalty.prox(x)
    assert out["bias"].tolist() == [1, 1, 1] and jnp.all(out["kernel"] < 1)
    with pytest.raises(ValueError, match=r"kernel.*\(2, 3\).*\(3, 2\)"):
        penalty.prox({**x, "kernel": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="no labels for scale"):
        penalty.prox({**x, "scale": jnp.ones(2)})
    with pytest.raises(ValueError, match="None"):
        penalty.prox({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        prox.group_lasso(0.5, groups=np.zeros(4, int)).prox(jnp.ones(5))
    assert penalty.groups is labels


def test_names_of_leaves_are_those_of_the_library():
    """A flat dict by path means the same as the nested tree."""
    params = {"dense": {"kernel": jnp.asarray(X), "bias": jnp.ones(6)}}
    labels, count = prox.group_labels(params)
    penalty = prox.wgsef(2, groups=labels)
    flat = {"dense/bias": params["dense"]["bias"], "dense/kernel": params["dense"]["kernel"]}
    nested, by_path = penalty.prox(params), penalty.prox(flat)
    same(nested["dense"]["kernel"], by_path["dense/kernel"])
    alive = jnp.any(nested["dense"]["kernel"] != 0, 0) | (nested["dense"]["bias"] != 0)
    assert count == 6
    assert 2 <= alive.sum() <= 6


NETWORK = {
    "conv": {"kernel": np.zeros((3, 3, 2, 4)), "bias": np.zeros(4)},
    "dense": {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)},
    "norm": {"scale": np.zeros(3)},
}


@pytest.mark.parametrize(
    "kind, conv, dense, biases",
    [
        ("neuron", 4, 3, True),
        ("filter", 4, 3, True),
        ("channel", 2, 5, False),
        ("filter_shape", 18, 5, False),
        ("layer", 1, 1, True),
        ("element", 72, 15, False),
    ],
)
def test_group_labels(kind, conv, dense, biases):
    labels, count = prox.group_labels(NETWORK, kind)
    assert count == conv + dense
    assert labels["norm"]["scale"] is None
    assert (labels["conv"]["bias"] is not None) == biases
    kernel = np.asarray(labels["conv"]["kernel"])
    assert kernel.shape == (3, 3, 2, 4)
    assert sorted(set(kernel.ravel())) == list(range(conv))
    assert np.asarray(labels["dense"]["kernel"]).min() == conv
    # What one label selects: all of an output, of an input, of a position, of the layer.
    inside = kernel == 0
    expected = {
        "neuron": (slice(None), slice(None), slice(None), 0),
        "filter": (slice(None), slice(None), slice(None), 0),
        "channel": (slice(None), slice(None), 0, slice(None)),
        "filter_shape": (0, 0, 0, slice(None)),
        "layer": (...,),
        "element": (0, 0, 0, 0),
    }[kind]
    reference = np.zeros_like(inside)
    reference[expected] = True
    np.testing.assert_array_equal(inside, reference)
    if biases:
        penalty = prox.group_lasso(1.0, groups=labels)
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), NETWORK)
        sizes = penalty.partition.sizes(ones)
        assert sizes[0] == inside.sum() + np.sum(np.asarray(labels["conv"]["bias"]) == 0)
        assert sizes.sum() == 72 + 4 + 15 + 3


def test_group_labels_say_what_they_cannot_do():
    with pytest.raises(ValueError, match="kind must be one of neuron"):
        prox.group_labels(NETWORK, "rows")
    with pytest.raises(ValueError, match="no leaf is named kernel"):
        prox.group_labels({"scale": np.zeros(3)})
    with pytest.raises(ValueError, match="ambiguous.*axis=0"):
        prox.group_labels({"kernel": np.zeros((2, 3, 4))})
    labels, count = prox.group_labels({"kernel": np.zeros((2, 3, 4))}, axis=0)
    assert count == 12 and labels["kernel"].shape == (2, 3, 4)


def test_what_groups_must_be():
    with pytest.raises(TypeError, match="integer labels"):
        prox.group_lasso(1.0, groups=np.zeros(3))
    with pytest.raises(ValueError, match="0 to num_groups - 1"):
        prox.group_lasso(1.0, groups=np.array([0, 3]), num_groups=3)
    with pytest.raises(ValueError, match="0 to num_groups - 1"):
        prox.group_lasso(1.0, groups=np.array([-1, 0]))
    with pytest.raises(ValueError, match="exclude each other"):
        prox.group_lasso(1.0, axis=0, groups=np.array([0, 0]))
    with pytest.raises(ValueError, match=r"weights of shape \(5,\)"):
        prox.group_lasso(1.0, axis=0, weights=np.ones(5)).prox(X)
    for make in (prox.wgsef, prox.gsef, prox.group_hard_k):
        with pytest.raises(ValueError, match="axis= or groups="):
            make(2)


def test_usage():
    """u sums to k, is 1 for the strongest, and says what the operator does."""
    penalty = prox.wgsef(2, 0.5, axis=0, weights=np.linspace(1, 2, 6))
    u = penalty.usage(X, 0.8)
    assert u.shape == (6,) and 0 <= u.min() and u.max() <= 1
    np.testing.assert_allclose(u.sum(), 2, rtol=1e-6)
    same(penalty.prox(X, 0.8), X * u / (0.4 * np.linspace(1, 2, 6) + u))
    k = jax.jit(lambda k: prox.wgsef(k, 0.5, axis=0).prox(X))
    same(k(3), prox.wgsef(3, 0.5, axis=0).prox(X))
    same(k(9), X / 1.5)
    assert not np.any(k(0))
    np.testing.assert_allclose(penalty.usage(X, 0.0).sum(), 2, rtol=1e-6)
    same(prox.sef(2, 0.5).prox(X[0], 0.0), X[0])


@pytest.mark.parametrize("make", [
    lambda: prox.group_lasso(0.4, axis=0), lambda: prox.group_mcp(1.3, 2.0, axis=0),
    lambda: prox.mcp(0.3, 2.0), lambda: prox.l1(0.3), lambda: prox.l0(0.3),
    lambda: prox.lp(0.3, 0.5),
    lambda: prox.log_sum(0.3, 1.0), lambda: prox.scad(0.3), lambda: prox.huber(0.3),
    lambda: prox.elastic_net(0.3), lambda: prox.cel0(0.3), lambda: prox.capped_l1(0.3),
    lambda: prox.exponential(0.3), lambda: prox.geman(0.3), lambda: prox.l_half(0.3),
])  # fmt: skip
def test_subdiff_distance_is_zero_at_what_the_operator_returns(make):
    """u = prox(v) is stationary for `0.5 ||u - v||^2 + f(u)`, whose gradient is u - v."""
    penalty = make()
    u = penalty.prox(X)
    assert jnp.any(u == 0) or penalty.weak_convexity == 0  # ridge-like near 0: no zeros
    np.testing.assert_allclose(penalty.subdiff_distance(u, u - X), 0, atol=2e-6)
    off = penalty.subdiff_distance(u + 0.5, u + 0.5 - X)
    assert jnp.max(off) > 0.01


def test_subdiff_distance_is_said_to_be_missing():
    with pytest.raises(NotImplementedError, match="Slope"):
        prox.slope(jnp.ones(6)).subdiff_distance(X, X)


@pytest.mark.slow
def test_norms_of_constants():
    """XLA folds what is known at compile time, in another order of operations."""
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            for number in (0.0, 1e-10, 1.0, 1e10):
                value = jax.jit(lambda: prox.l2(1.0).value(jnp.full(4, number, dtype)))  # noqa: B023
                np.testing.assert_allclose(value(), 2 * number, rtol=1e-6)
                spread = jax.jit(lambda: prox.sef(2).value(jnp.full(4, number, dtype)))  # noqa: B023
                np.testing.assert_allclose(spread(), 4 * number**2, rtol=1e-5)


TINY = jnp.array([[3.0, 1e-20], [4.0, 1e-20]])


@pytest.mark.parametrize(
    "penalty, step, x, expected",
    [
        (prox.group_lasso(0.5, axis=0), 0.0, TINY, [[1, 1], [1, 1]]),
        (prox.group_lasso(0.5, axis=0, weights=np.array([0.0, 1.0])), 1.0, TINY, [[1, 0], [1, 0]]),
        (prox.group_lasso(0.5, axis=0, weights=np.array([0.0, 1.0])), 1.0, TINY * 0, [[1, 0]] * 2),
        (prox.group_lasso(1.0, axis=0, weights=np.array([0.0, np.inf])), 0.0, TINY, [[1, 0]] * 2),
        (prox.l2(0.5), 0.0, TINY[:, 1], [1, 1]),
        (prox.l2(0.5), 0.0, TINY[:, 1] * 0, [1, 1]),
        (prox.on_norm(prox.ridge(1.0), axis=0), 1.0, TINY, [[0.5, 0.5], [0.5, 0.5]]),
        (prox.group_scad(1.0, axis=0), 0.0, TINY, [[1, 1], [1, 1]]),
        (prox.wgsef(1, axis=0), 1.0, jnp.array([[3e-20, 1e-20]]), [[0.5, 0]]),
        (prox.gsef(2, axis=0), 1.0, jnp.array([[3e-20, 1e-20]]), [[0.5, 0.5]]),
        (prox.group_hard_k(1, axis=0), 1.0, jnp.array([[3e-20, 1e-20]]), [[1, 0]]),
        (prox.l2_ball(1.0), 1.0, TINY[:, 1], [1, 1]),
        (prox.k_support_norm(0.0, 1), 1.0, TINY[:, 1], [1, 1]),
        (prox.l1_minus_l2(0.0), 1.0, TINY[:, 1], [1, 1]),
    ],
)
def test_derivatives_at_tiny_norms(penalty, step, x, expected):
    """Ratios whose derivative divides by the square of a norm underflow at 1e-20."""
    found = jax.grad(lambda x: penalty.prox(x, step).sum())(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_derivatives_of_tiny_complex_numbers_and_infinite_weights():
    x = jnp.array([3e-20 + 4e-20j, 3 + 4j])
    found = jax.grad(lambda x: jnp.sum(jnp.abs(prox.l1(0.0).prox(x)[1])))(x)
    np.testing.assert_allclose(jnp.abs(found), [0, 1], atol=1e-6)
    through = jax.grad(lambda x: prox.l1(0.0).prox(x).real.sum())(x)
    np.testing.assert_allclose(through, [1, 1], atol=1e-6)
    free = prox.l1(jnp.array([1.0, jnp.inf]))
    assert jax.grad(lambda t: free.prox(jnp.array([3.0, 3.0]), t).sum())(1.0) == -1
    forced = prox.group_lasso(1.0, axis=0, weights=jnp.array([1.0, jnp.inf]))
    step = jax.grad(lambda t: forced.prox(jnp.ones((1, 2)) * 3, t).sum())(1.0)
    assert step == -1 and forced.value(jnp.array([[1.0, 0.0]])) == 1
