"""Sparse autoencoders: activations, losses, training, interventions, metrics and files."""

from ._activation import Activation, Context, Gated, JumpReLU, ReLU
from ._afa import TopAFA
from ._attribution import GradientTopK
from ._auxiliary import AuxK, GateAuxiliary
from ._buffer import ActivationBuffer, cache_activations
from ._collect import collect, gradients
from ._dashboard import dashboard
from ._fidelity import fidelity, steering_effect
from ._files import load, save
from ._geometry import (
    coherence,
    description_length,
    eps_lbo,
    recovery,
    weight_statistics,
    zf,
    zf_bounds,
)
from ._init import geometric_median
from ._intervene import ablate, splice, steer
from ._loss import Loss, Nested, NormMatching, Reconstruction
from ._penalties import L0, L1, AnnealedP, PreActivation, TargetL0
from ._probe import sparse_probe
from ._products import decode
from ._pursuit import MatchingPursuit
from ._resample import resample
from ._rescale import expected_scale, fold_decoder_norm, fold_scale
from ._sae import SAE
from ._sharding import specs
from ._statistics import statistics
from ._top_k import AbsTopK, BatchTopK, TopK
from ._train import begin, train, train_step

__all__ = [
    "L0",
    "L1",
    "SAE",
    "AbsTopK",
    "Activation",
    "ActivationBuffer",
    "AnnealedP",
    "AuxK",
    "BatchTopK",
    "Context",
    "GateAuxiliary",
    "Gated",
    "GradientTopK",
    "JumpReLU",
    "Loss",
    "MatchingPursuit",
    "Nested",
    "NormMatching",
    "PreActivation",
    "ReLU",
    "Reconstruction",
    "TargetL0",
    "TopAFA",
    "TopK",
    "ablate",
    "begin",
    "cache_activations",
    "coherence",
    "collect",
    "dashboard",
    "decode",
    "description_length",
    "eps_lbo",
    "expected_scale",
    "fidelity",
    "fold_decoder_norm",
    "fold_scale",
    "geometric_median",
    "gradients",
    "load",
    "recovery",
    "resample",
    "save",
    "sparse_probe",
    "specs",
    "splice",
    "statistics",
    "steer",
    "steering_effect",
    "train",
    "train_step",
    "weight_statistics",
    "zf",
    "zf_bounds",
]
