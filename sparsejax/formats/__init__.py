"""How sparse matrices are stored: compressed pytrees and conversions."""

from ._array import SparseArray
from ._block import BlockArray, choose_output_block
from ._compress import compress
from ._convert import from_sparse, to_bcoo, to_bcsr, to_scipy
from ._entries import gather_values, indices_of, tap, write_back
from ._nm import NMArray
from ._save import convert_block, load_safetensors, save_safetensors
from ._shard import shard_columns
from ._tensor_core import TensorCoreArray
from ._units import unit_major

__all__ = [
    "BlockArray",
    "NMArray",
    "SparseArray",
    "TensorCoreArray",
    "choose_output_block",
    "compress",
    "convert_block",
    "from_sparse",
    "gather_values",
    "indices_of",
    "load_safetensors",
    "save_safetensors",
    "shard_columns",
    "tap",
    "to_bcoo",
    "to_bcsr",
    "to_scipy",
    "unit_major",
    "write_back",
]
