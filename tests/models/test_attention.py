"""Other attention in the decoder: by an object with three methods, no model edited."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj

CONFIG = sj.models.LlamaConfig(
    vocabulary=29, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]


@sj.register
@dataclasses.dataclass(frozen=True)
class Mine:
    """Dense attention written by a user, which remembers nothing but keys and values."""

    scale: float = 1.0

    def attend(self, q, k, v, counts):
        return jax.nn.dot_product_attention(q * self.scale, k, v, is_causal=True)

    def prefill(self, q, k, v, counts, steps):
        room = [jnp.pad(x, ((0, 0), (0, steps), (0, 0), (0, 0))) for x in (k, v)]
        return self.attend(q, k, v, counts), (*room, counts)

    def step(self, q, k, v, state):
        keys, values, counts = state
        rows = jnp.arange(len(q))
        keys, values = keys.at[rows, counts].set(k[:, 0]), values.at[rows, counts].set(v[:, 0])
        mask = (jnp.arange(keys.shape[1]) <= counts[:, None])[:, None, None]
        y = jax.nn.dot_product_attention(q * self.scale, keys, values, mask=mask)
        return y, (keys, values, counts + 1)


@pytest.fixture(scope="module", params=[False, True], ids=["list", "scan"])
def model(request):
    return sj.models.Llama(CONFIG, scan=request.param, rngs=nnx.Rngs(0))


@pytest.mark.whole
def test_an_object_of_the_user(model):
    text = np.random.default_rng(0).integers(0, 29, 40)
    for window in (64, 16):  # padded, and in windows
        want = sj.models.token_losses(model, text, window=window)
        got = sj.models.token_losses(model, text, window=window, attention=Mine())
        np.testing.assert_allclose(got, want, rtol=1e-5)
    other = sj.models.perplexity(model, text, attention=Mine(jnp.float32(3.0)))
    assert abs(other - sj.models.perplexity(model, text)) > 1e-4
    want = sj.models.generate(model, PROMPTS, 9)
    assert sj.models.generate(model, PROMPTS, 9, attention=Mine()) == want


@pytest.mark.whole
def test_mistakes(model):
    with pytest.raises(TypeError, match="attention must have the methods prefill, step"):
        sj.models.generate(model, PROMPTS, 2, attention="quest")
    with pytest.raises(TypeError, match=r"attention must .* for example attention=.*Quest\(\)"):
        sj.models.perplexity(model, [1, 2], attention=Mine)
    with pytest.raises(TypeError, match="attention needs a Llama"):
        sj.models.perplexity(lambda ids: jnp.zeros((*ids.shape, 4)), [1, 2], attention=Mine())
