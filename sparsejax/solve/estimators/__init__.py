"""The Lasso family as scikit-learn estimators: `pip install "sparsejax[sklearn]"`."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        'sparsejax.solve.estimators needs scikit-learn: pip install "sparsejax[sklearn]".'
    ) from error

from ._classification import SparseLogisticRegression, SparseLogisticRegressionCV
from ._concave import LHalfRegression, MCPRegression, SCADRegression
from ._groups import GroupLasso, GroupLassoCV, MultiTaskLasso
from ._l1 import ElasticNet, ElasticNetCV, Lasso, LassoCV
from ._losses import SparseHuberRegression, SparsePoissonRegression

__all__ = [
    "ElasticNet",
    "ElasticNetCV",
    "GroupLasso",
    "GroupLassoCV",
    "LHalfRegression",
    "Lasso",
    "LassoCV",
    "MCPRegression",
    "MultiTaskLasso",
    "SCADRegression",
    "SparseHuberRegression",
    "SparseLogisticRegression",
    "SparseLogisticRegressionCV",
    "SparsePoissonRegression",
]
