"""Every custom derivative of the package, to second order and in forward mode, or it raises."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import prox, solve
from sparsejax.contrib import dag, sara, search

RNG = np.random.default_rng(0)
V, M, X = RNG.normal(size=6) * 3, RNG.normal(size=(4, 3)), RNG.normal(size=(8, 4))
TARGET = RNG.normal(size=8)
AT = {"w": jnp.array([1, 3])}


def square(tree):
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(tree))


def through(penalty, step=0.3):
    return lambda v: square(penalty.prox(v, step))


def trained(v):
    params = sara.write_back({"w": jnp.arange(6.0, dtype=v.dtype)}, {"w": v}, AT)
    # The parameters hold the values; only `select_gradients` tells that they depend on them.
    params = jax.lax.stop_gradient(params)
    return square(sara.select_gradients(params, {"w": v}, AT))


def product(pattern):
    params = {"kernel": jnp.asarray(X, jnp.float32)}
    plan = sj.plan(params, pattern)
    w = sj.nn.compress(params, plan, plan.masks(sj.masks.magnitude(params)))["kernel"]
    return lambda x: square(sj.kernels.matmul(x, w, implementation="xla"))


def active(v):
    # The unit 0 of two, with a weight from the input to the unit and one back.
    units = sj.select.ActiveSet(jnp.array([0]), jnp.array(1), jnp.array(False))
    w = jnp.ones((2, v.size), v.dtype)
    up = sj.kernels.active_expand(v[None], w, units)
    dense = jnp.zeros((1, 2, 1), v.dtype).at[:, :1].set(up)
    return square(sj.kernels.active_reduce(dense, w, units))


def lasso(v):
    return square(solve.lasso(X, v, 0.05, tol=1e-12).value)


def attended(x):
    blocks = sj.kernels.KeyBlocks.from_mask(jnp.tril(jnp.ones((4, 4))) > 0, (2, 2))
    heads = x[:, None, :]
    return square(
        sj.kernels.block_sparse_attention(heads, 2 * heads, heads, blocks, implementation="xla")
    )


def gated(x):
    up, down = (sj.formats.Skipping(jnp.asarray(w)) for w in (X[:6], X[:6].T))
    limits = [(jnp.ones(n), 0.01) for n in (6, 6, 4)]
    return square(sj.kernels.gated_mlp(x[None], [up, up, down], limits))


def decoded(rows):
    at = jnp.array([[0, 1], [2, 2]])
    return square(sj.sae.decode(at, rows[at, 0], rows))


# Function of one array, where, and whether it has a forward mode (a `custom_vjp` raises).
RULES = {
    "_pull": (through(prox.log_sum(0.7, 0.9)), V, True),
    "_pull of a function": (through(prox.concave(jnp.log1p, lambda b: 1 / (1 + b), 0.7)), V, True),
    "_root": (through(prox.lp(0.7, 0.4)), V, True),
    "_envelope": (prox.moreau_envelope(prox.ridge(0.7), 0.5).value, V, True),
    "implicit": (through(prox.k_support_norm(0.7, 3)), V, True),
    "quotient": (through(prox.group_lasso(0.7)), V, True),
    "_solve": (through(prox.total_variation(0.3)), V, True),
    "_spectral": (through(prox.nuclear(0.3)), M, True),
    "_singular_values": (lambda x: prox.nuclear(0.7).value(x) ** 2, M, True),
    "logdet_acyclicity": (dag.logdet_acyclicity, 0.3 * M[:3], True),
    "attach": (lasso, TARGET, True),
    "_tap": (trained, V[:2], True),
    "_product and _fixed_padding, NM": (product(sj.NM(2, 4)), X[:2, :1].repeat(8, 1), False),
    "_product, Block": (product(sj.Block((2, 2), 0.5)), X[:2, :1].repeat(8, 1), False),
    "_reduce and _expand": (active, V, False),
    "combined and sampled": (decoded, M, False),
    "computed": (gated, V, True),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_derivatives_are_those_of_differences(name):
    f, at, forward = RULES[name]
    with jax.enable_x64(True):
        x, along = jnp.asarray(at), jnp.asarray(np.random.default_rng(1).normal(size=at.shape))
        gradient = jax.jit(jax.grad(f))
        second = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), along)))
        h = 1e-5
        rise = (gradient(x + h * along) - gradient(x - h * along)) / (2 * h)
        np.testing.assert_allclose(second(x), rise, rtol=1e-4, atol=1e-5)
        slope = (f(x + h * along) - f(x - h * along)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(gradient(x), along), slope, rtol=1e-4, atol=1e-5)
        if forward:
            moved = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (along,))[1])(x)
            np.testing.assert_allclose(moved, rise, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(jax.jvp(f, (x,), (along,))[1], slope, rtol=1e-4, atol=1e-5)
        else:
            with pytest.raises(TypeError, match="custom_vjp"):
                jax.jvp(f, (x,), (along,))


def test_a_gradient_that_is_not_that_of_its_value():
    """The decay of SR-STE is added to the gradient: it has derivatives, and no forward mode."""
    w, along, mask = jnp.asarray(V, jnp.float32), jnp.ones(6), jnp.asarray(V > 0)

    def gradient(w, decay):
        seen = lambda w: square(sj.masks.straight_through(w, mask, decay=decay))  # noqa: E731
        return jax.grad(seen)(w)

    # 3 w^2 where kept, decay w elsewhere.
    second, mixed = jax.grad(lambda w, d: jnp.vdot(gradient(w, d), along), (0, 1))(w, 0.1)
    np.testing.assert_allclose(gradient(w, 0.1), jnp.where(mask, 3 * w**2, 0.1 * w), rtol=1e-5)
    np.testing.assert_allclose(second, jnp.where(mask, 6 * w, 0.1), rtol=1e-5)
    np.testing.assert_allclose(mixed, jnp.sum(jnp.where(mask, 0, w)), rtol=1e-5)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: sj.masks.straight_through(w, mask, decay=0.1), (w,), (along,))


def test_attention_over_lists_has_a_first_derivative_and_no_second():
    with jax.enable_x64(True):
        x, along, h = (
            jnp.asarray(X),
            jnp.asarray(np.random.default_rng(1).normal(size=X.shape)),
            1e-5,
        )
        slope = (attended(x + h * along) - attended(x - h * along)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(jax.grad(attended)(x), along), slope, rtol=1e-4)
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
            jax.grad(lambda x: jnp.vdot(jax.grad(attended)(x), along))(x)
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.jvp(attended, (x,), (along,))


def test_every_custom_derivative_has_a_row():
    """`_native` passes on the derivatives of the XLA form, whose rows are above.

    Derivatives that are not those of the value are tested where their rules are: of JumpReLU in
    `tests/sae`, of attention by a polynomial in `tests/contrib/lora_limits`.
    """
    source = Path(sj.__file__).parent
    names = set()
    for path in source.rglob("*.py"):
        if path.name != "_native.py":
            found = re.findall(r"custom_(?:jvp|vjp)\b[^\n]*\ndef (\w+)", path.read_text())
            names |= set(found)
    rows = " ".join(RULES) + " _pulled _jump _step _attend _polynomial"
    assert [name for name in sorted(names) if name.lstrip("_") not in rows] == []


@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.01), optax.rmsprop(0.01), optax.adafactor(0.01)]
)
def test_second_order_passes_weights_whose_gradient_is_zero(optimizer):
    """A dead pixel: the root of Adam's second moment has no derivative there."""

    def loss(w, a):
        return jnp.sum((a * jnp.array([0.0, 1.0], w.dtype) * w - 1) ** 2)

    def value(a, w):
        updates, _ = optimizer.update(jax.grad(loss)(w, a), optimizer.init(w), w)
        return loss(optax.apply_updates(w, updates), a)

    with jax.enable_x64(True):
        w, a, e = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.7]), jnp.array([0.0, 1e-6])
        expected = (value(a + e, w) - value(a - e, w)) / 2e-6
        found, slope = search.bilevel_gradient(loss, loss, w, a, optimizer, optimizer.init(w))
        assert found == value(a, w)
        np.testing.assert_allclose(slope, [0, expected], rtol=1e-6, atol=1e-9)
