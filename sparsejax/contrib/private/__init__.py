"""Sparse regression under local differential privacy."""

from ._audit import privacy_audit
from ._iht import PrivateIHTFit, ldp_iht
from ._mechanisms import (
    PrivacySpent,
    clip_entries,
    clip_l2,
    gaussian_delta,
    gaussian_sigma,
    l2_randomizer,
)
from ._moment_mechanism import MomentMechanism, moment_mechanism
from ._moments import PrivateFit, nldp_message, nldp_regression, nldp_server, soft_thresholded_ols

__all__ = [
    "MomentMechanism",
    "PrivacySpent",
    "PrivateFit",
    "PrivateIHTFit",
    "clip_entries",
    "clip_l2",
    "gaussian_delta",
    "gaussian_sigma",
    "l2_randomizer",
    "ldp_iht",
    "moment_mechanism",
    "nldp_message",
    "nldp_regression",
    "nldp_server",
    "privacy_audit",
    "soft_thresholded_ols",
]
