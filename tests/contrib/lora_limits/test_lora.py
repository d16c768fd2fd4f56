"""Adapters on layers of all frameworks: products, gradients, training, merging."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import sparsejax as sj
from sparsejax.contrib import lora_limits as limits

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(5), (7, 6))


class Net(nnx.Module):
    """Kernels of a linear, a general and an einsum layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.heads = nnx.LinearGeneral(8, (2, 4), rngs=rngs)
        self.back = nnx.Einsum("bhd,hdo->bo", (2, 4, 3), (3,), rngs=rngs)

    def __call__(self, x):
        return self.back(self.heads(jax.nn.tanh(self.first(x))))


def moved(model):
    """Adapters that are not zero."""
    state = nnx.state(model, nnx.LoRAParam)
    state = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), state)
    nnx.update(model, state)
    return model


def test_adapted_kernels_of_a_model():
    model = Net()
    adapted = limits.add_lora(model, 2, alpha=6.0, key=KEY)
    np.testing.assert_allclose(adapted(X), model(X), atol=1e-6)
    moved(adapted)
    plain = nnx.clone(model)
    for name, shape in (("first", (6, 8)), ("heads", (8, 8)), ("back", (8, 3))):
        kernel = getattr(adapted, name).kernel
        a, b = (np.asarray(x[...], np.float64) for x in (kernel.a, kernel.b))
        assert a.shape == (shape[0], 2) and b.shape == (2, shape[1])
        before = getattr(model, name).kernel[...]
        delta = (3.0 * a @ b).reshape(before.shape)
        getattr(plain, name).kernel[...] = before + delta.astype(np.float32)
    np.testing.assert_allclose(adapted(X), plain(X), rtol=1e-4, atol=1e-5)
    merged = limits.merge_lora(adapted)
    assert jax.tree.structure(nnx.split(merged)) == jax.tree.structure(nnx.split(model))
    np.testing.assert_allclose(merged(X), plain(X), rtol=1e-4, atol=1e-5)
    back = limits.unmerge_lora(merged, adapted)
    np.testing.assert_allclose(back(X), adapted(X), rtol=1e-4, atol=1e-5)
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (back, adapted))):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_where():
    adapted = limits.add_lora(Net(), 2, where="heads", key=KEY)
    assert list(nnx.state(adapted, nnx.LoRAParam)) == ["heads"]
    with pytest.raises(ValueError, match="must match a linear kernel"):
        limits.add_lora(Net(), 2, where="nothing", key=KEY)
    with pytest.raises(ValueError, match="kernel has an adapter"):
        limits.add_lora(limits.add_lora(Net(), 2, key=KEY), 2, key=KEY)


def test_factors_start_as_documented():
    model = nnx.Linear(400, 50, rngs=nnx.Rngs(0))
    kernel = limits.add_lora(model, 8, key=KEY).kernel
    assert np.var(kernel.a[...]) == pytest.approx(1 / 400, rel=0.1)
    assert not kernel.b[...].any() and kernel.scale == 1.0
    low = limits.add_lora(nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), 2, key=KEY)
    assert low.kernel.a[...].dtype == jnp.bfloat16
    assert low(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    mixed = limits.add_lora(low_linear(), 2, dtype=jnp.float32, key=KEY)
    assert mixed.kernel.b[...].dtype == jnp.float32
    assert limits.merge_lora(mixed).kernel[...].dtype == jnp.bfloat16


def low_linear():
    return nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))


def test_gradients_of_the_factors():
    params = {"kernel": jax.random.normal(KEY, (6, 5)), "bias": jnp.ones(5)}
    adapted = limits.add_lora(params, 2, alpha=4.0, key=KEY)
    adapter = adapted["kernel"].trainable
    adapter = limits.Adapter(adapter.a, adapter.b + 0.5, adapter.scale)
    adapted["kernel"] = sj.formats.Sum(params["kernel"], adapter)
    loss = lambda p: jnp.sum(jnp.sin(X @ p["kernel"] + p["bias"]))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(adapted)
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    x = np.asarray(X, np.float64)
    w = np.asarray(params["kernel"], np.float64) + 2 * a @ b
    g = x.T @ np.cos(x @ w + 1)
    np.testing.assert_allclose(grads["kernel"].trainable.a, 2 * g @ b.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads["kernel"].trainable.b, 2 * a.T @ g, rtol=1e-3, atol=1e-4)
    assert not grads["kernel"].frozen.any()


