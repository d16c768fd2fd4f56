"""Storage formats: compressed matrices as pytrees, and conversions."""

from ._array import Matrix, SparseArray, multiply
from ._bitmask import BitmaskArray
from ._block import BlockArray, choose_output_block
from ._compress import compress_matrix
from ._convert import convert_block, from_sparse, to_bcoo, to_bcsr, to_scipy
from ._coordinates import Entries
from ._low_rank import LowRank, Sum, trainable
from ._nm import NMArray
from ._shard import shard_columns
from ._skipping import Skipping
from ._tensor_core import TensorCoreArray
from ._transposed import Transposed
from ._units import unit_major

__all__ = [
    "BitmaskArray",
    "BlockArray",
    "Entries",
    "LowRank",
    "Matrix",
    "NMArray",
    "Skipping",
    "SparseArray",
    "Sum",
    "TensorCoreArray",
    "Transposed",
    "choose_output_block",
    "compress_matrix",
    "convert_block",
    "from_sparse",
    "multiply",
    "shard_columns",
    "to_bcoo",
    "to_bcsr",
    "to_scipy",
    "trainable",
    "unit_major",
]
