"""Solvers for sparse regression, sparse coding and dictionary learning."""

from .._solution import Result, Solution
from ._algebra import operator_norm
from ._basis_pursuit import basis_pursuit
from ._dictionary import dictionary_learning, dictionary_step, sparse_code
from ._duality import duality_gap, max_strength
from ._hard_threshold import iht
from ._lasso import enet, lasso, lasso_path
from ._lasso_host import lasso_host, lasso_path_host
from ._match import match_strength
from ._penalized import group_lasso, logistic_lasso, multitask_lasso, penalized_regression
from ._proximal_gradient import proximal_gradient

__all__ = [
    "Result",
    "Solution",
    "basis_pursuit",
    "dictionary_learning",
    "dictionary_step",
    "duality_gap",
    "enet",
    "group_lasso",
    "iht",
    "lasso",
    "lasso_host",
    "lasso_path",
    "lasso_path_host",
    "logistic_lasso",
    "match_strength",
    "max_strength",
    "multitask_lasso",
    "operator_norm",
    "penalized_regression",
    "proximal_gradient",
    "sparse_code",
]
