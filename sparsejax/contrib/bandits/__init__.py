"""Linear bandits with sparse or misspecified rewards."""

from ._bandits import (
    BanditResult,
    LinearBandit,
    exhaustive_bandit,
    lasso_bandit,
    ols_bandit,
    parameter_elimination,
)
from ._design import g_optimal
from ._nets import sparse_net, sphere_net

__all__ = [
    "BanditResult",
    "LinearBandit",
    "exhaustive_bandit",
    "g_optimal",
    "lasso_bandit",
    "ols_bandit",
    "parameter_elimination",
    "sparse_net",
    "sphere_net",
]
