"""Sparse directed acyclic graphs from data."""

from ._acyclicity import (
    expm_acyclicity,
    is_acyclic,
    is_m_matrix,
    logdet_acyclicity,
    polynomial_acyclicity,
    threshold_to_dag,
)
from ._colide import colide, dagma
from ._concomitant import ConcomitantFit, concomitant_lasso, noise_scale
from ._metrics import EdgeScores, cpdag, edge_scores, shd, shd_cpdag, sid
from ._sample import edge_weights, erdos_renyi_dag, sample_sem, scale_free_dag
from ._stages import DAGFit

__all__ = [
    "ConcomitantFit",
    "DAGFit",
    "EdgeScores",
    "colide",
    "concomitant_lasso",
    "cpdag",
    "dagma",
    "edge_scores",
    "edge_weights",
    "erdos_renyi_dag",
    "expm_acyclicity",
    "is_acyclic",
    "is_m_matrix",
    "logdet_acyclicity",
    "noise_scale",
    "polynomial_acyclicity",
    "sample_sem",
    "scale_free_dag",
    "shd",
    "shd_cpdag",
    "sid",
    "threshold_to_dag",
]
