"""Pallas kernels without their hardware: interpreted, lowered, and compiled ahead of time."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu, tpu as pltpu

import sparsejax as sj
from sparsejax.formats import BlockArray
from sparsejax.kernels import _mosaic
from sparsejax.kernels._finish import How
from sparsejax.kernels._table import get
from sparsejax.kernels.matmul._cases import SMALL, TILED, Case
from tests.kernels.test_matmul import assert_close, in_double

NAMES = ("pallas_tpu", "pallas_gpu")
DTYPES = {"pallas_tpu": jnp.float32, "pallas_gpu": jnp.bfloat16}
PLATFORM = {"pallas_tpu": ("tpu", "tpu_custom_call"), "pallas_gpu": ("cuda", "mosaic_gpu")}


def kernels_of(name, w):
    return get("matmul", type(w), name, name.removeprefix("pallas_"))


def can(name, case):
    """Whether the implementation takes the case."""
    x, w = case.make(DTYPES[name])
    try:
        kernels_of(name, w).explain(x.shape[0], w)
    except NotImplementedError:
        return False
    return True


# Blocks that are no multiple of a tile of a TPU.
NOT_ON_TPU = {"blocks 64x128", "blocks 16x128", "blocks 64x32", "blocks 16"}
PAIRS = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in NAMES
    for case in TILED
    if not (name == "pallas_tpu" and case.name in NOT_ON_TPU)
]


@contextlib.contextmanager
def interpreted(name):
    if name == "pallas_tpu":
        mode = pltpu.force_tpu_interpret_mode()
    elif hasattr(plgpu, "InterpretGPUParams"):
        mode = plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())
    else:
        pytest.skip("this JAX has no interpreter for these GPU kernels")
    with mode, sj.kernels.lowering_for(name.removeprefix("pallas_")):
        yield


def lowering(name):
    return _mosaic.hopper() if name == "pallas_gpu" else sj.kernels.lowering_for("tpu")


@pytest.mark.slow
def test_the_other_cases_are_refused():
    taken = {(name, case.name) for name in NAMES for case in TILED if can(name, case)}
    assert taken == {(row.values[0], row.values[1].name) for row in PAIRS}


@pytest.mark.parametrize("name, case", PAIRS)
def test_product_bias_and_activation(name, case):
    x, w = case.make(DTYPES[name])
    bias = jnp.linspace(-3, 3, w.shape[1])
    with interpreted(name):
        y = sj.matmul(x, w, implementation=name, bias=bias, activation=jax.nn.relu)
    assert y.dtype == x.dtype
    want = np.maximum(np.asarray(x, np.float64) @ in_double(w) + np.asarray(bias, np.float64), 0)
    assert_close(y, want, 1e-5 if y.dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.sigmoid, jnp.tanh])
def test_activations_inside_are_those_outside(activation):
    x, w = TILED[0].make()
    with interpreted("pallas_tpu"):
        inside = sj.matmul(x, w, implementation="pallas_tpu", activation=activation)
        outside = sj.matmul(x, w, implementation="pallas_tpu", activation=lambda y: activation(y))
    np.testing.assert_allclose(inside, outside, rtol=2e-6, atol=2e-7)


GRADIENTS = ["blocks 128, holes", "blocks 128, more slots", "blocks 64x32", "blocks 16x128"]


@pytest.mark.parametrize(
    "name, case", [p for p in PAIRS if p.values[1].name in (*GRADIENTS, "2:4 tiled")]
)
def test_gradients(name, case):
    x, w = case.make(DTYPES[name])
    bias = jnp.linspace(-1, 1, w.shape[1])

    def gradients(implementation):
        def loss(x, w, bias):
            how = {"implementation": implementation, "bias": bias, "activation": jax.nn.silu}
            return jnp.sin(sj.matmul(x, w, out_dtype=jnp.float32, **how)).sum()

        return jax.grad(loss, argnums=(0, 1, 2), allow_int=True)(x, w, bias)

    with interpreted(name):
        dx, dw, db = gradients(name)
    want_x, want_w, want_b = gradients("dense")
    assert dx.dtype == x.dtype and dw.dtype == w.dtype and db.dtype == bias.dtype
    tol = 1e-5 if x.dtype == jnp.float32 else 1e-2
    assert_close(dx, want_x, tol)
    assert_close(dw.values, want_w.values, tol)
    assert_close(db, want_b, tol)
    if isinstance(w, BlockArray):
        assert (dw.values[~np.asarray(w.used)] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_empty_columns_are_exactly_zero(name):
    x, w = next(c for c in TILED if c.name == "blocks 128, holes").make(DTYPES[name])
    x = x.at[..., :128].set(jnp.nan)  # the block row that no block is in
    with interpreted(name):
        y = sj.matmul(x, w, implementation=name)
    assert not w.count[0] and (y[..., :128] == 0).all() and jnp.isfinite(y).all()


def test_vmap_over_x_and_over_stacked_weights():
    name = "pallas_gpu"
    x, w = next(c for c in TILED if c.name == "blocks 64x128").make(DTYPES[name])
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), w)
    xs = jnp.stack([x, -x])
    want = np.asarray(xs, np.float64) @ in_double(w)
    multiply = partial(sj.matmul, implementation=name)
    with interpreted(name):
        assert_close(jax.vmap(multiply, in_axes=(0, None))(xs, w), want, 1e-2)
        assert_close(multiply(xs, stack), want, 1e-2)


def lower_for_tpu(multiply, *arguments):
    with sj.kernels.lowering_for("tpu"):
        lowered = multiply.trace(*arguments).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


def test_vmap_lowers_for_tpu():
    # The interpreter does not take a vmapped kernel that says which axes are parallel.
    x, w = TILED[0].make()
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), w)
    multiply = jax.jit(partial(sj.matmul, implementation="pallas_tpu"))
    lower_for_tpu(multiply, jnp.stack([x, x]), stack)
    lower_for_tpu(multiply, jnp.stack([x, x]), w)
    lower_for_tpu(jax.jit(jax.vmap(multiply, in_axes=(0, None))), jnp.stack([x, x]), w)


@pytest.mark.parametrize("name, case", PAIRS)
def test_lowering(name, case):
    x, w = case.make(DTYPES[name])
    x = x.reshape(-1, x.shape[-1])
    platform, call = PLATFORM[name]
    dy = jnp.zeros((x.shape[0], w.shape[1]), x.dtype)
    how = How(activation=jax.nn.silu, dtype=x.dtype)
    module = kernels_of(name, w)
    products = {"product": lambda x, dy, w: module.product(x, w, None, how)}
    if isinstance(w, BlockArray):
        products["transposed"] = lambda x, dy, w: module.transposed(dy, w, how)
        if w.block[0] >= 64:
            products["sampled"] = lambda x, dy, w: module.sampled(x, dy, w, how)
    for product in products.values():
        with lowering(name):
            lowered = jax.jit(product).trace(x, dy, w).lower(lowering_platforms=(platform,))
        assert call in lowered.as_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_kernel_cannot_do_is_left_to_xla(name):
    for case in (c for c in SMALL if c.name in ("2:4", "9:18, index planes", "uneven", "no slots")):
        assert not can(name, case)
        x, w = case.make(DTYPES[name])
        with pytest.raises(NotImplementedError, match=name):
            sj.matmul(x, w, implementation=name)
        y = sj.matmul(x, w, implementation=(name, "xla"))
        assert_close(y, np.asarray(x, np.float64) @ in_double(w), 1e-2)
        assert sj.kernels.explain(x, w, (name, "xla")).startswith("xla")


@pytest.mark.parametrize("name, platform", [("pallas_tpu", "tpu"), ("pallas_gpu", "gpu")])
def test_dense_is_chosen_where_kernels_lose(name, platform):
    with sj.kernels.lowering_for(platform):
        check_the_choice(name)


def check_the_choice(name):
    by_name = {case.name: case.make(DTYPES[name]) for case in TILED}
    few, w = by_name["2:4 tiled"]
    many = jax.ShapeDtypeStruct((4096, few.shape[1]), few.dtype)
    if name == "pallas_tpu":
        assert sj.kernels.explain(few, w).startswith(f"{name}: 2:4 planes")
        assert sj.kernels.explain(many, w) == "dense: decompressed"
    else:  # as measured: few rows lose, and many need tensor cores that this machine lacks
        assert sj.kernels.explain(few, w) == "dense: decompressed"
        assert sj.kernels.explain(many, w).startswith("dense: decompressed; not sparse_cores")
    assert sj.kernels.explain(many, w, name).startswith(name)
    x, half = Case("", (5,), 512, 128, block=(128, 128), density=0.5).make(DTYPES[name])
    assert sj.kernels.explain(x, half).startswith(f"{name}: blocks of 128x128")
    x, full = by_name["blocks 128, two tiles of rows"]
    assert sj.kernels.explain(x, full) == "dense: decompressed"


@pytest.mark.parametrize("name", NAMES)
def test_the_reason_is_said(name):
    x, w = SMALL[0].make(DTYPES[name])
    with sj.kernels.lowering_for(name.removeprefix("pallas_")):
        with pytest.raises(NotImplementedError, match="4 groups and 12 columns"):
            sj.matmul(x, w, implementation=name)
        if name == "pallas_gpu":
            with pytest.raises(NotImplementedError, match="float32"):
                sj.matmul(*TILED[0].make(), implementation=name)


@pytest.mark.aot
@pytest.mark.parametrize("case", [p.values[1] for p in PAIRS if p.values[0] == "pallas_gpu"])
def test_compiles_for_the_h200(case):
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs the CUDA plugin, no GPU")
    x, w = case.make(jnp.bfloat16)
    x = x.reshape(-1, x.shape[-1])
    how = How(activation=jax.nn.silu, dtype=x.dtype)
    assert _mosaic.compile_for_hopper(
        lambda x, w: kernels_of("pallas_gpu", w).product(x, w, None, how), x, w
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_hardware_that_is_not_there_is_told_or_passed_over(name):
    x, w = TILED[0].make(jnp.bfloat16)
    with pytest.raises(
        NotImplementedError, match=f"{name}: runs on .pu, not on cpu; implementation=None chooses"
    ):
        sj.matmul(x, w, implementation=name)
    assert_close(sj.matmul(x, w, implementation=(name, "xla")), sj.matmul(x, w), 1e-6)
    units, s = jnp.ones((64, 128), jnp.bfloat16), sj.select.TopK(16).set(jnp.arange(64.0))
    units = units.reshape(4, 16, 128) if name == "pallas_gpu" else units
    s = sj.select.TopK(2).set(jnp.arange(4.0)) if name == "pallas_gpu" else s
    x = jnp.ones((2, 128), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="not on cpu"):
        sj.kernels.active_ffn(x, units, units, s, implementation=name)
    got = sj.kernels.active_ffn(x, units, units, s, implementation=(name, "xla"))
    assert_close(got, sj.kernels.active_ffn(x, units, units, s), 1e-6)
