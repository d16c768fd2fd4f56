"""Forgetting training data with sparse models."""

from ._features import MembershipFeatures, membership_features
from ._fisher import fisher_diagonal, fisher_forgetting
from ._influence import influence_unlearning
from ._metrics import UnlearningReport, membership_attack, unlearning_report
from ._unlearn import forget_split, unlearn

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
