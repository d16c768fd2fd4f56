"""The products as Mosaic GPU kernels for Hopper; what they cannot do raises NotImplementedError."""

from . import _gpu_block, _gpu_nm
from ._formats import by_format

product, transposed, sampled, explain = by_format(_gpu_block, _gpu_nm)
