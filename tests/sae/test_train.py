"""Training: constraints, states, vmap, streams, resuming, resampling, and several devices."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import sparsejax as sj
from sparsejax import sae

D, H = 6, 24
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (64, D))
ADAM = optax.adam(1e-2)
SGD = optax.sgd(0.05)  # Adam would magnify the rounding of gradients near 0
ARCHITECTURES = {
    "relu": sae.SAE(sae.ReLU(), (sae.L1(0.1),)),
    "relu, unit rows": sae.SAE(sae.ReLU(), (sae.L1(0.1, decoder_norm=False),), sj.optim.unit_norm),
    "annealed": sae.SAE(sae.ReLU(), (sae.AnnealedP(0.1, steps=20),), sj.optim.unit_norm),
    "gated": sae.SAE(sae.Gated(), (sae.L1(0.1), sae.GateAuxiliary()), sj.optim.unit_norm),
    "top-k": sae.SAE(sae.TopK(2), (sae.AuxK(dead_after=3),), sj.optim.unit_norm),
    "top-k, sparse": sae.SAE(sae.TopK(2), (sae.AuxK(dead_after=3),), rescale=True, sparse=True),
    "abs top-k": sae.SAE(sae.AbsTopK(2), sparse=False),
    "batch top-k": sae.SAE(sae.BatchTopK(2), (sae.AuxK(dead_after=3),), sj.optim.unit_norm),
    "matryoshka": sae.SAE(sae.BatchTopK(2), reconstruction=sae.Nested((4, 12))),
    "jump relu": sae.SAE(sae.JumpReLU(), (sae.L0(0.1), sae.PreActivation(dead_after=3))),
    "jump relu, target": sae.SAE(sae.JumpReLU(), (sae.TargetL0(2.0),)),
    "matching pursuit": sae.SAE(sae.MatchingPursuit(2), constraint=sj.optim.unit_norm),
    "top-afa": sae.SAE(sae.TopAFA(), (sae.NormMatching(1 / 32),), sj.optim.unit_norm),
    "g-sae": sae.SAE(sae.GradientTopK(2), reconstruction=sae.Reconstruction("fvu")),
    "layer norm": sae.SAE(sae.TopK(2), normalize="layer_norm"),
}
DATA = {"x": X, "grad": X[::-1]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns(name):
    found = ARCHITECTURES[name]
    params = found.init(D, H, key=KEY, samples=X)
    before = jnp.sum((found(params, X, DATA["grad"]) - X) ** 2)
    done = sae.train(found, params, DATA, ADAM, steps=60, key=KEY, batch_size=32)
    after = jnp.sum((found(done.params, X, DATA["grad"]) - X) ** 2)
    assert after < 0.9 * before and int(done.state.step) == 60
    if found.constraint is not None:
        norms = jnp.linalg.norm(done.params["W_dec"], axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)
    if "threshold" in done.params:
        assert done.params["threshold"].min() >= 0


def test_transcoders():
    target = jnp.tanh(X @ jax.random.normal(jax.random.key(3), (D, 4)))
    for skip in (False, True):
        found = sae.SAE(sae.ReLU(), transcoder=True)
        params = found.init(D, H, key=KEY, output=4, skip=skip)
        data = {"x": X, "target": target}
        done = sae.train(found, params, data, ADAM, steps=200, key=KEY, batch_size=32)
        assert jnp.mean((found(done.params, X) - target) ** 2) < 0.2 * jnp.mean(target**2)
        f = np.maximum(np.asarray(X @ done.params["W_enc"] + done.params["b_enc"]), 0)
        wanted = f @ np.asarray(done.params["W_dec"]) + np.asarray(done.params["b_dec"])
        if skip:
            wanted = wanted + np.asarray(X) @ np.asarray(done.params["W_skip"]).T
            assert np.any(np.asarray(done.params["W_skip"]))
        np.testing.assert_allclose(found(done.params, X), wanted, atol=1e-5)


def test_thresholds_move_in_bfloat16():
    found = ARCHITECTURES["jump relu"]
    params = found.init(D, H, key=KEY, dtype=jnp.bfloat16)
    done = sae.train(
        found, params, X.astype(jnp.bfloat16), optax.adam(1e-4), steps=30, key=KEY, batch_size=32
    )
    assert done.params["threshold"].dtype == jnp.float32
    assert done.params["W_enc"].dtype == jnp.bfloat16
    moved = jnp.abs(done.params["threshold"] - params["threshold"])
    assert 0 < moved.max() < 0.01


def test_states_count_silent_steps():
    found = sae.SAE(sae.ReLU())
    params = found.init(D, H, key=KEY)
    params["b_enc"] = jnp.where(jnp.arange(H) < 5, -99.0, 99.0)
    carry = sae.begin(found, params, ADAM)
    for _ in range(3):
        carry = sae.train_step(found, ADAM, carry, X)
    np.testing.assert_array_equal(carry.state.silent, np.where(np.arange(H) < 5, 3, 0))


def test_batch_top_k_becomes_jump_relu():
    found = ARCHITECTURES["batch top-k"]
    params = found.init(D, H, key=KEY)
    z = np.sort(np.asarray(found.encode(params, X)))
    first = sae.train_step(found, ADAM, sae.begin(found, params, ADAM), X)
    np.testing.assert_allclose(first.state.threshold, z[z > 0].min(), rtol=1e-6)
    second = sae.train_step(found, ADAM, first, X)
    f = np.asarray(found.encode(first.params, X))
    wanted = 0.99 * float(first.state.threshold) + 0.01 * f[f > 0].min()
    np.testing.assert_allclose(second.state.threshold, wanted, rtol=1e-5)
    done = sae.train(found, params, X, ADAM, steps=1000, key=KEY, batch_size=64)
    fixed, weights = found.inference(done.params, done.state)
    one = fixed.encode(weights, X[:1])
    np.testing.assert_allclose(one, fixed.encode(weights, X)[:1], atol=1e-5)
    l0 = float((fixed.encode(weights, X) > 0).sum(-1).mean())
    assert 1.8 < l0 < 2.1, l0  # 2 on average in training


def test_many_in_one_pass_equal_single_ones():
    found = ARCHITECTURES["top-k"]

    def run(key):
        params = found.init(D, H, key=key)
        return sae.train(found, params, X, ADAM, steps=8, key=KEY, batch_size=16)

    keys = jax.random.split(jax.random.key(5), 3)
    together = jax.vmap(run)(keys)
    for i in range(3):
        alone = run(keys[i]).params
        for name, w in together.params.items():
            np.testing.assert_allclose(w[i], alone[name], rtol=1e-4, atol=1e-5)
    strengths = jnp.array([0.01, 1.0])
    params = ARCHITECTURES["relu"].init(D, H, key=KEY)

    def l1(strength):
        found = sae.SAE(sae.ReLU(), (sae.L1(strength),))
        return sae.train(found, params, X, ADAM, steps=100, key=KEY, batch_size=64).params

    several = jax.vmap(l1)(strengths)
    counts = [
        float((sae.SAE(sae.ReLU()).encode(jax.tree.map(lambda w: w[i], several), X) > 0).sum())  # noqa: B023
        for i in range(2)
    ]
    assert counts[1] < counts[0]


def test_no_compilation_for_new_numbers():
    params = ARCHITECTURES["relu"].init(D, H, key=KEY)
    carry = sae.begin(ARCHITECTURES["relu"], params, ADAM)
    step = lambda s: sae.train_step(sae.SAE(sae.ReLU(), (sae.L1(s),)), ADAM, carry, X)  # noqa: E731
    step(0.1)
    with jax.no_tracing():
        step(0.2)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_has_the_same_bits(streamed):
    found = ARCHITECTURES["top-k"]
    params = found.init(D, H, key=KEY)
    chunks = np.asarray(X).reshape(8, 8, D)

    def data():
        if not streamed:
            return X
        return sae.ActivationBuffer(lambda start: chunks[start:], 20, 8, key=KEY)

    run = lambda **more: sae.train(  # noqa: E731
        found, params, data(), ADAM, steps=24, key=KEY, batch_size=8, chunk=5, **more
    )
    records = []
    whole = run(callback=records.append)
    assert [record.step for record in records] == [5, 10, 15, 20, 24]
    for record in records[:3]:
        again = run(resume=pickle.loads(pickle.dumps(record)))
        jax.tree.map(np.testing.assert_array_equal, again, whole)
    other = found.init(D, H, key=jax.random.key(9))
    with pytest.raises(ValueError, match="params"):
        sae.train(
            found, other, data(), ADAM, steps=24, key=KEY, batch_size=8, chunk=5, resume=records[0]
        )


def test_default_optimizer():
    found = sae.SAE(sae.TopK(2))
    params = found.init(D, H, key=KEY)
    done = sae.train(found, params, X, steps=300, key=KEY, batch_size=64)
    assert jnp.sum((found(done.params, X) - X) ** 2) < jnp.sum((found(params, X) - X) ** 2)


def test_resampled_latents():
    found = sae.SAE(sae.ReLU(), (sae.L1(0.01),))
    params = found.init(D, H, key=KEY)
    dead = np.arange(H) < 4
    params["b_enc"] = jnp.where(dead, -99.0, 0.0)
    carry = sae.begin(found, params, ADAM)
    for _ in range(2):
        carry = sae.train_step(found, ADAM, carry, X)
    new = sae.resample(found, ADAM, carry, X, key=KEY, dead_after=2)
    changed = np.any(np.asarray(new.params["W_dec"] != carry.params["W_dec"]), axis=1)
    np.testing.assert_array_equal(changed, dead)
    np.testing.assert_array_equal(new.params["b_enc"][:4], 0)
    rows = np.asarray(new.params["W_dec"])[:4]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    centred = np.asarray(X - carry.params["b_dec"])
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose((rows @ unit.T).max(1), 1, rtol=1e-5)
    assert len(np.unique((rows @ unit.T).argmax(1))) == 4  # no input twice
    live = np.linalg.norm(np.asarray(carry.params["W_enc"])[:, 4:], axis=0).mean()
    norms = np.linalg.norm(np.asarray(new.params["W_enc"])[:, :4], axis=0)
    np.testing.assert_allclose(norms, 0.2 * live, rtol=1e-5)
    moments = new.opt_state[0].mu
    assert not np.any(moments["W_enc"][:, :4]) and np.any(moments["W_enc"][:, 4:])
    assert not np.any(moments["W_dec"][:4]) and not np.any(new.state.silent[:4])


def test_a_resampled_transcoder_has_rows_of_the_target():
    found = sae.SAE(sae.ReLU(), transcoder=True)
    target = jnp.tanh(X @ jax.random.normal(jax.random.key(3), (D, 4)))
    params = found.init(D, H, key=KEY, output=4)
    params["b_enc"] = params["b_enc"].at[:4].set(-99.0)
    carry = sae.train_step(found, ADAM, sae.begin(found, params, ADAM), {"x": X, "target": target})
    new = sae.resample(found, ADAM, carry, X, key=KEY, target=target, dead_after=1).params
    rows, columns = np.asarray(new["W_dec"])[:4], np.asarray(new["W_enc"])[:, :4].T
    centred = np.asarray(target - carry.params["b_dec"])
    chosen = (rows @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T).argmax(1)
    for found, of in ((rows, centred), (columns, np.asarray(X))):
        cosine = np.sum(found * of[chosen], 1) / (
            np.linalg.norm(found, axis=1) * np.linalg.norm(of[chosen], axis=1)
        )
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("name", ["top-k", "batch top-k", "jump relu"])
def test_a_dictionary_over_eight_devices(name):
    found = dataclasses.replace(ARCHITECTURES[name], sparse=False)
    params = found.init(D, H, key=KEY)
    specs = sae.specs(params, "x")
    place = {k: NamedSharding(mesh(), specs[k]) for k in params}
    sharded = jax.device_put(params, place)
    np.testing.assert_allclose(found.encode(sharded, X), found.encode(params, X), atol=1e-5)
    one, many = (
        sae.train(found, p, X, SGD, steps=5, key=KEY, batch_size=32) for p in (params, sharded)
    )
    assert len(many.params["W_dec"].sharding.device_set) == 8
    for k in params:
        np.testing.assert_allclose(one.params[k], many.params[k], rtol=1e-3, atol=1e-4)
    assert sharded["W_dec"].addressable_shards[0].data.shape == (H // 8, D)


def test_a_sharded_selection_gathers_no_weights():
    found = sae.SAE(sae.TopK(2), sparse=False)
    params = jax.eval_shape(lambda: found.init(64, 1024, key=KEY))
    specs = sae.specs(params, "x")
    shapes = {k: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=NamedSharding(mesh(), specs[k]))
              for k, p in params.items()}  # fmt: skip
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    compiled = jax.jit(found.__call__).lower(shapes, x).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
