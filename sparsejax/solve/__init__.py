"""Sparsity without a network: sparse coding, unmixing, acyclic graphs."""

from ._acyclicity import expm_acyclicity as expm_acyclicity
from ._acyclicity import is_acyclic as is_acyclic
from ._acyclicity import is_m_matrix as is_m_matrix
from ._acyclicity import logdet_acyclicity as logdet_acyclicity
from ._acyclicity import polynomial_acyclicity as polynomial_acyclicity
from ._acyclicity import threshold_to_dag as threshold_to_dag
from ._dag import DAGFit as DAGFit
from ._dag import colide as colide
from ._dag import dagma as dagma
from ._dictionary import Codes as Codes
from ._dictionary import DictionaryFit as DictionaryFit
from ._dictionary import dictionary_learning as dictionary_learning
from ._dictionary import dictionary_step as dictionary_step
from ._dictionary import sparse_code as sparse_code
from ._patches import sample_patches as sample_patches
from ._patches import whiten_image as whiten_image
from ._structural import edge_weights as edge_weights
from ._structural import erdos_renyi_dag as erdos_renyi_dag
from ._structural import sample_sem as sample_sem
from ._structural import scale_free_dag as scale_free_dag

__all__ = [
    "Codes",
    "DAGFit",
    "DictionaryFit",
    "colide",
    "dagma",
    "dictionary_learning",
    "dictionary_step",
    "edge_weights",
    "erdos_renyi_dag",
    "expm_acyclicity",
    "is_acyclic",
    "is_m_matrix",
    "logdet_acyclicity",
    "polynomial_acyclicity",
    "sample_patches",
    "sample_sem",
    "scale_free_dag",
    "sparse_code",
    "threshold_to_dag",
    "whiten_image",
]
