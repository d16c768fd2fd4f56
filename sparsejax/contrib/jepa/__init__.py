"""Joint-embedding predictive architectures whose latents serve few groups of features."""

from ._blocks import Blocks, block_masks
from ._grouped import GroupedLinear, groups_per_latent, row_sparsity
from ._information import multi_information
from ._loss import jepa_loss
from ._modules import PatchEncoder, Predictor, features, patches_of
from ._train import SparseJEPA, train_jepa

__all__ = [
    "Blocks",
    "GroupedLinear",
    "PatchEncoder",
    "Predictor",
    "SparseJEPA",
    "block_masks",
    "features",
    "groups_per_latent",
    "jepa_loss",
    "multi_information",
    "patches_of",
    "row_sparsity",
    "train_jepa",
]
