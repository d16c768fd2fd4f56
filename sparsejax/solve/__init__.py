"""Sparsity without a network: regression, coding, unmixing, acyclic graphs."""

from ._acyclicity import expm_acyclicity as expm_acyclicity
from ._acyclicity import is_acyclic as is_acyclic
from ._acyclicity import is_m_matrix as is_m_matrix
from ._acyclicity import logdet_acyclicity as logdet_acyclicity
from ._acyclicity import polynomial_acyclicity as polynomial_acyclicity
from ._acyclicity import threshold_to_dag as threshold_to_dag
from ._algebra import operator_norm as operator_norm
from ._concomitant import ConcomitantFit as ConcomitantFit
from ._concomitant import concomitant_lasso as concomitant_lasso
from ._concomitant import noise_scale as noise_scale
from ._dag import DAGFit as DAGFit
from ._dag import colide as colide
from ._dag import dagma as dagma
from ._dictionary import Codes as Codes
from ._dictionary import DictionaryFit as DictionaryFit
from ._dictionary import dictionary_learning as dictionary_learning
from ._dictionary import dictionary_step as dictionary_step
from ._dictionary import sparse_code as sparse_code
from ._duality import duality_gap as duality_gap
from ._duality import lambda_max as lambda_max
from ._endmembers import channel_noise as channel_noise
from ._endmembers import clean_channels as clean_channels
from ._endmembers import fcls as fcls
from ._endmembers import pure_pixels as pure_pixels
from ._endmembers import spa as spa
from ._endmembers import vca as vca
from ._hard_threshold import iht as iht
from ._lasso import enet as enet
from ._lasso import lasso as lasso
from ._lasso import lasso_path as lasso_path
from ._lasso_host import lasso_host as lasso_host
from ._lasso_host import lasso_path_host as lasso_path_host
from ._match import match_strength as match_strength
from ._patches import sample_patches as sample_patches
from ._patches import whiten_image as whiten_image
from ._proximal_gradient import fista as fista
from ._proximal_gradient import proximal_gradient as proximal_gradient
from ._random_reference import Preconditioner as Preconditioner
from ._random_reference import RandomSupportFit as RandomSupportFit
from ._random_reference import precondition_apply as precondition_apply
from ._random_reference import precondition_unapply as precondition_unapply
from ._random_reference import random_reference as random_reference
from ._random_reference import random_support_lasso as random_support_lasso
from ._solution import Result as Result
from ._solution import Solution as Solution
from ._structural import edge_weights as edge_weights
from ._structural import erdos_renyi_dag as erdos_renyi_dag
from ._structural import sample_sem as sample_sem
from ._structural import scale_free_dag as scale_free_dag
from ._unmixing import Unmixing as Unmixing
from ._unmixing import irls_weights as irls_weights
from ._unmixing import learn_guidance as learn_guidance
from ._unmixing import spatial_guidance as spatial_guidance
from ._unmixing import unmix as unmix
from ._unmixing import update_abundances as update_abundances
from ._unmixing import update_endmembers as update_endmembers

__all__ = [
    "Codes",
    "ConcomitantFit",
    "DAGFit",
    "DictionaryFit",
    "Preconditioner",
    "RandomSupportFit",
    "Result",
    "Solution",
    "Unmixing",
    "channel_noise",
    "clean_channels",
    "colide",
    "concomitant_lasso",
    "dagma",
    "dictionary_learning",
    "dictionary_step",
    "duality_gap",
    "edge_weights",
    "enet",
    "erdos_renyi_dag",
    "expm_acyclicity",
    "fcls",
    "fista",
    "iht",
    "irls_weights",
    "is_acyclic",
    "is_m_matrix",
    "lambda_max",
    "lasso",
    "lasso_host",
    "lasso_path",
    "lasso_path_host",
    "learn_guidance",
    "logdet_acyclicity",
    "match_strength",
    "noise_scale",
    "operator_norm",
    "polynomial_acyclicity",
    "precondition_apply",
    "precondition_unapply",
    "proximal_gradient",
    "pure_pixels",
    "random_reference",
    "random_support_lasso",
    "sample_patches",
    "sample_sem",
    "scale_free_dag",
    "spa",
    "sparse_code",
    "spatial_guidance",
    "threshold_to_dag",
    "unmix",
    "update_abundances",
    "update_endmembers",
    "vca",
    "whiten_image",
]
