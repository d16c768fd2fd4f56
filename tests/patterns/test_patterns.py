"""Patterns against enumeration and sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def kept_by_sorting(scores, count):
    flat = np.asarray(scores, np.float64).ravel()
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:count]] = True
    return mask.reshape(np.shape(scores))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(5,), (7, 3), (16, 64)])
def test_unstructured_keeps_n_minus_round_n_s(sparsity, shape):
    scores = jnp.abs(normal(*shape))
    mask = sj.masks.topk(scores, sj.Unstructured(sparsity))
    kept = scores.size - round(scores.size * sparsity)
    np.testing.assert_array_equal(mask, kept_by_sorting(scores, kept))


def test_half_to_even():
    for n, kept in [(5, 3), (7, 3), (1, 1), (3, 1)]:
        assert int(sj.masks.topk(jnp.ones(n), sj.Unstructured(0.5)).sum()) == kept


@pytest.mark.parametrize(
    "pattern",
    [
        sj.Unstructured(0.5),
        sj.NM(2, 4),
        sj.Block((2, 2), 0.5),
        sj.Channel(0.5),
        sj.Channel(0.5, axis=0),
        sj.Block((2, 2), 0.5, balanced=True),
    ],
)
def test_ties_go_to_the_lowest_index(pattern):
    mask = np.asarray(sj.masks.topk(jnp.ones((4, 4)), pattern))
    lowest = kept_by_sorting(np.ones((4, 4)), 8)
    expected = {
        "NM": np.repeat([True, True, False, False], 4).reshape(4, 4),
        "Block": lowest,
        "Channel": np.tile([True, True, False, False], (4, 1)),
    }.get(type(pattern).__name__, lowest)
    if getattr(pattern, "axis", None) == 0:
        expected = expected.T
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("pattern", [sj.Unstructured(0.5), sj.NM(2, 4), sj.Block((1, 1), 0.5)])
def test_nan_ranks_last_and_minus_zero_equals_zero(pattern):
    scores = jnp.array([[jnp.nan], [0.0], [-0.0], [-jnp.inf]])
    mask = sj.masks.topk(scores, pattern).ravel().tolist()
    assert mask == [False, True, True, False]


@pytest.mark.parametrize(
    "axis, shape",
    [
        (None, (8, 6)),
        (1, (6, 8)),
        (-1, (6, 8)),
        (0, (8, 2, 3)),
        ((0, 1), (2, 4, 6)),
        (None, (3, 3, 4, 2)),
    ],
)
def test_nm_keeps_n_of_m_along_the_contraction(axis, shape):
    pattern = sj.NM(1, 4, axis=axis)
    scores = jnp.abs(normal(*shape))
    mask = np.asarray(sj.masks.topk(scores, pattern))
    if axis in (1, -1):
        groups, values = (np.asarray(x).T.reshape(-1, 4, 6) for x in (mask, scores))
    elif len(shape) == 4:
        groups, values = (np.asarray(x).reshape(9, 4, 2) for x in (mask, scores))
    else:
        groups, values = (np.asarray(x).reshape(-1, 4, np.size(x) // 8) for x in (mask, scores))
    np.testing.assert_array_equal(groups.sum(1), 1)
    np.testing.assert_array_equal(groups.argmax(1), values.argmax(1))


@pytest.mark.parametrize("c", [0.0, 0.2, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_nm_along_a_schedule(c):
    scores = jnp.abs(normal(16, 3))
    kept = 8 - round(float(np.float32(c)) * 6)
    for fraction in (float(np.float32(c)), jnp.float32(c)):
        mask = np.asarray(sj.masks.topk(scores, sj.NM(2, 8), fraction))
        np.testing.assert_array_equal(mask.reshape(2, 8, 3).sum(1), kept)


def padded_by_hand(scores, n, m):
    """Per sequence along the last axis: the n largest of each m, the last group shorter."""
    mask = np.zeros(scores.shape, bool)
    for at in np.ndindex(scores.shape[:-1]):
        for start in range(0, scores.shape[-1], m):
            best = np.argsort(-scores[at][start : start + m], kind="stable")[:n]
            mask[(*at, start + best)] = True
    return mask


@pytest.mark.parametrize(
    "options, shape, last, n, m",
    [
        ({}, (7, 6), (1, 0), 2, 4),
        ({}, (50, 2), (1, 0), 3, 40),  # long groups are selected by bisection
        ({}, (3, 2), (1, 0), 1, 5),
        ({"axis": 1, "stacked": 1}, (2, 9, 3), (0, 2, 1), 2, 4),
        ({"axis": (0, 1)}, (3, 5, 2), (2, 0, 1), 2, 4),
        ({}, (3, 2, 6, 2), (0, 1, 3, 2), 2, 4),
    ],
)
def test_a_padded_group_keeps_at_most_n(options, shape, last, n, m):
    pattern = sj.NM(n, m, pad=True, **options)
    scores = jnp.abs(normal(*shape)).at[(0,) * len(shape)].set(jnp.nan)
    along = np.nan_to_num(np.asarray(scores), nan=-1).transpose(last)
    if options.get("axis") == (0, 1):
        along = along.reshape(2, 15)
    mask = sj.masks.topk(scores, pattern)
    found = np.asarray(mask).transpose(last).reshape(along.shape)
    np.testing.assert_array_equal(found, padded_by_hand(along, n, m))
    plan = sj.plan({"kernel": scores}, {"kernel": pattern})
    assert plan["kernel"].kept == int(mask.sum())
    layout = pattern.layout(shape)
    assert pattern.fits(mask, layout)
    assert pattern.fits(jnp.ones(shape, bool), layout) == (n >= along.shape[-1])
    half = np.asarray(sj.masks.topk(scores, pattern, 0.5)).transpose(last).reshape(along.shape)
    np.testing.assert_array_equal(half, padded_by_hand(along, m - round(0.5 * (m - n)), m))
    assert pattern.groups(layout) == along.size // along.shape[-1] * -(-along.shape[-1] // m)


def test_nm_of_nothing_and_everything():
    assert not sj.masks.topk(jnp.ones((4, 2)), sj.NM(0, 4)).any()
    assert sj.masks.topk(jnp.ones((4, 2)), sj.NM(4, 4)).all()


@pytest.mark.parametrize(
    "pool_by, join",
    [("mean", np.mean), ("max", np.max), ("l2", lambda x, axis: np.sqrt((x**2).sum(axis)))],
)
def test_blocks_channels_and_groups_keep_the_best_joined_scores(pool_by, join):
    scores = jnp.abs(normal(8, 12))
    x = np.asarray(scores, np.float64)
    block = sj.masks.topk(scores, sj.Block((4, 3), 0.5, pool_by=pool_by))
    joined = join(x.reshape(2, 4, 4, 3), axis=(1, 3))
    expected = np.kron(kept_by_sorting(joined, 4), np.ones((4, 3), bool))
    np.testing.assert_array_equal(block, expected)
    channel = sj.masks.topk(scores, sj.Channel(0.25, axis=1, pool_by=pool_by))
    expected = np.tile(kept_by_sorting(join(x, axis=0), 9), (8, 1))
    np.testing.assert_array_equal(channel, expected)
    labels = np.arange(96).reshape(8, 12) % 5
    groups = sj.masks.topk(scores, sj.Groups(labels, 0.4, pool_by=pool_by))
    joined = np.array([join(x[labels == g], axis=0) for g in range(5)])
    np.testing.assert_array_equal(groups, kept_by_sorting(joined, 3)[labels])


def test_balanced_blocks_have_equal_columns():
    mask = sj.masks.topk(jnp.abs(normal(32, 24)), sj.Block((4, 4), 0.75, balanced=True))
    per_column = np.asarray(mask).reshape(8, 4, 6, 4).all((1, 3)).sum(0)
    np.testing.assert_array_equal(per_column, 2)


@pytest.mark.parametrize(
    "pattern, shape",
    [
        (sj.Unstructured(0.7, stacked=1), (3, 8, 4)),
        (sj.NM(1, 4, stacked=1), (3, 8, 4)),
        (sj.Block((2, 2), 0.5, stacked=1), (3, 8, 4)),
        (sj.Channel(0.5, stacked=1), (3, 8, 4)),
        (sj.Groups(np.arange(32).reshape(8, 4) // 4, 0.5, stacked=1), (3, 8, 4)),
    ],
)
def test_stacked_layers_are_pruned_one_by_one(pattern, shape):
    scores = jnp.abs(normal(*shape))
    alone = type(pattern)(**{**vars(pattern), "stacked": 0})
    together = sj.masks.topk(scores, pattern)
    for slice_, mask in zip(scores, together):
        np.testing.assert_array_equal(mask, sj.masks.topk(slice_, alone))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "pattern",
    [
        sj.Unstructured(0.75),
        sj.NM(1, 4),
        sj.Block((2, 4), 0.75),
        sj.Channel(0.75),
        sj.patterns.nm_stages("stepwise", 1, 4),
    ],
)
def test_jit_vmap_and_dtypes(pattern, dtype):
    scores = jnp.abs(normal(2, 8, 8)).astype(dtype)
    select = lambda s, c: sj.masks.topk(s, pattern, c)  # noqa: E731
    eager = select(scores[0], 1.0)
    assert eager.dtype == bool and int(eager.sum()) == 16
    np.testing.assert_array_equal(jax.jit(select)(scores[0], 1.0), eager)
    both = jax.vmap(select, (0, None))(scores, jnp.float32(1))
    np.testing.assert_array_equal(both[0], eager)


@pytest.mark.slow
def test_masks_agree_between_float32_and_float64():
    with jax.enable_x64(True):
        x = jnp.abs(jnp.asarray(RNG.normal(size=(40, 8))))
        for pattern in (sj.Unstructured(0.9), sj.NM(2, 4), sj.Block((4, 4), 0.5)):
            expected = sj.masks.topk(x.astype(jnp.float32), pattern)
            np.testing.assert_array_equal(sj.masks.topk(x, pattern, jnp.float64(1.0)), expected)


@pytest.mark.slow
def test_stages_follow_the_fraction():
    stages = sj.patterns.nm_stages("geometric", 1, 8, stages=3)
    assert [(p.n, p.m) for p in stages.patterns] == [(4, 32), (2, 16), (1, 8)]
    scores = jnp.abs(normal(32, 2))
    for i, m in enumerate([32, 16, 8]):
        mask = sj.masks.topk(scores, stages, (i + 1) / 3)
        np.testing.assert_array_equal(mask, sj.masks.topk(scores, stages.patterns[i]))
        assert int(mask.sum()) == 8, m
    assert sj.masks.topk(scores, stages, 0.0).all()


@pytest.mark.parametrize(
    "kind, m, pad, computations", [("stepwise", 8, False, 1), ("geometric", 4, True, 3)]
)
def test_stages_of_equal_length_share_one_computation(kind, m, pad, computations):
    stages = sj.patterns.nm_stages(kind, 1, m, stages=3, pad=pad)
    scores = jnp.abs(normal(24, 2)).at[0, 0].set(jnp.nan)
    layout = stages.layout(scores.shape)
    select = jax.jit(lambda scores, c: stages.select(scores, layout, None, c))
    for i, pattern in enumerate(stages.patterns):
        mask = select(scores, (i + 1) / len(stages.patterns))
        np.testing.assert_array_equal(mask, sj.masks.topk(scores, pattern))
    assert select(scores, 0.0).all()
    text = select.lower(scores, 0.5).as_text()
    assert text.count("func.func private @group_mask") <= computations


@pytest.mark.parametrize(
    "n, m, expected",
    [
        (1, 16, [15, 8, 4, 2, 1]),
        (2, 6, [5, 3, 2]),
        (1, 2, [1]),
        (2, 8, [7, 4, 2]),
        (3, 4, [3]),
        (1, 6, [5, 3, 1]),
    ],
)
def test_stepwise_stages_end_at_n_of_m(n, m, expected):
    assert [p.n for p in sj.patterns.nm_stages("stepwise", n, m).patterns] == expected


BAD = [
    (lambda: sj.Unstructured(1.5), ValueError, r"\[0, 1\], got 1.5"),
    (lambda: sj.Unstructured(-0.1), ValueError, "fraction of zeros"),
    (lambda: sj.Unstructured(float("nan")), ValueError, "sparsity must be a number"),
    (lambda: sj.NM(5, 4), ValueError, "0 <= n <= m"),
    (lambda: sj.NM(2, 0), ValueError, "0 <= n <= m"),
    (lambda: sj.Block((0, 4), 0.5), ValueError, "two positive integers"),
    (lambda: sj.Channel(0.5, pool_by="median"), ValueError, "pool_by"),
    (lambda: sj.Groups(np.array([0, 2]), 0.5), ValueError, "every label used"),
    (lambda: sj.Groups(np.array([0.0, 1.0]), 0.5), ValueError, "integers"),
    (lambda: sj.patterns.nm_stages("stepwise", 4, 4), ValueError, "1 <= n < m"),
    (lambda: sj.patterns.nm_stages("sideways", 1, 4), ValueError, "stepwise"),
    (lambda: sj.patterns.Stages(()), ValueError, "needs N:M patterns"),
    (lambda: sj.patterns.Stages((sj.NM(1, 2), sj.NM(1, 4, axis=1))), ValueError, "share axis"),
    (lambda: sj.masks.topk(jnp.ones((6, 2)), sj.NM(2, 4)), ValueError, r"divisible by 4.*\(6, 2\)"),
    (lambda: sj.masks.topk(jnp.ones((3, 3, 6, 4)), sj.NM(2, 4)), ValueError, "contracts 6"),
    (lambda: sj.masks.topk(jnp.ones((6, 2, 4)), sj.NM(2, 4)), ValueError, r"axis=\(0, 1\)"),
    (lambda: sj.masks.topk(jnp.ones((6, 6)), sj.Block((4, 4), 0.5)), ValueError, "does not divide"),
    (lambda: sj.masks.topk(jnp.ones((6, 6)), sj.Channel(0.5, axis=2)), ValueError, "axis"),
    (lambda: sj.masks.topk(jnp.ones(4, int), sj.Unstructured(0.5)), TypeError, "must be floats"),
    (lambda: sj.masks.topk(jnp.ones((4, 4)), sj.Channel(0.5, stacked=2)), ValueError, "stacked"),
    (lambda: sj.masks.topk(jnp.ones(4), sj.Groups(np.arange(5), 0.5)), ValueError, "do not fit"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_patterns_hash_by_value():
    assert sj.NM(2, 4, axis=[0, 1]) == sj.NM(2, 4, axis=(0, 1))
    assert len({sj.NM(2, 4, axis=[0, 1]), sj.NM(2, 4, axis=(0, 1)), sj.Block([2, 2], 0.5)}) == 2
    a, b = (sj.Groups(np.arange(4), 0.5) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a != sj.Groups(np.arange(4)[::-1], 0.5)


@pytest.mark.parametrize("m", [16, 32, 64, 256])
def test_long_groups_against_sorting(m):
    """Beyond 32 entries groups are sorted, not compared pair by pair."""
    w = jax.random.normal(jax.random.key(0), (512, 3))
    for n in (0, 2, m // 2, m):
        mask = np.asarray(sj.masks.topk(w, sj.NM(n, m))).reshape(512 // m, m, 3)
        order = np.argsort(-np.asarray(w).reshape(512 // m, m, 3), axis=1, kind="stable")
        expected = np.zeros_like(mask)
        np.put_along_axis(expected, order[:, :n], True, axis=1)
        np.testing.assert_array_equal(mask, expected)
    traced = jax.jit(lambda c: sj.masks.topk(w, sj.NM(2, m), c))
    assert int(traced(0.0).sum()) == w.size and int(traced(1.0).sum()) == w.size // m * 2


def test_nan_ranks_below_minus_infinity_in_groups_too():
    scores = jnp.array([[jnp.nan], [-jnp.inf]])
    assert sj.masks.topk(scores, sj.NM(1, 2)).ravel().tolist() == [False, True]


def test_axes_must_be_integers():
    assert sj.NM(2, 4, axis=[0, 1]) == sj.NM(2, 4, axis=(0, 1))
    with pytest.raises(ValueError, match="must be an axis"):
        sj.NM(2, 4, axis=())
    with pytest.raises(TypeError, match="NM: axis must be an integer"):
        sj.NM(2, 4, axis=(True,))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
@pytest.mark.parametrize(
    "pattern", [sj.Unstructured(0.5), sj.Block((2, 2), 0.5), sj.Channel(0.5), sj.NM(2, 4)]
)
def test_leaves_without_entries(pattern, shape):
    tree = {"empty": {"kernel": jnp.ones(shape)}, "full": {"kernel": jnp.ones((8, 8))}}
    plan = sj.plan(tree, pattern)
    found = plan.masks(tree)
    assert found["empty"]["kernel"].shape == shape and int(found["full"]["kernel"].sum()) == 32
    assert sj.report(tree, found, plan=plan).size == 64


@pytest.mark.parametrize(("shape", "taps"), [((5, 7), False), ((3, 3, 4, 6), False),
                                             ((2, 3, 4, 6), True)])  # fmt: skip
def test_groups_of_neighbouring_outputs(shape, taps):
    """Sums over n outputs (fewer at the end) of whole kernels or of each tap, in NumPy."""
    n, scores = 4, jnp.abs(normal(*shape))
    labels = sj.patterns.filter_groups(shape, n, taps=taps)
    mask = sj.masks.topk(scores, sj.Groups(labels, 0.5, pool_by="sum"))
    w = np.asarray(scores, np.float64).reshape(-1, *shape[-2:])
    w = w.reshape(-1, 1, shape[-1]) if taps else w.transpose(1, 0, 2)
    starts = range(0, shape[-1], n)
    sums = np.stack([w[..., s : s + n].sum((-1, -2)) for s in starts], -1)
    kept = kept_by_sorting(sums, sums.size - round(sums.size / 2))
    expected = np.broadcast_to(np.repeat(kept, n, -1)[:, None, : shape[-1]], w.shape)
    expected = expected if taps else expected.transpose(1, 0, 2)
    np.testing.assert_array_equal(mask, expected.reshape(shape))


def test_whole_kernels_are_blocks_with_channels_slowest():
    scores = jnp.abs(normal(3, 3, 4, 8))
    block = sj.Block((9, 4), 0.5, axis=(2, 0, 1))
    groups = sj.Groups(sj.patterns.filter_groups(scores.shape, 4), 0.5)
    np.testing.assert_array_equal(sj.masks.topk(scores, block), sj.masks.topk(scores, groups))


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_short_groups_weigh_less_only_by_their_sum(pool):
    """Outputs 4 and 5 make a short group: stronger by the mean, weaker by the sum."""
    scores = jnp.array([[1.0, 1.0, 1.0, 1.0, 1.5, 1.5]])
    pattern = sj.Groups(sj.patterns.filter_groups((1, 6), 4), 0.5, pool_by=pool)
    assert sj.masks.topk(scores, pattern)[0, 0] == (pool == "sum")


def test_filter_groups_take_kernels():
    with pytest.raises(ValueError, match="n >= 1"):
        sj.patterns.filter_groups((4,), 2)


@pytest.mark.slow
def test_one_number_makes_square_blocks():
    assert sj.Block(4, 0.5) == sj.Block((4, 4), 0.5)
