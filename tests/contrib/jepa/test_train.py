"""The loss and its training: what each network sees, and where gradients and zeros are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.papers.jepa import networks, probe, trained
from sparsejax._minibatches import minibatches
from sparsejax.contrib import jepa

KEY = jax.random.key(0)
PATCHES = jax.random.uniform(KEY, (8, 9, 4))


def pair():
    encoder = jepa.PatchEncoder(9, 4, 8, 1, 2, rngs=nnx.Rngs(0))
    return encoder, jepa.Predictor(9, 8, 6, 4, 1, 2, rngs=nnx.Rngs(1))


def blocks_of(targets=2):
    draw = lambda k: jepa.block_masks((3, 3), (1, 2), key=k, targets=targets)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(KEY, 8))


def test_the_loss_is_that_of_single_images():
    encoder, predictor = pair()
    target = jepa.PatchEncoder(9, 4, 8, 1, 2, rngs=nnx.Rngs(5))
    blocks, each = blocks_of(), []
    for i, x in enumerate(PATCHES):
        seen = blocks.context[i]
        whole = np.asarray(target(x[None])[0], np.float64)
        whole = (whole - whole.mean(1, keepdims=True)) / np.sqrt(whole.var(1, keepdims=True) + 1e-5)
        for hidden in blocks.targets[i]:
            found = predictor(encoder(x[None], seen[None]), seen[None], hidden[None])[0]
            each.append(np.mean((np.asarray(found, np.float64) - whole[np.asarray(hidden)]) ** 2))
    loss = jepa.jepa_loss(encoder, target, predictor, PATCHES, blocks)
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-4)


def test_the_context_encoder_does_not_see_hidden_patches_and_the_target_gets_no_gradient():
    encoder, predictor = pair()
    blocks = blocks_of(1)
    shown = np.zeros((8, 9), bool)
    np.put_along_axis(shown, np.asarray(blocks.context), True, 1)
    noisy = jnp.where(shown[..., None], PATCHES, 7.0)
    np.testing.assert_array_equal(encoder(PATCHES, blocks.context), encoder(noisy, blocks.context))

    def loss(target):
        return jepa.jepa_loss(encoder, target, predictor, PATCHES, blocks)

    assert not any(np.any(g) for g in jax.tree.leaves(nnx.grad(loss)(encoder)))
    # Mask tokens carry positions: other places get other predictions.
    seen = encoder(PATCHES, blocks.context)
    one, two = (predictor(seen, blocks.context, jnp.full((8, 1), i)) for i in (0, 8))
    assert np.abs(one - two).max() > 1e-4


def leaves(module):
    return nnx.as_pure(nnx.state(module, nnx.Param))


def test_two_steps_equal_a_loop_with_the_prox_at_the_step_of_the_schedule():
    """A schedule that changes at each step; the second step has another proximal threshold."""
    rate, strength, first = optax.linear_schedule(0.05, 0.01, 2), 2.0, 0.9
    encoder, predictor = pair()
    found = jepa.train_jepa(
        encoder, predictor, PATCHES, grid=(3, 3), block=(1, 2), blocks=2, steps=2, key=KEY,
        strength=strength, learning_rate=rate, weight_decay=0.1, momentum=first, batch_size=8,
    )  # fmt: skip
    order, places = jax.random.split(KEY)
    graphs = [nnx.split(m)[0] for m in (encoder, predictor)]
    params = leaves(encoder), leaves(predictor)
    target, decays = params[0], jax.tree.map(lambda _: True, params)
    decays[1]["output"]["kernel"] = False
    adam = optax.adamw(rate, weight_decay=0.1, mask=decays)
    state = adam.init(params)
    for t, row in enumerate(minibatches(8, 8, 2, key=order)):
        keys = jax.random.split(jax.random.fold_in(places, t), 8)
        blocks = jax.vmap(lambda k: jepa.block_masks((3, 3), (1, 2), key=k, targets=2))(keys)

        def loss(params, target=target, row=row, blocks=blocks):
            seen, predicted = (nnx.merge(g, p) for g, p in zip(graphs, params))
            return jepa.jepa_loss(seen, nnx.merge(graphs[0], target), predicted, PATCHES[row],
                                  blocks)  # fmt: skip

        moves, state = adam.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, moves)
        w = np.asarray(params[1]["output"]["kernel"])
        norms = np.linalg.norm(w, axis=-1, keepdims=True)
        params[1]["output"]["kernel"] = jnp.asarray(
            w * np.maximum(0, 1 - float(rate(t)) * strength / norms)
        )
        m = first + (1 - first) * t / 2
        target = jax.tree.map(lambda a, b, m=m: m * a + (1 - m) * b, target, params[0])
    for module, tree in ((found.encoder, params[0]), (found.predictor, params[1]),
                         (found.target, target)):  # fmt: skip
        for (path, a), b in zip(jax.tree.leaves_with_path(leaves(module)), jax.tree.leaves(tree)):
            # The softmax does not depend on the bias of keys: Adam moves it by rounding errors.
            if not jax.tree_util.keystr(path).endswith("['key']['bias']"):
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_the_penalty_gives_exact_zeros_and_warns_if_all_are():
    def run(strength):
        return jepa.train_jepa(*pair(), PATCHES, grid=(3, 3), block=(1, 1), steps=60, key=KEY,
                               strength=strength, learning_rate=0.01)  # fmt: skip

    kernels = [run(s).predictor.output.kernel[...] for s in (0.0, 1.0)]
    assert float(jepa.row_sparsity(kernels[0])) == 0 < float(jepa.row_sparsity(kernels[1])) < 1
    with pytest.warns(UserWarning, match="lower strength"):
        dead = run(100.0)
    assert float(jepa.row_sparsity(dead.predictor.output.kernel[...])) == 1
    assert not np.any(jepa.groups_per_latent(dead.predictor.output.kernel[...]))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="groups=3"):
        jepa.Predictor(9, 8, 6, 3, 1, 2, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="patches"):
        jepa.train_jepa(*pair(), PATCHES, grid=(2, 2), block=(1, 1), steps=1, key=KEY)
    with pytest.raises(ValueError, match="blocks"):
        jepa.jepa_loss(pair()[0], pair()[0], pair()[1], PATCHES[:3], blocks_of())


@pytest.mark.slow
def test_the_penalty_removes_rows_and_keeps_the_probe():
    """The order of the small experiment, with one seed and half of its steps."""
    runs = {s: trained(0, s, 300) for s in (0.0, 2.0)}
    accuracy = {s: probe(run.target)[0] for s, run in runs.items()}
    assert accuracy[0.0] > probe(networks(0)[0])[0] and accuracy[2.0] > accuracy[0.0] - 0.1
    zeros = {
        s: float(jepa.row_sparsity(run.predictor.output.kernel[...])) for s, run in runs.items()
    }
    assert zeros[0.0] == 0 and zeros[2.0] > 0.3
