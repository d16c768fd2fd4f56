"""Activations of models: collected, streamed, cached, spliced, ablated, steered, shown."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import sae

D = 6
X = jax.random.normal(jax.random.key(1), (3, 4, 5))


@pytest.fixture(scope="module")
def model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(5, D, rngs=rngs), nnx.tanh, nnx.Linear(D, D, rngs=rngs), nnx.tanh,
        nnx.Linear(D, 3, rngs=rngs),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return sae.SAE(sae.TopK(2), sparse=True)


@pytest.fixture(scope="module")
def params(found):
    return found.init(D, 40, key=jax.random.key(0))


def site(model, x):
    return nnx.tanh(model.layers[0](x))


def upper(model, h):
    return model.layers[4](nnx.tanh(h))


WHERE = "layers/2$"


def test_collect(model):
    keep = lambda batch: batch[..., 0] > 0  # noqa: E731
    rows = list(sae.collect(model, WHERE, [X, -X], keep=keep))
    wanted = [
        np.asarray(model.layers[2](site(model, x)))[np.asarray(x[..., 0] > 0)] for x in (X, -X)
    ]
    for a, b in zip(rows, wanted):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="one module"):
        next(iter(sae.collect(model, "layers/[02]$", [X])))


def test_gradients(model):
    """The gradient of the loss summed over positions, of the upper half only."""
    x, grad = sae.gradients(model, WHERE, lambda y: jnp.sum(jnp.sin(y)), X)
    h = model.layers[2](site(model, X))
    np.testing.assert_allclose(x, h, atol=1e-6)
    wanted = jax.grad(lambda h: jnp.sum(jnp.sin(upper(model, h))))(h)
    np.testing.assert_allclose(grad, wanted, atol=1e-6)
    jitted = jax.jit(lambda X: sae.gradients(model, WHERE, lambda y: jnp.sum(jnp.sin(y)), X))(X)
    np.testing.assert_allclose(jitted[1], grad, atol=1e-6)


def test_splice(model, found, params):
    h = model.layers[2](site(model, X))
    spliced = sae.splice(model, WHERE, found, params)
    np.testing.assert_allclose(spliced(X), upper(model, found(params, h)), atol=1e-5)
    same = sae.splice(model, WHERE, found, params, error=True)
    np.testing.assert_allclose(same(X), model(X), atol=1e-5)
    # Gradients pass through the autoencoder, not through the error.
    through = jax.grad(lambda p: jnp.sum(sae.splice(model, WHERE, found, p, error=True)(X) ** 2))(
        params
    )
    assert bool(jnp.any(through["W_dec"] != 0))


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_of_a_module(model, skip):
    """It reads the input of the module, also where that is as wide as the output."""
    found = sae.SAE(sae.ReLU(), transcoder=True)
    params = found.init(D, 8, key=jax.random.key(0), skip=skip)
    if skip:
        params["W_skip"] = jnp.eye(D)
    x = site(model, X)
    h = model.layers[2](x)
    spliced = sae.splice(model, WHERE, found, params)
    np.testing.assert_allclose(spliced(X), upper(model, found(params, x)), atol=1e-5)
    f = found.encode(params, x)[..., 3:4]
    ablated = sae.ablate(model, WHERE, found, params, [3])
    np.testing.assert_allclose(ablated(X), upper(model, h - f * params["W_dec"][3]), atol=1e-5)
    (data,) = sae.collect(model, WHERE, [X], transcoder=True)
    np.testing.assert_allclose(data["x"], np.reshape(x, (-1, D)), atol=1e-6)
    np.testing.assert_allclose(data["target"], np.reshape(h, (-1, D)), atol=1e-6)
    statistics = sae.statistics(found, params, [data])
    guess = np.asarray(found(params, data["x"]))
    np.testing.assert_allclose(
        statistics.mse, np.mean(np.sum((data["target"] - guess) ** 2, -1)), rtol=1e-5
    )
    for call in (
        lambda: sae.statistics(found, params, [data["x"]]),
        lambda: found.loss(params, data["x"], found.state(params)),
    ):
        with pytest.raises(ValueError, match='transcoder needs the target.*"target"'):
            call()


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("skip", [False, True])
def test_only_the_input_of_a_transcoder_is_normalised(normalize, skip):
    found, rng = sae.SAE(sae.ReLU(), normalize=normalize, transcoder=True), np.random.default_rng(0)
    x, y = (rng.normal(size=(9, d)).astype(np.float32) * 3 + 1 for d in (5, 4))
    params = found.init(5, 8, key=jax.random.key(0), output=4, skip=skip, samples=y)
    whole = {k: np.asarray(v, np.float64) for k, v in params.items()}
    inside = x / np.linalg.norm(x, axis=1, keepdims=True) * 5**0.5
    if normalize == "layer_norm":
        inside = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    f = np.maximum(inside @ whole["W_enc"] + whole["b_enc"], 0)
    wanted = f @ whole["W_dec"] + whole["b_dec"]
    if skip:
        whole["W_skip"] = rng.normal(size=(4, 5))
        params["W_skip"] = jnp.asarray(whole["W_skip"], jnp.float32)
        wanted = wanted + x @ whole["W_skip"].T
    np.testing.assert_allclose(found(params, x), wanted, atol=1e-4)
    loss, _ = found.loss(params, {"x": x, "target": y}, found.state(params))
    error = np.sum((y - wanted) ** 2, -1)
    np.testing.assert_allclose(sae.statistics(found, params, [{"x": x, "target": y}]).mse,
                               error.mean(), rtol=1e-4)  # fmt: skip
    plain = sae.SAE(sae.ReLU(), transcoder=True)
    same, _ = plain.loss(params, {"x": inside.astype(np.float32), "target": y},
                         plain.state(params))  # fmt: skip
    if not skip:
        np.testing.assert_allclose(loss, same, rtol=1e-4)
    module = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    ablated = sae.ablate(module, "", found, params, [2])(jnp.asarray(x))
    moved = np.asarray(module(x)) - f[:, 2:3] * whole["W_dec"][2]
    np.testing.assert_allclose(ablated, moved, atol=1e-4)
    with pytest.raises(ValueError, match="samples must be .* of width 4"):
        found.init(5, 8, key=jax.random.key(0), output=4, samples=x)


def test_targets_and_gradients_belong_to_their_samples():
    """Not those of as many numbers in another shape."""
    found = sae.SAE(sae.ReLU(), transcoder=True)
    params = found.init(6, 8, key=jax.random.key(0))
    x = jnp.ones((4, 6))
    with pytest.raises(ValueError, match=r"target must have shape \(4, 6\)"):
        found.loss(params, {"x": x, "target": jnp.ones((6, 4))}, found.state(params))
    with pytest.raises(ValueError, match=r"grad must have shape \(4, 6\)"):
        sae.SAE(sae.GradientTopK(2)).run(params, x, jnp.ones((6, 4)))


class Keyword(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.inner(inputs=x)


def test_a_module_without_positional_inputs_has_no_transcoder():
    found = sae.SAE(sae.ReLU(), transcoder=True)
    params, x = found.init(6, 8, key=jax.random.key(0)), jnp.ones((4, 6))
    for call in (
        lambda: list(sae.collect(Keyword(), "inner", [x], transcoder=True)),
        lambda: sae.splice(Keyword(), "inner", found, params)(x),
    ):
        with pytest.raises(ValueError, match="first positional input"):
            call()


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_ablate(model, params, normalize):
    found = sae.SAE(sae.TopK(2), normalize=normalize)
    h = model.layers[2](site(model, X))
    f = found.encode(params, h)
    latents = np.unique(np.nonzero(np.asarray(f).reshape(-1, 40))[1])[:3].tolist()
    without = f.at[..., jnp.array(latents)].set(0.5)
    units = found.units(h)
    moved = (without - f) @ params["W_dec"] * units.back
    ablated = sae.ablate(model, WHERE, found, params, latents, value=0.5)
    np.testing.assert_allclose(ablated(X), upper(model, h + moved), atol=1e-5)
    for wrong in ([40], [-1], [], [0.5]):
        with pytest.raises((ValueError, TypeError), match="latents"):
            sae.ablate(model, WHERE, found, params, wrong)


def test_steer(model, found, params):
    h = model.layers[2](site(model, X))
    for relative in (True, False):
        size = jnp.linalg.norm(h, axis=-1, keepdims=True) if relative else 1
        steered = sae.steer(model, WHERE, found, params, 3, 2.0, relative=relative)
        wanted = upper(model, h + 2 * size * params["W_dec"][3])
        np.testing.assert_allclose(steered(X), wanted, atol=1e-5)


def test_fidelity(model, found, params):
    def loss(logits, batch):
        del batch
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    h = model.layers[2](site(model, X))
    for ablation in ("zero", "mean"):
        got = sae.fidelity(model, WHERE, found, params, [X, X], loss, ablation=ablation)
        other = (
            jnp.zeros_like(h) if ablation == "zero" else jnp.broadcast_to(h.mean((0, 1)), h.shape)
        )
        outputs = [model(X), upper(model, found(params, h)), upper(model, other)]
        clean, spliced, ablated = (float(loss(y, X)) for y in outputs)
        p, *qs = (jax.nn.log_softmax(y) for y in outputs)
        near, far = (float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))) for q in qs)
        wanted = (
            clean,
            spliced,
            ablated,
            (ablated - spliced) / (ablated - clean),
            near,
            far,
            (far - near) / far,
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="batches"):
        sae.fidelity(model, WHERE, found, params, [], loss)


def test_steering_effect(model, found, params):
    change, kl = sae.steering_effect(model, WHERE, found, params, [3, 5], X, 2.0)
    for i, latent in enumerate((3, 5)):
        steered = sae.steer(model, WHERE, found, params, latent, 2.0)(X)
        np.testing.assert_allclose(change[i], jnp.abs(steered - model(X)).mean(), rtol=1e-4)
    assert bool((kl > 0).all())


def chunks_of(sizes):
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b)[:, None].astype(np.float32) for a, b in zip(ends, ends[1:])]


@pytest.mark.parametrize("sizes", [(4,) * 10, (7, 1, 12, 3, 17), (40,)])
def test_the_buffer_serves_every_row_once_an_epoch(sizes):
    chunks = chunks_of(sizes)
    buffer = sae.ActivationBuffer(lambda start: chunks[start:], 16, 4, key=jax.random.key(0))
    served = np.concatenate([buffer.batch().ravel() for _ in range(10)])
    # After 40 rows served those in the buffer are of this epoch or of the next.
    counts = np.bincount(served.astype(int), minlength=40)
    left = buffer.position()["rows"].ravel().astype(int)
    assert (counts + np.bincount(left, minlength=40) >= 1).all()
    assert counts.max() <= 2 and len(set(served[:16])) == 16
    assert not np.array_equal(served[:16], np.arange(16))  # shuffled
    assert served[:4].max() < 16  # but no further than the buffer reaches


def test_the_buffer_continues_bit_for_bit():
    chunks = chunks_of((7, 1, 12, 3, 17))

    def make():
        source = lambda start: iter(chunks[start:])  # noqa: E731
        return sae.ActivationBuffer(source, 16, 4, key=jax.random.key(3))

    whole = make()
    batches, positions = [], []
    for _ in range(25):
        positions.append(whole.position())
        batches.append(whole.batch())
    for at in (0, 1, 5, 9, 17):
        other = make()
        other.restore(positions[at])
        for wanted in batches[at:]:
            np.testing.assert_array_equal(other.batch(), wanted)


def test_the_buffer_keeps_pairs_together():
    chunks = [{"x": c, "grad": -c} for c in chunks_of((9, 9, 9))]
    buffer = sae.ActivationBuffer(lambda start: chunks[start:], 12, 3, key=jax.random.key(0))
    for _ in range(12):
        batch = buffer.batch()
        np.testing.assert_array_equal(batch["x"], -batch["grad"])


def test_the_buffer_refuses():
    with pytest.raises(ValueError, match="capacity"):
        sae.ActivationBuffer(lambda start: [], 7, 4, key=jax.random.key(0))
    with pytest.raises(ValueError, match="source"):
        sae.ActivationBuffer(lambda start: [], 8, 4, key=jax.random.key(0)).batch()
    with pytest.raises(ValueError, match="source"):
        sae.ActivationBuffer(lambda start: [np.ones((0, 2))], 8, 4, key=jax.random.key(0)).batch()


def test_activations_on_disk(tmp_path):
    made = []

    def source(start):
        for i in range(start, 4):
            made.append(i)
            yield {"x": np.full((2, 3), i, np.float32), "y": jnp.full((2,), i, jnp.bfloat16)}

    first = iter(sae.cache_activations(tmp_path, source)(0))
    next(first), next(first)
    first.close()  # interrupted
    chunks = list(sae.cache_activations(tmp_path, source)(0))
    assert made == [0, 1, 2, 3] or made == [0, 1, 1, 2, 3]
    assert [float(c["x"][0, 0]) for c in chunks] == [0, 1, 2, 3]
    made.clear()
    again = list(sae.cache_activations(tmp_path, source)(1))
    assert not made and len(again) == 3 and again[0]["y"].dtype == jnp.bfloat16
    assert float(again[2]["y"][1]) == 3
    (tmp_path / "chunk-2.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"chunk-2\.npz"):
        list(sae.cache_activations(tmp_path, source)(0))


@pytest.mark.parametrize("sparse", [False, True])
def test_dashboard(sparse):
    rows = jnp.eye(4)
    found = sae.SAE(sae.TopK(1), sparse=sparse)
    params = {"W_enc": rows, "W_dec": rows, "b_dec": jnp.zeros(4), "b_enc": jnp.zeros(4)}
    x = np.zeros((3, 5, 4), np.float32)
    x[0, 1, 2], x[1, 3, 2], x[2, 4, 2] = 1.0, 4.0, 9.0  # the last one is padding
    tokens = [["a", "b", "c", "d", "e"], ["f", "<i>", "h", 'j"&', "k"], ["l", "m"]]
    page = sae.dashboard(
        found, params, [(tokens[:2], x[:2]), (tokens[2:], x[2:])], [2, 1], examples=1
    )
    assert page.index("Latent 2") < page.index("Latent 1")
    assert 'rgba(217,130,43,1.00)" title="4">j&quot;&amp;</span>' in page
    assert "&lt;i&gt;" in page and "<i>" not in page and ">b</span>" not in page
    assert "16.667%" in page and "No token activates it." in page  # 2 of 12 tokens
    style = page.partition("<style>")[2].partition("</style>")[0]
    rules = re.findall(r"([^{}]+)\{[^}]*\}", style)
    assert rules and all(rule.strip().startswith(".sj-latents") for rule in rules)  # of it alone
    with pytest.raises(ValueError, match="batches"):
        sae.dashboard(found, params, [(tokens, x[:2])], [0])
    with pytest.raises(ValueError, match="at least one token"):
        sae.dashboard(found, params, [], [0])


@pytest.fixture(scope="module")
def llama():
    config = sj.models.LlamaConfig(
        vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
    )
    return sj.models.Llama(config, rngs=nnx.Rngs(0))


def test_the_residual_stream_of_a_decoder(llama):
    """Layers return a tuple: its first entry is collected, spliced, ablated and steered."""
    ids = [jnp.asarray(np.random.default_rng(i).integers(0, 29, (2, 8))) for i in range(3)]
    where = "layers/0$"
    chunks = list(sae.collect(llama, where, ids))
    assert [c.shape for c in chunks] == [(16, 16)] * 3
    buffer = sae.ActivationBuffer(lambda start: chunks[start:], 32, 8, key=jax.random.key(0))
    found = sae.SAE(sae.TopK(2), constraint=sj.optim.unit_norm)
    params = found.init(16, 64, key=jax.random.key(0))
    done = sae.train(found, params, buffer, optax.adam(1e-3), steps=5, key=jax.random.key(0))
    clean = llama(ids[0])
    kept = sae.splice(llama, where, found, done.params, error=True)(ids[0])
    np.testing.assert_allclose(kept, clean, atol=1e-4)
    for model in (
        sae.splice(llama, where, found, done.params),
        sae.ablate(llama, where, found, done.params, [0], value=3.0),
        sae.steer(llama, where, found, done.params, 0, 1.0),
    ):
        assert float(jnp.abs(model(ids[0]) - clean).max()) > 1e-3
    x, grad = sae.gradients(llama, where, lambda y: jnp.sum(y[..., 0]), ids[0])
    assert x.shape == grad.shape == (2, 8, 16) and bool(jnp.any(grad != 0))


def test_collecting_runs_the_model_once(llama):
    """The forward pass with a tap has no more operations than that without."""
    ids = jnp.zeros((2, 8), int)
    flops = lambda f: jax.jit(f).lower(ids).compile().cost_analysis()["flops"]  # noqa: E731
    assert flops(
        lambda ids: (llama(ids), sj.nn.record(llama, "layers/0$", ids)[1]["layers/0"][0])
    ) <= 1.01 * flops(llama)


def test_wrong_parts_are_told_before_training():
    key = jax.random.key(0)
    for name, part, error, text in (
        ("activation", 4, TypeError, r"activation must be one such as sj.sae.TopK\(32\), got 4"),
        ("activation", sj.select.TopK(4), TypeError, "activation must be one such as"),
        ("losses", sae.AuxK(), TypeError, "losses must be a tuple of losses"),
        ("activation", sae.TopK(400), ValueError, "keeps more than the 128 latents"),
    ):
        wrong = sae.SAE(sae.TopK(2))
        object.__setattr__(wrong, name, part)  # the types are not checked outside of tests
        with pytest.raises(error, match=text):
            wrong.init(16, 128, key=key)
    one = sae.SAE(sae.TopK(2))
    params = one.init(4, 8, key=key)
    with pytest.raises(ValueError, match="must have the 8 latents"):
        one.decode(params, jnp.ones((3, 7)))
    for call in (
        lambda p: one.encode(p, jnp.ones((3, 4))),
        lambda p: one.decode(p, jnp.ones((3, 8))),
        lambda p: sae.save("nowhere", one, p),
    ):
        with pytest.raises(ValueError, match="must hold W_dec and b_dec.* missing among W_enc"):
            call({"W_enc": params["W_enc"]})
