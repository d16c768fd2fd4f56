"""Penalties with exact proximal operators: the kind of sparsity."""

from ._combine import (
    conjugate,
    masked,
    moreau_envelope,
    nonneg,
    scale,
    shift,
)
from ._concave import capped_l1, cel0, firm, mcp, scad
from ._counts import group_hard_k, hard_k, nm
from ._elementwise import (
    berhu,
    box,
    elastic_net,
    huber,
    l0,
    l1,
    ridge,
)
from ._envelope import exclusive_lasso, fenchel_young_gap, gsef, sef, wgsef
from ._group import group_l0, group_lasso, group_lp, group_mcp, group_scad, l2, on_norm
from ._k_support import k_support_norm
from ._labels import group_labels
from ._matrix import max_rank, nuclear, on_singular_values, rank
from ._ordered import l1_inf, l1_minus_l2, linf, slope
from ._penalty import Penalty
from ._power import l_half, l_two_thirds, lp
from ._sets import (
    affine,
    half_space,
    hyperplane,
    l1_ball,
    l2_ball,
    simplex,
)
from ._smooth_concave import (
    concave,
    exponential,
    geman,
    log_sum,
    transformed_l1,
)
from ._sums import nested, separable_sum, sparse_group_lasso
from ._threshold import firm_threshold, hard_threshold, soft_threshold
from ._total_variation import fused_lasso, total_variation

__all__ = [
    "Penalty",
    "affine",
    "berhu",
    "box",
    "capped_l1",
    "cel0",
    "concave",
    "conjugate",
    "elastic_net",
    "exclusive_lasso",
    "exponential",
    "fenchel_young_gap",
    "firm",
    "firm_threshold",
    "fused_lasso",
    "geman",
    "group_hard_k",
    "group_l0",
    "group_labels",
    "group_lasso",
    "group_lp",
    "group_mcp",
    "group_scad",
    "gsef",
    "half_space",
    "hard_k",
    "hard_threshold",
    "huber",
    "hyperplane",
    "k_support_norm",
    "l0",
    "l1",
    "l1_ball",
    "l1_inf",
    "l1_minus_l2",
    "l2",
    "l2_ball",
    "l_half",
    "l_two_thirds",
    "linf",
    "log_sum",
    "lp",
    "masked",
    "max_rank",
    "mcp",
    "moreau_envelope",
    "nested",
    "nm",
    "nonneg",
    "nuclear",
    "on_norm",
    "on_singular_values",
    "rank",
    "ridge",
    "scad",
    "scale",
    "sef",
    "separable_sum",
    "shift",
    "simplex",
    "slope",
    "soft_threshold",
    "sparse_group_lasso",
    "total_variation",
    "transformed_l1",
    "wgsef",
]
