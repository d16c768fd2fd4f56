"""Which kind of sparsity: penalties with their exact proximal operators."""

from ._combine import (
    Conjugate as Conjugate,
)
from ._combine import (
    Masked as Masked,
)
from ._combine import (
    MoreauEnvelope as MoreauEnvelope,
)
from ._combine import (
    NonNegative as NonNegative,
)
from ._combine import (
    Scaled as Scaled,
)
from ._combine import (
    Shifted as Shifted,
)
from ._combine import (
    conjugate as conjugate,
)
from ._combine import (
    masked as masked,
)
from ._combine import (
    moreau_envelope as moreau_envelope,
)
from ._combine import (
    nonneg as nonneg,
)
from ._combine import (
    scale as scale,
)
from ._combine import (
    shift as shift,
)
from ._concave import (
    CEL0 as CEL0,
)
from ._concave import (
    MCP as MCP,
)
from ._concave import (
    SCAD as SCAD,
)
from ._concave import (
    CappedL1 as CappedL1,
)
from ._concave import (
    capped_l1 as capped_l1,
)
from ._concave import (
    cel0 as cel0,
)
from ._concave import (
    firm as firm,
)
from ._concave import (
    mcp as mcp,
)
from ._concave import (
    scad as scad,
)
from ._counts import (
    NM as NM,
)
from ._counts import (
    HardK as HardK,
)
from ._counts import (
    group_hard_k as group_hard_k,
)
from ._counts import (
    hard_k as hard_k,
)
from ._counts import (
    nm as nm,
)
from ._elementwise import (
    L0 as L0,
)
from ._elementwise import (
    L1 as L1,
)
from ._elementwise import (
    Box as Box,
)
from ._elementwise import (
    ElasticNet as ElasticNet,
)
from ._elementwise import (
    Huber as Huber,
)
from ._elementwise import (
    Ridge as Ridge,
)
from ._elementwise import (
    box as box,
)
from ._elementwise import (
    elastic_net as elastic_net,
)
from ._elementwise import (
    huber as huber,
)
from ._elementwise import (
    l0 as l0,
)
from ._elementwise import (
    l1 as l1,
)
from ._elementwise import (
    ridge as ridge,
)
from ._elementwise import (
    squared_l2 as squared_l2,
)
from ._elementwise import (
    weighted_l1 as weighted_l1,
)
from ._envelope import (
    SEF as SEF,
)
from ._envelope import (
    WGSEF as WGSEF,
)
from ._envelope import (
    exclusive_lasso as exclusive_lasso,
)
from ._envelope import (
    fenchel_young_gap as fenchel_young_gap,
)
from ._envelope import (
    gsef as gsef,
)
from ._envelope import (
    sef as sef,
)
from ._envelope import (
    wgsef as wgsef,
)
from ._group import (
    OnNorm as OnNorm,
)
from ._group import (
    group_l0 as group_l0,
)
from ._group import (
    group_lasso as group_lasso,
)
from ._group import (
    group_lp as group_lp,
)
from ._group import (
    group_mcp as group_mcp,
)
from ._group import (
    group_scad as group_scad,
)
from ._group import (
    l2 as l2,
)
from ._group import (
    on_norm as on_norm,
)
from ._k_support import (
    KSupportNorm as KSupportNorm,
)
from ._k_support import (
    k_support_norm as k_support_norm,
)
from ._labels import (
    GroupLabels as GroupLabels,
)
from ._labels import (
    group_labels as group_labels,
)
from ._matrix import (
    OnSingularValues as OnSingularValues,
)
from ._matrix import (
    max_rank as max_rank,
)
from ._matrix import (
    nuclear as nuclear,
)
from ._matrix import (
    on_singular_values as on_singular_values,
)
from ._matrix import (
    rank as rank,
)
from ._ordered import (
    L1MinusL2 as L1MinusL2,
)
from ._ordered import (
    LInf as LInf,
)
from ._ordered import (
    Slope as Slope,
)
from ._ordered import (
    l1_inf as l1_inf,
)
from ._ordered import (
    l1_minus_l2 as l1_minus_l2,
)
from ._ordered import (
    linf as linf,
)
from ._ordered import (
    slope as slope,
)
from ._penalty import (
    Penalty as Penalty,
)
from ._power import (
    LP as LP,
)
from ._power import (
    LHalf as LHalf,
)
from ._power import (
    LTwoThirds as LTwoThirds,
)
from ._power import (
    l_half as l_half,
)
from ._power import (
    l_two_thirds as l_two_thirds,
)
from ._power import (
    lp as lp,
)
from ._sets import (
    Affine as Affine,
)
from ._sets import (
    L1Ball as L1Ball,
)
from ._sets import (
    L2Ball as L2Ball,
)
from ._sets import (
    Plane as Plane,
)
from ._sets import (
    Simplex as Simplex,
)
from ._sets import (
    affine as affine,
)
from ._sets import (
    half_space as half_space,
)
from ._sets import (
    hyperplane as hyperplane,
)
from ._sets import (
    l1_ball as l1_ball,
)
from ._sets import (
    l2_ball as l2_ball,
)
from ._sets import (
    linf_ball as linf_ball,
)
from ._sets import (
    simplex as simplex,
)
from ._smooth_concave import (
    Concave as Concave,
)
from ._smooth_concave import (
    Exponential as Exponential,
)
from ._smooth_concave import (
    Geman as Geman,
)
from ._smooth_concave import (
    LogSum as LogSum,
)
from ._smooth_concave import (
    TransformedL1 as TransformedL1,
)
from ._smooth_concave import (
    concave as concave,
)
from ._smooth_concave import (
    exponential as exponential,
)
from ._smooth_concave import (
    geman as geman,
)
from ._smooth_concave import (
    log_sum as log_sum,
)
from ._smooth_concave import (
    transformed_l1 as transformed_l1,
)
from ._sums import (
    Nested as Nested,
)
from ._sums import (
    SeparableSum as SeparableSum,
)
from ._sums import (
    nested as nested,
)
from ._sums import (
    separable_sum as separable_sum,
)
from ._sums import (
    sparse_group_lasso as sparse_group_lasso,
)
from ._threshold import (
    firm_threshold as firm_threshold,
)
from ._threshold import (
    hard_threshold as hard_threshold,
)
from ._threshold import (
    soft_threshold as soft_threshold,
)
from ._total_variation import (
    TotalVariation as TotalVariation,
)
from ._total_variation import (
    fused_lasso as fused_lasso,
)
from ._total_variation import (
    total_variation as total_variation,
)

__all__ = [
    "CEL0",
    "L0",
    "L1",
    "LP",
    "MCP",
    "NM",
    "SCAD",
    "SEF",
    "WGSEF",
    "Affine",
    "Box",
    "CappedL1",
    "Concave",
    "Conjugate",
    "ElasticNet",
    "Exponential",
    "Geman",
    "GroupLabels",
    "HardK",
    "Huber",
    "KSupportNorm",
    "L1Ball",
    "L1MinusL2",
    "L2Ball",
    "LHalf",
    "LInf",
    "LTwoThirds",
    "LogSum",
    "Masked",
    "MoreauEnvelope",
    "Nested",
    "NonNegative",
    "OnNorm",
    "OnSingularValues",
    "Penalty",
    "Plane",
    "Ridge",
    "Scaled",
    "SeparableSum",
    "Shifted",
    "Simplex",
    "Slope",
    "TotalVariation",
    "TransformedL1",
    "affine",
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
    "linf_ball",
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
    "squared_l2",
    "total_variation",
    "transformed_l1",
    "weighted_l1",
    "wgsef",
]