CHAINS = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "sgd": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5, momentum=0.9, nesterov=True)),
    "lion": optax.lion(3e-2, weight_decay=0.1),
    "schedule": optax.chain(
        optax.scale_by_rms(), optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, 20)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrap", ["partition", "masked"])
@pytest.mark.parametrize("chain", CHAINS)
def test_only_adapters_are_trained(chain, wrap):
    params = {
        "a": {"kernel": jax.random.normal(KEY, (6, 5)), "bias": jnp.ones(5)},
        "b": {"kernel": jax.random.normal(KEY, (5, 1))},
    }
    adapted = limits.add_lora(params, 2, key=KEY)
    frozen = lambda p: jax.tree.map(lambda x: not x, sj.formats.trainable(p))  # noqa: E731
    tx = {
        "partition": optax.partition(
            {True: CHAINS[chain], False: optax.set_to_zero()}, sj.formats.trainable
        ),
        "masked": optax.chain(
            optax.masked(CHAINS[chain], sj.formats.trainable),
            optax.masked(optax.set_to_zero(), frozen),
        ),
    }[wrap]

    def loss(p):
        h = jnp.tanh(X @ p["a"]["kernel"] + p["a"]["bias"])
        return jnp.mean((h @ p["b"]["kernel"] - X[:, :1]) ** 2)

    @jax.jit
    def step(p, state):
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = tx.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    now, state, losses = adapted, tx.init(adapted), []
    for _ in range(20):
        now, state, value = step(now, state)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    trained = jax.tree.leaves(sj.formats.trainable(adapted))
    for flag, before, after in zip(trained, jax.tree.leaves(adapted), jax.tree.leaves(now)):
        assert bool((before != after).any()) == flag
    # The moments of the frozen leaves are not stored.
    held = sum(x.size for x in jax.tree.leaves(state))
    assert held <= 2 * sum(x.size for x, t in zip(jax.tree.leaves(now), trained) if t) + 4


def test_training_a_model_with_nnx():
    model = limits.add_lora(Net(), 2, key=KEY)
    before = jax.tree.map(jnp.array, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.LoRAParam)
    loss = lambda m: jnp.mean((m(X) - X[:, :3]) ** 2)  # noqa: E731

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    after = nnx.state(model, nnx.Param)
    for (path, a), (_, b) in zip(*(nnx.to_flat_state(s) for s in (before, after))):
        assert bool((a[...] != b[...]).any()) == (path[-1] in ("a", "b"))


def test_stacked_layers():
    @nnx.vmap
    def make(key):
        return nnx.Linear(6, 6, rngs=nnx.Rngs(key))

    stack = make(jax.random.split(KEY, 3))
    adapted = moved(limits.add_lora(stack, 2, key=KEY))
    assert adapted.kernel.a[...].shape == (3, 6, 2)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return jax.nn.tanh(layer(x))

    merged = limits.merge_lora(adapted)
    delta = np.einsum("skr,srn->skn", adapted.kernel.a[...], adapted.kernel.b[...])
    np.testing.assert_allclose(merged.kernel[...] - stack.kernel[...], delta, atol=1e-5)
    np.testing.assert_allclose(run(X, adapted), run(X, merged), rtol=1e-4, atol=1e-5)


def test_compressed_kernels():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    fast = sj.compress(model, sj.plan(model, sj.NM(2, 4)))
    adapted = moved(limits.add_lora(fast, 2, key=KEY))
    x = jax.random.normal(KEY, (3, 8))
    want = fast(x) + x @ adapted.kernel.a[...] @ adapted.kernel.b[...]
    np.testing.assert_allclose(adapted(x), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="merge_lora: kernel must have a dense kernel"):
        limits.merge_lora(adapted)


