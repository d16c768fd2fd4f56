"""SaRA against a dense AdamW whose gradient and update are masked."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import sara

X = jax.random.normal(jax.random.key(5), (64, 8))


def params_of():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"a": 0.5 * jax.random.normal(keys[0], (8, 6)), "b": jax.random.normal(keys[1], (6,))}


def loss_fn(params, key):
    rows = jax.random.randint(key, (16,), 0, 64)
    return jnp.mean((jnp.tanh(X[rows] @ params["a"]) @ params["b"] - 1) ** 2)


def by_hand(params, steps, theta, rate, decay, progressive=None, strength=0.0):
    """AdamW on the entries below theta in NumPy, the others fixed."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    masks = {k: np.abs(v) < theta for k, v in p.items()}
    m, n = ({k: np.zeros_like(v) for k, v in p.items()} for _ in range(2))
    count = 0
    for t in range(steps):
        if t == progressive:
            masks = {k: masks[k] & (np.abs(p[k]) < theta) for k in p}
            m, n = ({k: np.zeros_like(v) for k, v in p.items()} for _ in range(2))
            count = 0
            continue
        batch, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), t))
        grads = jax.grad(loss_fn)({k: jnp.asarray(v, jnp.float32) for k, v in p.items()}, batch)
        count += 1
        for k in p:
            g = np.where(masks[k], np.asarray(grads[k], np.float64), 0)
            if strength and k == "a":
                u, s, v = np.linalg.svd(np.where(masks[k], p[k], 0), full_matrices=False)
                r = s > 8 * np.finfo(np.float32).eps * s[0]
                g = g + strength * np.where(masks[k], u[:, r] @ v[r], 0)
            m[k], n[k] = 0.9 * m[k] + 0.1 * g, 0.999 * n[k] + 0.001 * g * g
            step = (m[k] / (1 - 0.9**count)) / (np.sqrt(n[k] / (1 - 0.999**count)) + 1e-8)
            p[k] = np.where(masks[k], p[k] - rate * (step + decay * p[k]), p[k])
    return p, masks


@pytest.mark.slow
@pytest.mark.parametrize("strength, least", [(0.0, 64), (0.1, 4)])
@pytest.mark.parametrize("progressive", [None, 7])
def test_against_a_masked_dense_run(progressive, strength, least):
    params = params_of()
    state = sara.sara(
        params, loss_fn, key=jax.random.key(3), theta=0.4, steps=16, progressive_step=progressive,
        learning_rate=0.02, weight_decay=0.1, rank_strength=strength, rank_min_dim=least, chunk=5,
    )  # fmt: skip
    expected, masks = by_hand(params, 16, 0.4, 0.02, 0.1, progressive, strength)
    for k in params:
        np.testing.assert_allclose(state.params[k], expected[k], atol=2e-5)
        trained = state.indices[k][state.places[k]]
        assert trained.tolist() == np.flatnonzero(masks[k]).tolist()
        outside = np.abs(np.asarray(params[k])) >= 0.4
        np.testing.assert_array_equal(
            np.asarray(state.params[k])[outside], np.asarray(params[k])[outside]
        )
    # What is saved is enough: the pre-trained parameters and (indices, values).
    again = sara.write_back(params, state.values, state.indices)
    jax.tree.map(np.testing.assert_array_equal, again, state.params)


@pytest.mark.slow
def test_resumes_to_the_same_result_and_leaves_the_callers_arrays_alone():
    params = params_of()
    kwargs = {"theta": 0.4, "learning_rate": 0.02, "progressive_step": 6, "rank_min_dim": 4}
    whole = sara.sara(params, loss_fn, key=jax.random.key(3), steps=12, **kwargs)
    seen = []
    sara.sara(
        params, loss_fn, key=jax.random.key(3), steps=5, chunk=2, callback=seen.append, **kwargs
    )
    assert [x.step for x in seen] == [2, 4, 5]
    assert all(np.isfinite(x.extra["state"][1]).all() for x in seen)
    for at in seen:  # none of what the callback kept was donated
        kept = pickle.loads(pickle.dumps(at))
        rest = sara.sara(
            params, loss_fn, key=jax.random.key(3), steps=12, chunk=2, resume=kept, **kwargs
        )
        jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    assert bool(jnp.all(jnp.isfinite(params["a"])))


def test_where_all_have_grown_the_rest_of_the_run_changes_nothing():
    params, more = {"w": jnp.full(3, 0.01)}, {"key": jax.random.key(0), "theta": 0.05}
    loss = lambda p, key: jnp.sum((p["w"] - 1) ** 2)  # noqa: E731
    more |= {"learning_rate": 0.02, "progressive_step": 5}
    short, long = (sara.sara(params, loss, steps=n, **more) for n in (6, 20))
    assert long.step == 20 and long.places["w"].size == 0 and long.indices["w"].size == 3
    assert long.params["w"].tolist() == short.params["w"].tolist() == long.values["w"].tolist()


def test_a_fraction_selects_that_many():
    params = params_of()
    state = sara.sara(params, loss_fn, key=jax.random.key(3), fraction=0.2, steps=0)
    size = sum(at.size for at in jax.tree.leaves(state.indices))
    assert size == int(0.2 * 54)


def test_mistakes():
    params, key = params_of(), jax.random.key(0)
    with pytest.raises(ValueError, match="no weight is below"):
        sara.sara(params, loss_fn, key=key, theta=0.0, steps=1)
    with pytest.raises(ValueError, match="not both"):
        sara.sara(params, loss_fn, key=key, theta=0.1, fraction=0.1)
    with pytest.raises(TypeError, match=r"loss\(params, key\)"):
        sara.sara(params, lambda params: 0.0, key=key)
    with pytest.raises(ValueError, match="chunk=0"):  # would never end
        sara.sara(params, loss_fn, key=key, chunk=0)
    with pytest.raises(ValueError, match="default learning_rate .* is .*e-.*; pass one"):
        sara.sara(params, loss_fn, key=key, theta=0.5)
    for name, bad in (("learning_rate", -1.0), ("learning_rate", np.nan), ("weight_decay", -1.0)):
        with pytest.raises(ValueError, match=name):
            sara.sara(params, loss_fn, key=key, theta=0.5, **{name: bad})
    with pytest.raises(ValueError, match="theta must be >= 0"):
        sara.sara(params, loss_fn, key=key, theta=np.nan)


@pytest.mark.slow
def test_only_the_same_run_continues():
    params, seen = params_of(), []
    run = functools.partial(
        sara.sara, loss=loss_fn, key=jax.random.key(3), fraction=0.2, steps=1, learning_rate=1e-3
    )
    run(params, callback=seen.append)
    assert run(params, resume=seen[0]).step == 1
    for name, other in (
        ("theta", {"fraction": 0.5}),
        ("weight_decay", {"weight_decay": 0.5}),
        ("key", {"key": jax.random.key(4)}),
        ("made 1 steps, more than 0", {"steps": 0}),
    ):
        with pytest.raises(ValueError, match=name):
            run(params, resume=seen[0], **other)
    with pytest.raises(ValueError, match="a has shape"):
        run({**params, "a": params["a"][:4]}, resume=seen[0])
    largest = jnp.argmax(jnp.abs(params["b"]))  # the threshold stays
    with pytest.raises(ValueError, match="began with params"):
        run({**params, "b": params["b"].at[largest].multiply(2)}, resume=seen[0])
    with pytest.raises(TypeError, match="Progress"):
        run(params, resume=run(params))
