"""Forgetting training data with sparse models."""

from ._features import MembershipFeatures, membership_features
from ._metrics import UnlearningReport, membership_attack, unlearning_report
from ._unlearn import (
    fisher_diagonal,
    fisher_forgetting,
    forget_split,
    influence_unlearning,
    unlearn,
)

__all__ = [
    "MembershipFeatures",
    "UnlearningReport",
    "fisher_diagonal",
    "fisher_forgetting",
    "forget_split",
    "influence_unlearning",
    "membership_attack",
    "membership_features",
    "unlearn",
    "unlearning_report",
]