def test_linen_and_equinox():
    module = linen.Dense(4)
    variables = module.init(KEY, X)
    adapted = limits.add_lora(variables, 2, key=KEY)
    shifted = jax.tree.map(lambda x, t: x + 0.1 * t, adapted, sj.formats.trainable(adapted))
    with linen.intercept_methods(sj.nn.linen_compressed):
        y: Any = module.apply(shifted, X)
    merged = limits.merge_lora(shifted)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    np.testing.assert_allclose(y, np.asarray(module.apply(merged, X)), rtol=1e-4, atol=1e-5)

    model = eqx.nn.MLP(6, 3, 8, 1, key=KEY)
    adapted = limits.add_lora(model, 2, key=KEY)
    np.testing.assert_allclose(jax.vmap(adapted)(X), jax.vmap(model)(X), atol=1e-5)
    marked = sj.formats.trainable(eqx.filter(adapted, eqx.is_array))
    part, rest = eqx.partition(adapted, eqx.is_array)
    shifted = eqx.combine(jax.tree.map(lambda x, t: x + 0.1 * t, part, marked), rest)
    merged = limits.merge_lora(shifted)
    assert np.abs(jax.vmap(merged)(X) - jax.vmap(model)(X)).max() > 1e-2
    np.testing.assert_allclose(jax.vmap(merged)(X), jax.vmap(shifted)(X), rtol=1e-4, atol=1e-5)
    back = limits.unmerge_lora(merged, shifted)
    np.testing.assert_allclose(jax.vmap(back)(X), jax.vmap(shifted)(X), rtol=1e-4, atol=1e-5)


def test_trees():
    params = {"kernel": jnp.ones((2, 3, 4)), "scale": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"kernel of shape \(2, 3, 4\) must be a matrix"):
        limits.add_lora(params, 2, key=KEY)
    adapted = limits.add_lora({"kernel": jnp.ones((3, 4))}, 2, key=KEY)
    with pytest.raises(ValueError, match="must have the shape"):
        limits.unmerge_lora({"kernel": jnp.ones((3, 5))}, adapted)
    again = limits.add_lora({"kernel": jnp.ones((3, 4))}, 2, key=KEY)
    np.testing.assert_array_equal(adapted["kernel"].trainable.a, again["kernel"].trainable.a)


def test_files(tmp_path):
    model = moved(limits.add_lora(Net(), 2, alpha=6.0, key=KEY))
    sj.save(tmp_path / "model.safetensors", model)
    again = sj.load(tmp_path / "model.safetensors", limits.add_lora(Net(), 2, alpha=6.0, key=KEY))
    np.testing.assert_array_equal(again(X), model(X))


def test_both_gradients_train_alike():
    """LoRA of rank 2 on query and value kernels: loss curves of both methods, at gamma <= 1."""
    n, keys = 256, jax.random.split(KEY, 6)
    x = jax.random.normal(keys[0], (n, 16)) / 4
    frozen = {
        name: {"kernel": jax.random.normal(key, (16, 4)) / 4}
        for name, key in zip(("query", "key", "value"), keys[1:])
    }
    target = jax.random.normal(keys[5], (n, 4)) / 8
    params = limits.add_lora(frozen, 2, where="query|value", key=KEY)
    tx = optax.partition({True: optax.adam(1e-2), False: optax.set_to_zero()}, sj.formats.trainable)

    def train(method):
        def loss(p):
            q, k, v = ((x @ p[name]["kernel"])[:, None] for name in ("query", "key", "value"))
            y = limits.polynomial_attention(q, k, v, 4, method=method, scale=0.2)
            return jnp.mean((y[:, 0] - target) ** 2), limits.attention_norm(q, k, scale=0.2)[0]

        def step(carry, _):
            p, state = carry
            (value, norm), grads = jax.value_and_grad(loss, has_aux=True)(p)
            updates, state = tx.update(grads, state, p)
            return (optax.apply_updates(p, updates), state), (value, norm)

        run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=60)[1])
        return map(np.asarray, run(params))

    (exact, norms), (found, _) = train("exact"), train("polynomial")
    assert norms.max() <= 1 and exact[-1] < exact[0]
    np.testing.assert_allclose(found, exact, rtol=1e-2)


def test_adapters_that_could_not_learn_are_refused():
    key, params = jax.random.key(0), {"kernel": jnp.ones((4, 4))}
    add = limits.add_lora
    for tree, more in (({"kernel": jnp.ones((4, 4), int)}, {}), (params, {"dtype": jnp.int32})):
        with pytest.raises(ValueError, match=r"factors of kernel \(4, 4\) would be .*int32"):
            add(tree, 1, key=key, **more)
    with pytest.raises(ValueError, match="a linear kernel without an adapter"):
        add(add(params, 1, key=key), 1, key=key)
    with pytest.raises(ValueError, match=r"add_lora: where '\(' is not a regular expression"):
        add(params, 1, where="(", key=key)
