"""A penalty, pattern, selector, format and transformation that a user defines go everywhere.

Nothing here is known to the package; each class only implements the methods of its base.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import prox, solve


@dataclass(frozen=True)
class Corner(sj.patterns.Pattern):
    """Keeps the first rows and columns of the matrix; it has a field called shape."""

    shape: tuple[int, int]
    sparsity: float = 0.75
    free = False

    @property
    def label(self):
        return f"corner {self.shape[0]}x{self.shape[1]}"

    def units(self, layout):
        return layout.matrix_shape[-2] * layout.matrix_shape[-1]

    def zeros(self, layout):
        return self.units(layout) - self.shape[0] * self.shape[1]

    def select(self, scores, layout, zeros, fraction=1.0):
        rows, columns = jnp.indices(layout.matrix_shape[-2:])
        mask = (rows < self.shape[0]) & (columns < self.shape[1])
        return layout.from_matrix(mask | (jnp.asarray(fraction) < 1))

    def compressed(self, matrix, mask):
        return CornerArray(matrix[: self.shape[0], : self.shape[1]], matrix.shape)


@sj.register
@dataclass(frozen=True, eq=False, repr=False)
class CornerArray(sj.formats.SparseArray):
    """A matrix that is zero outside of its first rows and columns."""

    values: Any
    full: tuple[int, int] = field(metadata={"static": True})

    @property
    def shape(self):
        return tuple(self.full)

    def todense(self):
        rows, columns = self.values.shape
        return jnp.zeros(self.full, self.dtype).at[:rows, :columns].set(self.values)

    def take(self, dense):
        return dense[: self.values.shape[0], : self.values.shape[1]]


@dataclass(frozen=True)
class Alternate(sj.select.Selector):
    """Every second unit."""

    def __call__(self, scores):
        return jnp.broadcast_to(jnp.arange(scores.shape[-1]) % 2 == 0, scores.shape)


@sj.register
@dataclass(frozen=True)
class Quartic(prox.Penalty):
    """`strength |w|^2` with another name: a penalty whose prox is a division."""

    strength: float

    def value(self, x):
        return self.strength * jnp.sum(x**2)

    def prox(self, v, step=1.0):
        return jax.tree.map(lambda v: v / (1 + 2 * step * self.strength), v)


class FreezeState(NamedTuple):
    masks: sj.masks.Masks


def keep_corner(plan):
    """A transformation with masks of its own: they are made once, from the plan."""

    def init(params):
        return FreezeState(sj.masks.Masks(plan.masks(sj.masks.magnitude(params))))

    def update(updates, state, params=None):
        def one(u, p, m):
            return u if m is None else jnp.where(m, u, -p)

        gaps = lambda x: x is None  # noqa: E731
        masks = state.masks.tree
        return jax.tree.map(one, updates, params, masks, is_leaf=gaps), state

    return optax.GradientTransformation(init, update)


PARAMS = {
    "layer": {
        "kernel": jax.random.normal(jax.random.key(0), (8, 6)),
        "bias": jnp.zeros(6),
    }
}
PATTERN = Corner((4, 3))
PLAN = sj.plan(PARAMS, PATTERN)


def test_plan_prune_and_get_masks():
    assert PLAN["layer/kernel"].zeros == 48 - 12 and "corner 4x3" in str(PLAN)
    tx = optax.chain(optax.sgd(0.1), sj.optim.prune(PLAN))
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    mask = sj.get_masks(state)["layer"]["kernel"]
    assert int(mask.sum()) == 12 and bool(mask[:4, :3].all())
    np.testing.assert_array_equal(new["layer"]["kernel"] != 0, mask)


def test_report_names_the_pattern():
    masks = PLAN.masks(sj.masks.magnitude(PARAMS))
    found = sj.report(sj.masks.apply_masks(PARAMS, masks), masks, PLAN)
    assert found["layer/kernel"].claimed == "corner 4x3" and found["layer/kernel"].kept == 12


@pytest.mark.parametrize("as_module", [False, True])
def test_compress_and_matmul(as_module):
    if as_module:
        model = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        plan = sj.plan(model, PATTERN)
        fast = sj.compress(model, plan)
        w, dense = fast.kernel[...], model.kernel[...]
        x = jax.random.normal(jax.random.key(1), (3, 8))
        want = x @ jnp.where(jnp.zeros((8, 6), bool).at[:4, :3].set(True), dense, 0)
        np.testing.assert_allclose(nnx.jit(fast)(x), want + model.bias[...], rtol=1e-5)
    else:
        w = sj.compress(PARAMS, PLAN)["layer"]["kernel"]
    assert isinstance(w, CornerArray) and w.shape == (8, 6) and w.density == 0.25
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    np.testing.assert_allclose(sj.matmul(x, w), x @ w.todense(), rtol=1e-5, atol=1e-6)
    assert sj.kernels.explain(x, w) == "dense: decompressed"
    grads = jax.grad(lambda w: sj.matmul(x, w).sum())(w)
    dense = jax.grad(lambda w: (x @ w).sum())(w.todense())
    np.testing.assert_allclose(grads.values, dense[:4, :3], rtol=1e-5)


def test_a_kernel_of_ones_own():
    def product(x, w, bias, how):
        return x[:, :4] @ w.values @ jnp.eye(3, 6)

    sj.kernels.implement("matmul", CornerArray, "corner")(
        lambda: sj.kernels.Implementation(product)
    )
    w = CornerArray(jnp.ones((4, 3)), (8, 6))
    assert sj.kernels.explain(jnp.ones((2, 8)), w).startswith("corner")
    assert (
        sj.matmul(jnp.ones((2, 8)), w, implementation="corner").tolist()
        == [[4.0, 4.0, 4.0, 0.0, 0.0, 0.0]] * 2
    )


def test_save_and_load(tmp_path):
    small = sj.compress(PARAMS, PLAN)
    path = tmp_path / "corner.safetensors"
    sj.save(path, small)
    back = sj.load(path)
    assert jax.tree.structure(back) == jax.tree.structure(small)
    jax.tree.map(np.testing.assert_array_equal, back, small)


def test_masks_of_a_transformation_of_ones_own():
    optimizer = nnx.Optimizer(
        model := nnx.Linear(8, 6, rngs=nnx.Rngs(0)),
        optax.chain(optax.adam(0.1), keep_corner(sj.plan(model, PATTERN))),
        wrt=nnx.Param,
    )
    grads = nnx.grad(lambda m: m(jnp.ones((1, 8))).sum())(model)
    optimizer.update(model, grads)
    masks = sj.get_masks(optimizer.opt_state)
    assert int((model.kernel[...] != 0).sum()) == int(jax.tree.leaves(masks)[0].sum()) == 12
    found = sj.report(model, masks)
    assert found["kernel"].kept == 12


def test_selector():
    scores = jax.random.normal(jax.random.key(0), (4, 6))
    chosen = jax.jit(lambda s: Alternate().set(s, capacity=3))(scores)
    np.testing.assert_array_equal(chosen.index, [[0, 2, 4]] * 4)
    w = jax.random.normal(jax.random.key(1), (6, 5))
    x = jax.random.normal(jax.random.key(2), (4, 5))
    got = sj.kernels.active_ffn(x, w, w, chosen)
    want = jnp.where(Alternate()(scores), jax.nn.relu(x @ w.T), 0) @ w
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_penalty():
    v = jnp.array([3.0, -1.0])
    found = solve.proximal_gradient(lambda w: jnp.sum((w - v) ** 2) / 2, Quartic(0.5), v)
    np.testing.assert_allclose(found.value, v / 2, rtol=1e-5)
    tx = optax.chain(optax.sgd(0.5), sj.optim.proximal(Quartic(1.0), 0.5))
    params = {"kernel": jnp.stack([v, 2 * v])}
    updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], params["kernel"] / 2, rtol=1e-6)
    assert float(jax.jit(lambda p, x: p.value(x))(Quartic(2.0), v)) == 20.0
    combined = prox.scale(Quartic(1.0), 0.5)
    np.testing.assert_allclose(combined.prox(v), v / 2, rtol=1e-6)
