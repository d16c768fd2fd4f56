"""FLOPs against formulas and against what XLA counts."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import sparsejax as sj
from sparsejax.reporting import flops, training_flops


def compiled_flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_linear_per_token():
    model = nnx.Linear(32, 16, use_bias=False, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 7, 32))
    found = flops(model, x)
    assert found.leaves["kernel"].positions == 28
    assert found.dense == 2 * 32 * 16 * 28 == compiled_flops(lambda w: x @ w, model.kernel[...])
    assert flops(model).dense == 2 * 32 * 16
    assert flops(model, positions={"kernel": 5}).dense == 2 * 32 * 16 * 5
    assert flops(model, x, positions={"kernel": 5}).dense == 2 * 32 * 16 * 5


@pytest.mark.parametrize("groups, strides, dilation", [(1, 1, 1), (2, 2, 1), (4, 1, 2)])
def test_convolutions_as_xla_counts_them(groups, strides, dilation):
    def apply(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (strides, strides),
            "VALID",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    params = {"kernel": jax.ShapeDtypeStruct((3, 3, 8 // groups, 12), jnp.float32)}
    x = jax.ShapeDtypeStruct((2, 12, 10, 8), jnp.float32)
    height, width = jax.eval_shape(apply, params, x).shape[1:3]
    expected = 2 * 3 * 3 * (8 // groups) * 12 * height * width * 2
    assert flops(params, x, apply=apply).dense == expected == compiled_flops(apply, params, x)


def test_an_abstract_model_suffices():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(8, 12, (3, 3), feature_group_count=2, rngs=rngs)
            self.norm = nnx.BatchNorm(12, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            # 2 x 2 kernels at stride 2 do not overlap: an output has one input position.
            self.up = nnx.ConvTranspose(12, 6, (2, 2), strides=(2, 2), rngs=rngs)

        def __call__(self, x):
            return self.up(self.drop(self.norm(self.conv(x))))

    model = nnx.eval_shape(lambda: Network(nnx.Rngs(0)))
    found = flops(model, jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32))
    assert found.leaves["conv/kernel"].dense == 2 * 2 * 16 * 16 * 9 * 4 * 12
    assert found.leaves["up/kernel"].dense == 2 * 2 * 32 * 32 * 12 * 6
    assert found.activations == 0 and list(found.leaves) == ["conv/kernel", "up/kernel"]


def test_attention_lists_activations_apart():
    model = nnx.eval_shape(lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)))
    found = flops(model, jnp.ones((3, 5, 8)))
    assert {n: v.positions for n, v in found.leaves.items()} == {
        f"{part}/kernel": 15 for part in ("query", "key", "value", "out")
    }
    assert found.dense == 4 * 2 * 8 * 8 * 15
    assert found.activations == 2 * (2 * 3 * 5 * 5 * 8)


def test_sparse_flops_are_those_of_kept_weights():
    model = nnx.Linear(32, 16, rngs=nnx.Rngs(0))
    plan = sj.plan(model, sj.NM(1, 4))
    masks = plan.masks(sj.masks.magnitude(nnx.as_pure(nnx.state(model, nnx.Param))))
    found = flops(model, jnp.ones((3, 32)), masks=masks)
    assert found.sparse * 4 == found.dense


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(50, 8, rngs=rngs)
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.unused = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens):
        x = self.dense(nnx.relu(self.dense(self.embed(tokens))))
        return self.embed.attend(x)


def test_shared_weights_count_once_in_size_and_twice_in_flops():
    found = flops(nnx.eval_shape(lambda: Shared(nnx.Rngs(0))), jnp.zeros((2, 3), int))
    assert found.leaves["dense/kernel"].positions == 12
    assert found.leaves["embed/embedding"].positions == 6
    assert found.leaves["unused/kernel"].dense == 0
    assert list(found.leaves)[:2] == ["dense/kernel", "embed/embedding"]
    assert found.activations == 0


def test_scanned_layers():
    layers = jnp.ones((5, 8, 8))

    def apply(params, x):
        def layer(x, w):
            return jnp.tanh(x @ w["kernel"] + w["bias"]), None

        return jax.lax.scan(jax.remat(layer), x, params)[0]

    params = {"kernel": layers, "bias": jnp.ones((5, 8))}
    found = flops(params, jnp.ones((3, 8)), apply=apply)
    assert found.dense == 5 * 2 * 8 * 8 * 3 and found.leaves["kernel"].positions == 3


@jax.custom_vjp
def double(x):
    return 2 * x


double.defvjp(lambda x: (double(x), None), lambda _, g: (2 * g,))


def test_through_calls_branches_loops_and_rewritten_weights():
    params = {name: {"kernel": jnp.ones((8, 8))} for name in "abcd"}
    lora = {"down": jnp.ones((8, 2)), "up": jnp.ones((2, 8))}

    def apply(p, x):
        w = jnp.where(p["a"]["kernel"] > 0, p["a"]["kernel"].astype(jnp.bfloat16), 0)
        x = jax.jit(lambda x: double(x @ w.T))(x)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ p["b"]["kernel"], lambda x: x, x)
        x = jax.lax.fori_loop(0, 4, lambda _, x: x @ p["c"]["kernel"], x)
        x = jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ p["c"]["kernel"], x)
        return x @ (p["d"]["kernel"] + p["lora"]["down"] @ p["lora"]["up"])

    found = flops({**params, "lora": lora}, jnp.ones((3, 8)), apply=apply)
    one = 2 * 8 * 8 * 3
    assert [found.leaves[f"{n}/kernel"].dense for n in "abcd"] == [one, one, 5 * one, one]
    assert found.activations == 2 * 8 * 2 * 8  # merging the adapter, a product of weights


def test_linen_equinox_and_views():
    x = jnp.ones((3, 8))
    model = linen.Dense(4)
    variables = model.init(jax.random.key(0), x)["params"]
    apply = lambda p, x: model.apply({"params": p}, x)  # noqa: E731
    assert flops(variables, x, apply=apply).leaves["kernel"].positions == 3

    @jax.tree_util.register_dataclass
    @dataclass
    class Dense:  # as Equinox: rows are outputs, a function is a leaf
        weight: Any
        act: Any

        def __call__(self, x):
            return self.act(self.weight @ x)

    assert flops(Dense(jnp.ones((4, 8)), jax.nn.relu), jnp.ones(8)).dense == 2 * 4 * 8
    with pytest.raises(TypeError, match="apply=lambda params, x"):
        flops(variables, x)


def test_shapes_suffice_and_may_be_huge():
    params = {"kernel": jax.ShapeDtypeStruct((2**17, 2**16), jnp.bfloat16)}
    x = jax.ShapeDtypeStruct((2**12, 2**17), jnp.bfloat16)
    found = flops(params, x, apply=lambda p, x: x @ p["kernel"])
    assert found.dense == 2 * 2**45 and found.leaves["kernel"].positions == 2**12


def test_vmapped_experts_and_ragged_products():
    experts = {"kernel": jnp.ones((4, 8, 6))}
    x = jnp.ones((4, 5, 8))
    batched = flops(experts, x, apply=lambda p, x: jax.vmap(jnp.matmul)(x, p["kernel"]))
    assert batched.dense == 2 * 4 * 5 * 8 * 6 and batched.leaves["kernel"].positions == 5
    sizes = jnp.array([3, 1, 0, 2])
    ragged = flops(
        experts, jnp.ones((6, 8)), apply=lambda p, x: jax.lax.ragged_dot(x, p["kernel"], sizes)
    )
    assert ragged.dense == 2 * 6 * 8 * 6 and ragged.leaves["kernel"].positions == 1.5


def test_positions_and_masks_must_belong():
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="positions= names dense/kernel, but the leaves are"):
        flops(params, positions={"dense/kernel": 2})
    with pytest.raises(ValueError, match=r"kernel has shape \(4, 4\) and its mask shape \(4, 2\)"):
        flops(params, masks={"kernel": jnp.ones((4, 2), bool)})


def test_the_number_of_rigl():
    dense = training_flops("dense", 1.0, 0.1)
    assert round(training_flops("rigl", 1.0, 0.1, every=100) / dense, 4) == 0.1030
    assert training_flops("static", 1.0, 0.1) / dense == pytest.approx(0.1)
    assert training_flops("set", 10, 1, steps=7) == 21
    assert training_flops("dense_gradient", 10, 1) == 12
    # A step that updates the mask costs 2 f_S + f_D, the others 3 f_S.
    steps = [2 * 1 + 10 if i % 5 == 4 else 3 for i in range(100)]
    assert training_flops("rigl", 10, 1, every=4, steps=100) == sum(steps)


def test_dense_to_sparse_follows_the_schedule():
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, transition_begin=10, transition_steps=50)
    found = training_flops("dense_to_sparse", 100.0, 10.0, steps=80, schedule=ramp)
    expected = sum(3 * (100 - 90 * float(ramp(i))) for i in range(80))
    assert found == pytest.approx(expected, rel=1e-9)
    assert training_flops("dense_to_sparse", 8, 8, steps=5, schedule=ramp) == 120


def test_rounds_and_scores_are_added():
    assert training_flops("static", 10, [10, 5, 2], steps=4) == 3 * 4 * 17
    assert training_flops("static", 10, 1, steps=4, scoring=2) == 12 + 60
    with pytest.raises(ValueError, match="needs every="):
        training_flops("rigl", 1, 1)
    with pytest.raises(ValueError, match="needs schedule="):
        training_flops("dense_to_sparse", 1, 1)
    with pytest.raises(ValueError, match='"dense_to_sparse"'):
        training_flops.__wrapped__("lth", 1, 1)
