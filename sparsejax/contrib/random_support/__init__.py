"""The Lasso on ill-conditioned designs, by random supports."""

from ._lasso import RandomSupportFit, random_support_lasso
from ._preconditioner import (
    Preconditioner,
    precondition_apply,
    precondition_unapply,
    random_reference,
)

__all__ = [
    "Preconditioner",
    "RandomSupportFit",
    "precondition_apply",
    "precondition_unapply",
    "random_reference",
    "random_support_lasso",
]
