"""How sparse matrices are stored: compressed pytrees and conversions."""

from ._active import ActiveSet as ActiveSet
from ._active import select_nonzero as select_nonzero
from ._active import select_threshold as select_threshold
from ._active import select_topk as select_topk
from ._active import select_union as select_union
from ._active import unit_major as unit_major
from ._array import SparseArray as SparseArray
from ._block import BlockArray as BlockArray
from ._block import choose_output_block as choose_output_block
from ._compress import compress as compress
from ._convert import from_sparse as from_sparse
from ._convert import to_bcoo as to_bcoo
from ._convert import to_bcsr as to_bcsr
from ._convert import to_scipy as to_scipy
from ._gathered import gather_values as gather_values
from ._gathered import indices_of as indices_of
from ._gathered import tap as tap
from ._gathered import write_back as write_back
from ._nm import NMArray as NMArray
from ._save import convert_block as convert_block
from ._save import load_safetensors as load_safetensors
from ._save import save_safetensors as save_safetensors
from ._save import shard_columns as shard_columns
from ._tensor_core import TensorCoreArray as TensorCoreArray

__all__ = [
    "ActiveSet",
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
    "select_nonzero",
    "select_threshold",
    "select_topk",
    "select_union",
    "shard_columns",
    "tap",
    "to_bcoo",
    "to_bcsr",
    "to_scipy",
    "unit_major",
    "write_back",
]
