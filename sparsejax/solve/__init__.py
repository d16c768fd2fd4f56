"""Sparsity without a network: regression, coding, unmixing, acyclic graphs."""

from ._algebra import operator_norm
from ._basis_pursuit import basis_pursuit, min_norm
from ._dictionary import Codes, DictionaryFit, dictionary_learning, dictionary_step, sparse_code
from ._duality import duality_gap, lambda_max
from ._hard_threshold import iht
from ._lasso import enet, lasso, lasso_path
from ._lasso_host import lasso_host, lasso_path_host
from ._match import match_strength
from ._penalized import group_lasso, logistic_lasso, multitask_lasso, penalized_regression
from ._proximal_gradient import fista, proximal_gradient
from ._solution import Result, Solution

__all__ = [
    "Codes",
    "DictionaryFit",
    "Result",
    "Solution",
    "basis_pursuit",
    "dictionary_learning",
    "dictionary_step",
    "duality_gap",
    "enet",
    "fista",
    "group_lasso",
    "iht",
    "lambda_max",
    "lasso",
    "lasso_host",
    "lasso_path",
    "lasso_path_host",
    "logistic_lasso",
    "match_strength",
    "min_norm",
    "multitask_lasso",
    "operator_norm",
    "penalized_regression",
    "proximal_gradient",
    "sparse_code",
]
