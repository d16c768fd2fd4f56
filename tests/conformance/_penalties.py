"""Every public penalty once: a new factory belongs in this table, a test says so."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparsejax import prox

LABELS = np.array([0, 1, 0, 2, 1, 2, 0, 1, 3, 3, 3, 2])
TREE_LABELS = {
    "bias": np.array([0, 1, 2]),
    "kernel": np.broadcast_to(np.arange(3), (4, 3)).copy(),
    "scale": None,
}


@dataclass(frozen=True)
class Case:
    """A penalty, the shape it takes, and what is known of it."""

    name: str
    penalty: prox.Penalty
    shape: Any = (12,)
    convex: bool = False
    # A projection: the step says nothing.
    indicator: bool = False
    # The prox of rescaled phases is the rescaled prox.
    complex: bool = True
    # f(0) = 0 is the minimum, so that the prox of 0 is 0.
    centred: bool = True


def convex(name, penalty, shape=(12,), **kwargs):
    return Case(name, penalty, shape, convex=True, **kwargs)


def _concave():
    return prox.concave(jnp.log1p, lambda b: 1 / (1 + b), 0.7)


TREE = {"bias": (3,), "kernel": (4, 3), "scale": (3,)}
NORMAL = np.linspace(-1.0, 1.0, 12).astype(np.float32)
MATRIX = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)

CASES = [
    convex("l1", prox.l1(0.7)),
    convex("l1", prox.l1(0.7 * np.linspace(0, 2, 12).astype(np.float32))),
    convex("ridge", prox.ridge(0.7)),
    convex("elastic_net", prox.elastic_net(0.7, 0.3)),
    convex("berhu", prox.berhu(0.7, 0.5)),
    convex("huber", prox.huber(0.7, 0.5)),
    convex("box", prox.box(-0.5, 1.0), indicator=True, complex=False),
    convex("box", prox.box(-0.5, 0.5), indicator=True, complex=False),
    Case("l0", prox.l0(0.7)),
    Case("l_half", prox.l_half(0.7)),
    Case("l_two_thirds", prox.l_two_thirds(0.7)),
    Case("lp", prox.lp(0.7, 0.4)),
    convex("lp", prox.lp(0.7, 1.4)),
    Case("mcp", prox.mcp(0.7, 1.5)),
    Case("mcp", prox.mcp(0.7, 0.5)),
    Case("firm", prox.firm(0.7, 1.4)),
    Case("cel0", prox.cel0(0.7, 0.8)),
    Case("scad", prox.scad(0.7, 3.7)),
    Case("scad", prox.scad(0.7, 2.1)),
    Case("capped_l1", prox.capped_l1(0.7, 0.9)),
    Case("log_sum", prox.log_sum(0.7, 0.9)),
    Case("exponential", prox.exponential(0.7, 0.9)),
    Case("geman", prox.geman(0.7, 0.9)),
    Case("transformed_l1", prox.transformed_l1(0.7, 0.9)),
    Case("concave", _concave()),
    convex("l2", prox.l2(0.7)),
    convex("group_lasso", prox.group_lasso(0.7, axis=0), (4, 3)),
    convex("group_lasso", prox.group_lasso(0.7, groups=LABELS)),
    convex("group_lasso", prox.group_lasso(0.7, groups=TREE_LABELS), TREE),
    Case("group_l0", prox.group_l0(0.7, axis=0), (4, 3)),
    Case("group_mcp", prox.group_mcp(0.7, 1.5, groups=LABELS)),
    Case("group_scad", prox.group_scad(0.7, 3.7, axis=(0, 1)), (2, 2, 3)),
    Case("group_lp", prox.group_lp(0.7, 0.5, groups=TREE_LABELS), TREE),
    Case("on_norm", prox.on_norm(prox.cel0(0.7), axis=0, weights=np.array([0, 1.0, 2])), (4, 3)),
    convex("sparse_group_lasso", prox.sparse_group_lasso(0.2, 0.7, axis=0), (4, 3)),
    convex("sparse_group_lasso", prox.sparse_group_lasso(0.2, 0.7, groups=TREE_LABELS), TREE),
    convex("nested", prox.nested(prox.l1(0.2), prox.l2(0.7))),
    convex("linf", prox.linf(0.7)),
    convex("l1_inf", prox.l1_inf(0.7, axis=0), (4, 3)),
    convex("l1_inf", prox.l1_inf(0.7, groups=LABELS, weights=np.array([0, 1.0, 2, 3]))),
    convex("exclusive_lasso", prox.exclusive_lasso(0.7, axis=0), (4, 3)),
    convex("exclusive_lasso", prox.exclusive_lasso(0.7, groups=TREE_LABELS), TREE),
    convex("sef", prox.sef(3, 0.7)),
    convex("gsef", prox.gsef(2, 0.7, axis=0), (4, 3)),
    convex("wgsef", prox.wgsef(2, 0.7, groups=LABELS, weights=np.array([1.0, 2, 0.5, 1]))),
    convex("wgsef", prox.wgsef(2, 0.7, groups=TREE_LABELS), TREE),
    convex("k_support_norm", prox.k_support_norm(0.7, 3)),
    convex("slope", prox.slope(np.linspace(1.0, 0.1, 12).astype(np.float32))),
    Case("l1_minus_l2", prox.l1_minus_l2(0.7, 0.8)),
    convex("total_variation", prox.total_variation(0.7), complex=False),
    convex("fused_lasso", prox.fused_lasso(0.7, 0.2), complex=False),
    convex("l1_ball", prox.l1_ball(2.0), indicator=True),
    convex("simplex", prox.simplex(2.0), indicator=True, complex=False, centred=False),
    convex("l2_ball", prox.l2_ball(2.0), indicator=True),
    convex("half_space", prox.half_space(NORMAL, -20.0), indicator=True, complex=False,
           centred=False),
    convex("hyperplane", prox.hyperplane(NORMAL, 0.3), indicator=True, complex=False,
           centred=False),
    convex("affine", prox.affine(MATRIX, np.ones(3, np.float32)), indicator=True, complex=False,
           centred=False),
    Case("hard_k", prox.hard_k(3), indicator=True),
    Case("nm", prox.nm(2, 4), (12, 2), indicator=True),
    Case("group_hard_k", prox.group_hard_k(2, groups=LABELS), indicator=True),
    convex("nuclear", prox.nuclear(0.7), (4, 3)),
    Case("rank", prox.rank(0.7), (3, 4)),
    Case("max_rank", prox.max_rank(2), (4, 3), indicator=True),
    Case("on_singular_values", prox.on_singular_values(prox.mcp(0.7, 2.0)), (4, 4)),
    convex("scale", prox.scale(prox.l1(0.7), 2.0)),
    convex("shift", prox.shift(prox.l1(0.7), np.float32(0.4)), complex=False, centred=False),
    convex("conjugate", prox.conjugate(prox.l1(0.7))),
    convex("nonneg", prox.nonneg(prox.group_lasso(0.7, axis=0)), (4, 3), complex=False),
    convex("nonneg", prox.nonneg(prox.l1(0.7)), complex=False),
    convex("masked", prox.masked(prox.l1(0.7), np.arange(12) % 3 > 0)),
    convex("moreau_envelope", prox.moreau_envelope(prox.l1(0.7), 0.5)),
    Case("moreau_envelope", prox.moreau_envelope(prox.mcp(0.7, 2.0), 0.5)),
    convex(
        "separable_sum",
        prox.separable_sum({"bias": prox.ridge(0.2), "kernel": prox.l1(0.7), "scale": None}),
        TREE,
    ),
]  # fmt: skip

IDS = [f"{case.name}-{index}" for index, case in enumerate(CASES)]


def draw(shape, rng, dtype=np.float32, scale=1.0):
    """Normal numbers in the shape of a case."""
    if isinstance(shape, dict):
        return {name: draw(sub, rng, dtype, scale) for name, sub in shape.items()}
    return jnp.asarray(rng.normal(size=shape) * scale, dtype)
