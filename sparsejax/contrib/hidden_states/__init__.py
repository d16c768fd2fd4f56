"""Compression of hidden states: matrix nuclear norm, nuclear norm and matrix entropy of a text."""

from ._dataset import DatasetScore, score_dataset
from ._entropy import matrix_entropy
from ._norms import matrix_nuclear_norm, nuclear_norm
from ._rows import normalise

__all__ = [
    "DatasetScore",
    "matrix_entropy",
    "matrix_nuclear_norm",
    "normalise",
    "nuclear_norm",
    "score_dataset",
]
