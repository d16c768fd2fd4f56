"""Activation sparsity of language models: gates, calibration, allocation, faster decoding."""

from ._activity import Activity, neuron_activity
from ._allocate import Trajectory, allocation_at, block_sparsities, greedy_allocation
from ._attach import activation_counts, activation_gates, input_counts, input_gates
from ._balance import balanced_l1, target_factor
from ._beams import Beams, beam_step
from ._cett import (
    NeuronGate,
    PerplexitySparsity,
    cett,
    cett_mask,
    cett_threshold,
    perplexity_sparsity,
)
from ._contextual import coarse_sparse, fine_sparse, griffin_scores
from ._correct import Corrected, accept_length, corrected_generate, effective_density
from ._decode import skip_inputs
from ._experts import BlockFFN, ReLURouter, Routed
from ._fused import Choice, FusedLayer, FusedLinears, FusedMLP, choose_decoder, fast_decoder
from ._gates import ActivationGate, InputGate, input_scores, kernel_norms
from ._laws import ActivationLaw, activation_law, fit_activation_law
from ._locality import (
    AdaptiveFactor,
    FactorState,
    activation_locality,
    adaptive_factor,
    chunk_sparsification,
    chunk_sparsity,
    reuse_ratio,
)
from ._neurons import NeuronTopK, TopKMLP, mlp_flops
from ._noise import Robustness, input_noise, label_noise, robustness
from ._orthogonal import RotatedNorm, orthogonalize
from ._quantile import Counts, count_values, pooled_quantile

__all__ = [
    "ActivationGate",
    "ActivationLaw",
    "Activity",
    "AdaptiveFactor",
    "Beams",
    "BlockFFN",
    "Choice",
    "Corrected",
    "Counts",
    "FactorState",
    "FusedLayer",
    "FusedLinears",
    "FusedMLP",
    "InputGate",
    "NeuronGate",
    "NeuronTopK",
    "PerplexitySparsity",
    "ReLURouter",
    "Robustness",
    "RotatedNorm",
    "Routed",
    "TopKMLP",
    "Trajectory",
    "accept_length",
    "activation_counts",
    "activation_gates",
    "activation_law",
    "activation_locality",
    "adaptive_factor",
    "allocation_at",
    "balanced_l1",
    "beam_step",
    "block_sparsities",
    "cett",
    "cett_mask",
    "cett_threshold",
    "choose_decoder",
    "chunk_sparsification",
    "chunk_sparsity",
    "coarse_sparse",
    "corrected_generate",
    "count_values",
    "effective_density",
    "fast_decoder",
    "fine_sparse",
    "fit_activation_law",
    "greedy_allocation",
    "griffin_scores",
    "input_counts",
    "input_gates",
    "input_noise",
    "input_scores",
    "kernel_norms",
    "label_noise",
    "mlp_flops",
    "neuron_activity",
    "orthogonalize",
    "perplexity_sparsity",
    "pooled_quantile",
    "reuse_ratio",
    "robustness",
    "skip_inputs",
    "target_factor",
]
