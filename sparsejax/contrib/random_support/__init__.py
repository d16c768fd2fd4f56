"""The Lasso on ill-conditioned designs, by random supports."""

from ._lasso import RandomSupportFit, random_support_lasso
from ._preconditioner import Preconditioner, random_reference

__all__ = [
    "Preconditioner",
    "RandomSupportFit",
    "random_reference",
    "random_support_lasso",
]
