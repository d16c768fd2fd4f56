"""Sparsity without a network: regression, coding, unmixing, acyclic graphs."""

from ._acyclicity import expm_acyclicity as expm_acyclicity
from ._acyclicity import is_acyclic as is_acyclic
from ._acyclicity import is_m_matrix as is_m_matrix
from ._acyclicity import logdet_acyclicity as logdet_acyclicity
from ._acyclicity import polynomial_acyclicity as polynomial_acyclicity
from ._acyclicity import threshold_to_dag as threshold_to_dag
from ._algebra import operator_norm as operator_norm
from ._bandits import BanditResult as BanditResult
from ._bandits import LinearBandit as LinearBandit
from ._bandits import exhaustive_bandit as exhaustive_bandit
from ._bandits import g_optimal as g_optimal
from ._bandits import lasso_bandit as lasso_bandit
from ._bandits import ols_bandit as ols_bandit
from ._bandits import parameter_elimination as parameter_elimination
from ._basis_pursuit import basis_pursuit as basis_pursuit
from ._basis_pursuit import min_norm as min_norm
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
from ._moment_mechanism import MomentMechanism as MomentMechanism
from ._moment_mechanism import moment_mechanism as moment_mechanism
from ._nets import sparse_net as sparse_net
from ._nets import sphere_net as sphere_net
from ._patches import sample_patches as sample_patches
from ._patches import whiten_image as whiten_image
from ._penalized import group_lasso as group_lasso
from ._penalized import logistic_lasso as logistic_lasso
from ._penalized import multitask_lasso as multitask_lasso
from ._penalized import penalized_regression as penalized_regression
from ._preconditioner import Preconditioner as Preconditioner
from ._preconditioner import precondition_apply as precondition_apply
from ._preconditioner import precondition_unapply as precondition_unapply
from ._preconditioner import random_reference as random_reference
from ._privacy import PrivacySpent as PrivacySpent
from ._privacy import clip_entries as clip_entries
from ._privacy import clip_l2 as clip_l2
from ._privacy import gaussian_delta as gaussian_delta
from ._privacy import gaussian_sigma as gaussian_sigma
from ._privacy import l2_randomizer as l2_randomizer
from ._private_iht import PrivateIHTFit as PrivateIHTFit
from ._private_iht import ldp_iht as ldp_iht
from ._private_moments import PrivateFit as PrivateFit
from ._private_moments import nldp_message as nldp_message
from ._private_moments import nldp_regression as nldp_regression
from ._private_moments import nldp_server as nldp_server
from ._private_moments import soft_thresholded_ols as soft_thresholded_ols
from ._proximal_gradient import fista as fista
from ._proximal_gradient import proximal_gradient as proximal_gradient
from ._random_reference import RandomSupportFit as RandomSupportFit
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
    "BanditResult",
    "Codes",
    "ConcomitantFit",
    "DAGFit",
    "DictionaryFit",
    "LinearBandit",
    "MomentMechanism",
    "Preconditioner",
    "PrivacySpent",
    "PrivateFit",
    "PrivateIHTFit",
    "RandomSupportFit",
    "Result",
    "Solution",
    "Unmixing",
    "basis_pursuit",
    "channel_noise",
    "clean_channels",
    "clip_entries",
    "clip_l2",
    "colide",
    "concomitant_lasso",
    "dagma",
    "dictionary_learning",
    "dictionary_step",
    "duality_gap",
    "edge_weights",
    "enet",
    "erdos_renyi_dag",
    "exhaustive_bandit",
    "expm_acyclicity",
    "fcls",
    "fista",
    "g_optimal",
    "gaussian_delta",
    "gaussian_sigma",
    "group_lasso",
    "iht",
    "irls_weights",
    "is_acyclic",
    "is_m_matrix",
    "l2_randomizer",
    "lambda_max",
    "lasso",
    "lasso_bandit",
    "lasso_host",
    "lasso_path",
    "lasso_path_host",
    "ldp_iht",
    "learn_guidance",
    "logdet_acyclicity",
    "logistic_lasso",
    "match_strength",
    "min_norm",
    "moment_mechanism",
    "multitask_lasso",
    "nldp_message",
    "nldp_regression",
    "nldp_server",
    "noise_scale",
    "ols_bandit",
    "operator_norm",
    "parameter_elimination",
    "penalized_regression",
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
    "soft_thresholded_ols",
    "spa",
    "sparse_code",
    "sparse_net",
    "spatial_guidance",
    "sphere_net",
    "threshold_to_dag",
    "unmix",
    "update_abundances",
    "update_endmembers",
    "vca",
    "whiten_image",
]
