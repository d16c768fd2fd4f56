"""Sirius: the rules by hand, the loop against one without a compiler, and the published costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.contrib import activation_sparsity as sparse

CONFIG = sj.models.LlamaConfig(
    vocabulary=23, width=16, hidden=24, layers=2, heads=4, key_heads=2, head_size=4
)
PROMPT = [3, 5, 7, 11, 2]


@pytest.fixture(scope="module")
def model():
    """Random, with logits far enough apart that some tokens are likely."""
    model = sj.models.Llama(CONFIG, rngs=nnx.Rngs(0))
    model.head.kernel[...] = 3 * model.head.kernel[...]
    return model


@pytest.fixture(scope="module")
def drafts(model):
    return {
        "coarse": sparse.coarse_sparse(model, PROMPT, 0.4),
        "fine": sparse.fine_sparse(model, 0.3),
    }


def judged(logits, chunk, threshold):
    """The number of tokens of a chunk that are likely enough, in a row."""
    p = np.exp(np.asarray(logits, np.float64) / 0.6)
    p /= p.sum(1, keepdims=True)
    kept = 0
    while kept < len(chunk) - 1 and p[kept, chunk[kept + 1]] >= threshold:
        kept += 1
    return kept


def by_hand(full, draft, prompt, steps, period, threshold, stop=(), second=False):
    """The loop as the paper describes it, short chunks included; advances of whole chunks."""
    cache = full.empty_cache(1, len(prompt) + steps + 2 * period)
    logits, cache = full(jnp.array([prompt]), cache)
    tokens, advances, calls = [int(logits[0, -1].argmax())], [], 1
    while len(tokens) < steps and not set(tokens) & set(stop):
        start, chunk = cache.counts, tokens[-1:]
        while len(chunk) < period:
            logits, cache = draft(jnp.array([chunk[-1:]]), cache)
            chunk.append(int(logits[0, 0].argmax()))
            if chunk[-1] in stop:
                break
        logits, cache = full(jnp.array([chunk]), cache._replace(counts=start))
        kept, calls = judged(logits[0], chunk, threshold), calls + 1
        if second and kept < len(chunk) - 1:
            chunk[kept + 1] = int(logits[0, kept].argmax())
            logits, cache = full(jnp.array([chunk]), cache._replace(counts=start))
            kept, calls = judged(logits[0], chunk, threshold), calls + 1
        advances.append(kept + 1)
        tokens += chunk[1 : kept + 1]
        if tokens[-1] in stop:
            break
        cache = cache._replace(counts=start + kept + 1)
        tokens.append(int(logits[0, kept].argmax()))
    ends = [i for i, token in enumerate(tokens) if token in stop]
    return tokens[: min(ends, default=steps - 1) + 1], advances, calls


@pytest.mark.parametrize("kind", ["coarse", "fine"])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("period, threshold", [(4, 0.05), (7, 0.1), (2, 0.2)])
def test_the_loop(model, drafts, kind, period, threshold, second):
    how = dict(period=period, threshold=threshold)
    want, advances, calls = by_hand(model, drafts[kind], PROMPT, 24, second=second, **how)
    got = sparse.corrected_generate(model, drafts[kind], PROMPT, 24, second_rollback=second, **how)
    assert got.tokens == want and got.advances == advances
    assert got.full_calls == calls
    assert got.sparse_calls == len(advances) * (period - 1)
    assert got.advance_length == np.mean(advances) and 1 <= got.advance_length <= period
    for stop in set(want[2:9]):
        want_stop, *_ = by_hand(model, drafts[kind], PROMPT, 24, stop=(stop,), second=second, **how)
        found = sparse.corrected_generate(
            model, drafts[kind], PROMPT, 24, stop=(stop,), second_rollback=second, **how
        )
        assert found.tokens == want_stop


def test_a_second_check_keeps_more(model, drafts):
    """The tokens behind a replaced one are judged again, not dropped."""
    for width in (1, 3):
        how = dict(period=8, threshold=0.02, width=width)
        once, twice = (
            sparse.corrected_generate(
                model, drafts["fine"], PROMPT, 48, second_rollback=second, **how
            )
            for second in (False, True)
        )
        assert once.full_calls == len(once.advances) + 1
        first = next(i for i, length in enumerate(once.advances) if length < 8)
        assert twice.advances[:first] == once.advances[:first]
        # The likeliest of 23 tokens is above the threshold, and so kept.
        assert twice.advances[first] > once.advances[first]
        assert len(twice.advances) + 1 < twice.full_calls <= 2 * len(twice.advances) + 1


def test_where_it_is_the_full_model(model, drafts):
    greedy = sj.models.generate(model, [PROMPT], 24)[0]
    for draft in drafts.values():
        likely = {"threshold": 0.51, "period": 8}
        for more in (likely, {"period": 1}, likely | {"second_rollback": True}):
            assert sparse.corrected_generate(model, draft, PROMPT, 24, **more).tokens == greedy
        anything = sparse.corrected_generate(model, draft, PROMPT, 24, threshold=0.0, period=6)
        assert set(anything.advances) == {6}
    alone = sparse.corrected_generate(model, model, PROMPT, 24, threshold=0.01)
    assert alone.tokens == greedy


def tree_by_hand(full, draft, prompt, steps, period, threshold, width, stop=()):
    """Beams as lists of tokens; caches are computed again from the tokens for each beam."""
    cache = full.empty_cache(1, len(prompt) + steps + 2 * period)
    logits, cache = full(jnp.array([prompt]), cache)
    tokens, advances = [int(logits[0, -1].argmax())], []

    def likely(logits):
        row = np.asarray(logits, np.float64) / 0.6
        return row - np.log(np.exp(row - row.max()).sum()) - row.max()

    while len(tokens) < steps and tokens[-1] not in stop:
        start = cache.counts
        beams = [(0.0, tokens[-1:], cache)]
        for _ in range(period - 1):
            children = []
            for score, chunk, own in beams:
                logits, after = draft(jnp.array([chunk[-1:]]), own)
                row = likely(logits[0, 0])
                for token in np.argsort(-row, kind="stable")[:width]:
                    if token in stop:
                        continue
                    children.append((score + row[token], [*chunk, int(token)], after))
                    if np.exp(row[token]) > 0.95:
                        break
            beams = sorted(children, key=lambda child: -child[0])[:width]
        best = (-1, None, None, None)
        for _, chunk, own in beams:
            logits, after = full(jnp.array([chunk]), own._replace(counts=start))
            judged = np.exp([likely(row) for row in logits[0]])
            kept = 0
            while kept < period - 1 and judged[kept, chunk[kept + 1]] >= threshold:
                kept += 1
            if kept > best[0]:
                best = kept, chunk, int(logits[0, kept].argmax()), after
        kept, chunk, own, cache = best
        advances.append(kept + 1)
        cache = cache._replace(counts=start + kept + 1)
        tokens += [*chunk[1 : kept + 1], own]
    return tokens[:steps], advances


@pytest.mark.parametrize("kind", ["coarse", "fine"])
@pytest.mark.parametrize("width, period, threshold", [(2, 4, 0.05), (3, 5, 0.1), (4, 3, 0.2)])
def test_the_tree(model, drafts, kind, width, period, threshold):
    how = dict(period=period, threshold=threshold, width=width)
    want, advances = tree_by_hand(model, drafts[kind], PROMPT, 16, stop=(), **how)
    got = sparse.corrected_generate(model, drafts[kind], PROMPT, 16, **how)
    assert got.tokens == want and got.advances == advances
    plain = sparse.corrected_generate(
        model, drafts[kind], PROMPT, 16, period=period, threshold=threshold
    )
    assert len(got.advances) <= len(plain.advances) + 2
    stop = want[5]
    found = sparse.corrected_generate(model, drafts[kind], PROMPT, 16, stop=(stop,), **how)
    by_tree, _ = tree_by_hand(model, drafts[kind], PROMPT, 16, stop=(stop,), **how)
    assert found.tokens == by_tree[: by_tree.index(stop) + 1 if stop in by_tree else None]


def test_the_tree_of_the_full_model(model, drafts):
    greedy = sj.models.generate(model, [PROMPT], 24)[0]
    for draft in drafts.values():
        likely = {"threshold": 0.51, "period": 8}
        for more in (likely, {"period": 1}, likely | {"second_rollback": True}):
            got = sparse.corrected_generate(model, draft, PROMPT, 24, width=3, **more)
            assert got.tokens == greedy
        anything = sparse.corrected_generate(
            model, draft, PROMPT, 24, threshold=0.0, period=6, width=3
        )
        assert set(anything.advances) == {6}
    # A model that scans keeps its cache with the layers first.
    stack = sj.models.Llama(CONFIG, scan=True, rngs=nnx.Rngs(0))
    got = sparse.corrected_generate(stack, stack, PROMPT, 12, threshold=0.6, width=2, period=4)
    assert got.tokens == sj.models.generate(stack, [PROMPT], 12)[0]


def test_a_beam_step_by_hand():
    p = np.array([[0.5, 0.3, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    logits, scores = jnp.log(jnp.asarray(p)) * 0.6, jnp.array([0.0, -0.1, -jnp.inf])
    got = sparse.beam_step(logits, scores, jnp.array([3]))
    # Of beam 1 only its sure token; the third place is the likeliest of beam 0 that remains.
    assert got.tokens.tolist() == [0, 0, 1] and got.parents.tolist() == [1, 0, 0]
    np.testing.assert_allclose(got.scores, [np.log(0.97) - 0.1, *np.log([0.5, 0.3])], rtol=1e-5)
    # Tokens that end a text are not proposed; what is missing is a copy of the first beam.
    got = sparse.beam_step(logits[:2], jnp.array([-jnp.inf, 0.0]), jnp.array([1, 2, 3]))
    assert got.tokens.tolist() == [0, 0] and got.parents.tolist() == [1, 1]
    assert got.scores.tolist() == [got.scores[0], -np.inf]
    equal = sparse.beam_step(jnp.zeros((2, 3)), jnp.zeros(2), jnp.array([], jnp.int32))
    assert equal.parents.tolist() == [0, 0] and equal.tokens.tolist() == [0, 1]
    with pytest.raises(ValueError, match="3 beams must have as many tokens"):
        sparse.beam_step(jnp.zeros((3, 2)), jnp.zeros(3), jnp.array([0]))


def test_a_pattern_that_beams_share(model):
    alone = sparse.fine_sparse(model, 0.3)
    shared = sparse.fine_sparse(model, 0.3, shared=True)
    ids = jnp.array([[3, 5, 7]] * 4)
    np.testing.assert_allclose(shared(ids), alone(ids), atol=1e-5)
    y = jax.random.normal(jax.random.key(0), (3, 2, 12))
    gate = sparse.ActivationGate(sj.select.TopK(4), shared=True)
    u = np.abs(np.asarray(y, np.float64) / (1 + np.exp(-np.asarray(y, np.float64)))).sum(0)
    for token in range(2):
        want = np.sort(np.argsort(-u[token], kind="stable")[:4])
        for row in range(3):
            np.testing.assert_array_equal(np.flatnonzero(gate.kept(y)[row, token]), want)


def test_rewriting_is_what_the_full_model_computes(model, drafts):
    """Without it the tokens of a bad draft leave their keys and values behind."""
    draft, how = drafts["coarse"], dict(period=4, threshold=0.0)
    kept = sparse.corrected_generate(model, draft, PROMPT, 24, rewrite=False, **how)
    assert set(kept.advances) == {4}
    assert kept.tokens != sparse.corrected_generate(model, draft, PROMPT, 24, **how).tokens
    # The full model as its own draft has nothing to rewrite.
    same = sparse.corrected_generate(model, model, PROMPT, 24, rewrite=False, threshold=0.01)
    assert same.tokens == sj.models.generate(model, [PROMPT], 24)[0]


def test_coarse_keeps_what_the_prompt_uses(model):
    small = sparse.coarse_sparse(model, PROMPT, 0.4)
    _, seen = sj.nn.record(
        model, r"mlp/down$", jnp.array([PROMPT]), reduce=lambda inputs, y: inputs[0][0]
    )
    for i, layer in enumerate(model.layers):
        z = np.asarray(seen[f"layers/{i}/mlp/down"], np.float64)
        score = np.sqrt(((z / np.linalg.norm(z, axis=1, keepdims=True)) ** 2).sum(0))
        kept = np.sort(np.argsort(-score, kind="stable")[:9])
        for name, axis in (("gate", 1), ("up", 1), ("down", 0)):
            whole = getattr(layer.mlp, name).kernel[...]
            part = getattr(small.layers[i].mlp, name).kernel[...]
            np.testing.assert_array_equal(part, np.take(np.asarray(whole), kept, axis))
    zero = sparse.griffin_scores(jnp.array([[0.0, 0.0], [0.0, 5.0]]))
    assert zero.tolist() == [0.0, 1.0]
    assert sparse.coarse_sparse(model, PROMPT, 1.0).layers[0].mlp.gate.kernel.shape == (16, 24)


def test_fine_drops_the_smallest(model):
    """Of 24 neurons int(24 * 0.7) = 16 are dropped, of equal ones those of higher index."""
    tap = sparse.fine_sparse(model, 0.3)
    x = jax.random.normal(jax.random.key(0), (1, 3, 16))
    mlp = model.layers[0].mlp
    g = np.asarray(mlp.gate(x), np.float64)
    u = np.abs(g / (1 + np.exp(-g)))
    got = np.asarray(tap.layers[0].mlp.gate(x)) != 0
    assert (got.sum(-1) == 8).all()
    assert (u[got].reshape(3, 8).min(-1) >= u[~got].reshape(3, 16).max(-1)).all()
    gate = sparse.ActivationGate(sj.select.TopK(2))
    assert gate.kept(jnp.array([2.0, 1.0, 1.0, 1.0])).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "density, length, published",
    [
        (0.65, 15.22, 0.706), (0.76, 15.37, 0.807), (0.58, 14.76, 0.657),
        (0.72, 15.66, 0.753), (0.65, 14.67, 0.733), (0.76, 15.42, 0.804),
    ],
)  # fmt: skip
def test_published_effective_densities(density, length, published):
    assert abs(sparse.effective_density(density, 16, length) - published) < 1e-3


def test_acceptance_by_hand():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])) * 0.6
    for tokens, want in (([1, 0, 1, 1], 3), ([0, 1, 0, 0], 0), ([0, 0, 0, 0], 2)):
        assert int(sparse.accept_length(logits, jnp.array(tokens), 0.3)) == want
    assert int(sparse.accept_length(logits[:1], jnp.array([0]), 0.3)) == 0


def test_mistakes(model):
    with pytest.raises(ValueError, match="prompt must hold ids from 0 to 22"):
        sparse.corrected_generate(model, model, [23], 4)
    with pytest.raises(ValueError, match="prompt must be a list"):
        sparse.corrected_generate(model, model, [], 4)
    with pytest.raises(ValueError, match="prompt must be a list"):
        sparse.coarse_sparse(model, [[1, 2]], 0.5)
    with pytest.raises(ValueError, match="width must be 1, or above the number of tokens in stop"):
        sparse.corrected_generate(model, model, [1], 4, width=2, stop=(1, 2))
    with pytest.raises(ValueError, match="must keep one of 24 neurons"):
        sparse.coarse_sparse(model, [1], 0.01)
    stack = sj.models.Llama(CONFIG, scan=True, rngs=nnx.Rngs(0))
    for refused in (
        lambda m: sparse.coarse_sparse(m, [1], 0.5),
        lambda m: sparse.fine_sparse(m, 1.0),
    ):
        with pytest.raises(ValueError, match="scan=False"):
            refused(stack)


def test_nan_writes_no_tokens(model):
    damaged = nnx.clone(model)
    damaged.norm.scale[...] = damaged.norm.scale[...].at[0].set(jnp.nan)
    for width in (1, 2):
        with pytest.raises(ValueError, match="logits of full are NaN at the new token 0"):
            sparse.corrected_generate(damaged, model, [1, 2], 4, period=3, width=width)
