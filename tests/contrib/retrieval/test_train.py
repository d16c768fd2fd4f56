"""Training against a plain loop, what it refuses, and the claims of the paper at a small size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax, softmax

import sparsejax as sj
from benchmarks.papers._passages import quality, toy_encode, toy_task, toy_trained
from sparsejax._minibatches import minibatches
from sparsejax.contrib import retrieval
from sparsejax.contrib.retrieval._encoder import _tied_pool

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, V = 12, 9
PARAMS = {
    "kernel": jax.random.normal(KEY, (V, V)),
    "bias": jnp.ones(V),
    "idf": jnp.linspace(0.5, 2.0, V),
}
PAIRS = retrieval.Pairs(
    jnp.asarray(RNG.integers(0, V, (N, 3))),
    jnp.asarray(RNG.random((N, 3)) < 0.8),
    jnp.asarray(RNG.integers(0, V, (N, 2, 4))),
    jnp.asarray(np.arange(4) < RNG.integers(1, 5, (N, 2, 1))),
    {"q": RNG.normal(size=(N, 5)), "d": RNG.normal(size=(N, 2, 5))},
)
IDF = np.linspace(0.3, 3, V).astype(np.float32)


def encode(params, ids, mask):
    return retrieval.splade_pool(params["kernel"][ids] + params["bias"], mask)


def dense(batch):
    return jnp.einsum("id,jgd->ijg", batch.extra["q"], batch.extra["d"])


def overlap(batch):
    same = batch.queries[:, None, None, :, None] == batch.documents[None, :, :, None, :]
    return 40.0 * jnp.sum(same, (-1, -2))


def train(loss=retrieval.info_nce, idf=IDF, **options):
    given = {"steps": 3, "key": KEY, "batch_size": 5, "strength": 0.1} | options
    return retrieval.train_retriever(
        given.pop("params", PARAMS), given.pop("encode", encode), loss,
        given.pop("optimizer", optax.sgd(0.1)), given.pop("data", PAIRS), idf, **given
    )  # fmt: skip


def by_hand(params, row, loss, idf, teachers, candidates, strength, special):
    """The objective of a batch in loops over pairs; NumPy for the parts without a gradient."""
    x = jax.tree.map(lambda x: jnp.asarray(x)[row], PAIRS)
    b = len(row)
    w = [[encode(params, x.documents[i, g][None], x.document_mask[i, g][None])[0]
          for g in range(2)] for i in range(b)]  # fmt: skip
    s, t = [], []
    for i in range(b):
        tokens = set(np.asarray(x.queries[i])[np.asarray(x.query_mask[i])].tolist()) - set(special)
        order = [(i, 0), (i, 1)]
        for n in range(1, b):
            j = (i + n) % b
            order += {"own": [], "negatives": [(j, 1)], "all": [(j, 0), (j, 1)]}[candidates]
        s.append([sum((idf[v] * w[j][g][v] for v in tokens), jnp.zeros(())) for j, g in order])
        t.append([[float(teacher(x)[i, j, g]) for j, g in order] for teacher in teachers])
    scores = jnp.stack([jnp.stack(row) for row in s])
    targets = []
    for row in t:
        units = [(np.array(a) - min(a)) / (max(a) - min(a) + 1e-6) for a in row]
        targets.append(30 * np.mean(units, axis=0) if units else None)
    penalty = sum((jnp.mean(jnp.stack([w[i][g] for i in range(b)]), 0) ** 2).sum() for g in (0, 1))
    return (
        loss(scores, *([jnp.asarray(np.array(targets))] if teachers else [])) + strength * penalty
    )


def cross_entropy(scores, teacher):
    """The relative entropy by SciPy, up to a constant."""
    return -jnp.mean(jnp.sum(softmax(np.asarray(teacher), axis=1) * jax.nn.log_softmax(scores), 1))


@pytest.mark.parametrize(
    "loss, other, teachers, candidates, special",
    [
        (retrieval.info_nce, lambda s: -jnp.mean(jax.nn.log_softmax(s)[:, 0]), (), "negatives", ()),
        (retrieval.kl_distill, cross_entropy, (dense, overlap), "all", (2,)),
        (
            retrieval.margin_mse,
            lambda s, t: jnp.mean((s[:, 0] - s[:, 1] - t[:, 0] + t[:, 1]) ** 2),
            (overlap,),
            "own",
            (),
        ),
    ],
    ids=["info_nce", "kl_distill", "margin_mse"],
)
def test_three_steps_equal_a_loop(loss, other, teachers, candidates, special):
    ramp = retrieval.quadratic_ramp(0.4, 2)
    found = train(
        loss, teachers=teachers, candidates=candidates, special=special, strength=ramp, chunk=2
    )
    params = PARAMS
    for t, row in enumerate(minibatches(N, 5, 3, key=KEY)):
        strength = 0.4 * min((t + 1) / 2, 1) ** 2
        grads = jax.grad(by_hand)(params, row, other, IDF, teachers, candidates, strength, special)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(params)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert found.losses.shape == found.penalties.shape == found.active.shape == (2,)


def test_records_are_those_of_the_steps():
    found = train(steps=1, strength=0.3)
    row = np.asarray(minibatches(N, 5, 1, key=KEY)[0])
    w = np.asarray(
        encode(PARAMS, *(x[row].reshape(10, 4) for x in (PAIRS.documents, PAIRS.document_mask))),
        np.float64,
    ).reshape(5, 2, V)
    np.testing.assert_allclose(found.penalties[0], (w.mean(0) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.active[0], (w != 0).sum(-1).mean(), rtol=1e-6)
    q = np.zeros((5, V))
    for i, r in enumerate(row):
        q[i, np.asarray(PAIRS.queries[r])[np.asarray(PAIRS.query_mask[r])]] = 1
    scores = np.einsum("iv,jgv->ijg", q * IDF, w)
    each = [-log_softmax([scores[i, i, 0], *np.delete(scores[i], i, 0).ravel(), scores[i, i, 1]])[0]
            for i in range(5)]  # fmt: skip
    np.testing.assert_allclose(found.losses[0], np.mean(each), rtol=1e-5)


def test_a_learned_table_moves_at_its_own_rate_and_a_fixed_one_does_not():
    fixed = train().params
    np.testing.assert_array_equal(fixed["idf"], PARAMS["idf"])
    label = lambda params: {name: name == "idf" for name in params}  # noqa: E731
    slow = optax.multi_transform({True: optax.sgd(1e-3), False: optax.sgd(0.1)}, label)
    learned = train(idf=lambda params: params["idf"], optimizer=slow).params
    moved = np.abs(np.asarray(learned["idf"] - PARAMS["idf"]))
    assert 0 < moved.max() < 0.02
    same = train(idf=np.asarray(PARAMS["idf"]), steps=1, optimizer=optax.sgd(0.1)).params
    first = train(idf=lambda params: params["idf"], steps=1, optimizer=slow).params
    np.testing.assert_allclose(first["kernel"], same["kernel"], rtol=1e-6)


def test_teachers_get_no_gradient():
    """A teacher that reads the parameters through a closure of a traced array."""

    def run(shift):
        teacher = lambda batch: dense(batch) + shift * overlap(batch)  # noqa: E731
        rows = jnp.arange(5)
        batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], PAIRS)
        scores = retrieval.candidate_scores(teacher(batch))
        return retrieval.kl_distill(jnp.zeros_like(scores), retrieval.ensemble_scores([scores]))

    assert float(jax.grad(run)(0.5)) == 0


def test_the_penalty_can_be_another_one():
    whole = train(penalty=partial(retrieval.flops_loss, threshold=V))
    assert not np.any(whole.penalties)  # no document has more than V tokens
    np.testing.assert_array_equal(whole.params["kernel"], train(strength=0.0).params["kernel"])


def test_steps_compile_once():
    calls = []

    def counted(params, ids, mask):
        calls.append(1)
        return encode(params, ids, mask)

    optimizer = optax.sgd(0.1)
    train(encode=counted, optimizer=optimizer, chunk=1)
    first = len(calls)
    for strength in (0.2, 0.3):
        train(encode=counted, optimizer=optimizer, chunk=1, strength=strength)
    assert len(calls) == first


def test_what_does_not_fit_is_refused():
    for match, options in {
        "encode must return": {"encode": lambda p, ids, mask: encode(p, ids, mask)[:, :3]},
        r"teachers\[0\] must return": {
            "teachers": (lambda batch: dense(batch)[0],),
            "loss": retrieval.margin_mse,
        },
        "data.queries must be tokens": {"idf": IDF[:5]},
        "special must be tokens": {"special": (V,)},
        "number of rows": {"data": PAIRS._replace(extra=jnp.ones(3))},
    }.items():
        with pytest.raises(ValueError, match=match):
            train(**options)
    with pytest.raises(TypeError, match="encode"):
        train(encode=lambda params: params)


def test_the_encoder_pools_the_logits_of_its_last_layer():
    bert = sj.models.Bert(20, 8, 16, 32, 2, 2, rngs=nnx.Rngs(0))
    encoder = retrieval.SpladeEncoder(bert, bias=-0.5, rngs=nnx.Rngs(1))
    ids, mask = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    hidden = sj.nn.record(bert, "^layers/1$", ids, mask)[1]["layers/1"]
    x = np.asarray(jax.nn.gelu(hidden, approximate=False), np.float64)  # W is the identity
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    logits = x @ np.asarray(bert.word.embedding[...], np.float64).T - 0.5
    logits[~np.asarray(mask)] = 0
    wanted = np.log1p(np.maximum(logits.max(1), 0))
    np.testing.assert_allclose(encoder(ids, mask), wanted, rtol=1e-4, atol=1e-5)
    padded = jnp.pad(ids, ((0, 0), (0, 2))), jnp.pad(mask, ((0, 0), (0, 2)))
    np.testing.assert_allclose(encoder(*padded), encoder(ids, mask), rtol=1e-4, atol=1e-5)
    grads = nnx.grad(lambda model: model(ids, mask).sum())(encoder)
    tables = [
        np.abs(x).max() for x in (grads.bert.word.embedding[...], grads.transform.kernel[...])
    ]
    assert min(tables) > 0


def test_the_encoder_holds_the_logits_of_a_part_of_the_vocabulary():
    """Values and gradients of a vocabulary that parts do not divide; bytes of the compiled step."""
    shapes = (16, 32, 8), (2 * 4096 + 5, 8), (2 * 4096 + 5,)
    # Integers, so that logits are exact and no rounding moves a maximum to another token.
    arrays = [jnp.asarray(RNG.integers(-3, 4, shape), jnp.float32) for shape in shapes]
    mask = jnp.asarray(np.arange(32) < RNG.integers(0, 33, (16, 1)))

    def step(pool):
        return jax.jit(jax.value_and_grad(lambda *a: (pool(*a, mask) ** 2).sum(), (0, 1, 2)))

    parts = step(_tied_pool)
    dense = step(lambda x, table, bias, mask: retrieval.splade_pool(x @ table.T + bias, mask))
    found, wanted = parts(*arrays), dense(*arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    held = [f.lower(*arrays).compile().memory_analysis().temp_size_in_bytes for f in (parts, dense)]
    assert held[0] < 0.6 * held[1], held


def test_the_table_keeps_an_index_alive_where_uniform_weights_collapse():
    task = toy_task()
    ndcg = {}
    for weighted in (True, False):
        run, table = toy_trained(task, 3.0, weighted)
        vectors = toy_encode(run.params, task.documents, task.mask)
        ndcg[weighted] = quality(task, vectors, table)["NDCG@10"]
    assert ndcg[True] >= 0.4 and ndcg[False] <= 0.2, ndcg
