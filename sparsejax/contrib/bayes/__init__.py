"""Sparse Bayesian networks: mean-field layers, and variational inference on a moving support."""

from ._kernel import GaussianKernel
from ._layers import BayesConv, BayesLinear
from ._model import draw, kl, predict, set_masks
from ._scores import e_abs, e_exp_abs, snr, snr_abs
from ._ssvi import ssvi
from ._train import train_ssvi

__all__ = [
    "BayesConv",
    "BayesLinear",
    "GaussianKernel",
    "draw",
    "e_abs",
    "e_exp_abs",
    "kl",
    "predict",
    "set_masks",
    "snr",
    "snr_abs",
    "ssvi",
    "train_ssvi",
]
