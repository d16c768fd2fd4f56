"""The products as Pallas kernels for TPU; what they cannot do raises NotImplementedError."""

from . import _tpu_block, _tpu_nm
from ._formats import by_format

product, transposed, sampled, explain = by_format(_tpu_block, _tpu_nm)
