"""The table of products. Each is loaded at first use."""

from ...formats import (
    BitmaskArray,
    BlockArray,
    Entries,
    LowRank,
    Matrix,
    NMArray,
    Sum,
    TensorCoreArray,
)
from .._table import Implementation, implement


@implement("matmul", BlockArray, "pallas_tpu", platforms=("tpu",))
def _() -> Implementation:
    from ._tpu_block import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", NMArray, "pallas_tpu", platforms=("tpu",))
def _() -> Implementation:
    from ._tpu_nm import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", BlockArray, "pallas_gpu", platforms=("gpu",))
def _() -> Implementation:
    from ._gpu_block import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", NMArray, "pallas_gpu", platforms=("gpu",))
def _() -> Implementation:
    from ._gpu_nm import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", BlockArray, "native", platforms=("cpu",), automatic=False)
@implement("matmul", NMArray, "native", platforms=("cpu",), automatic=False)
def _() -> Implementation:
    from ._native import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", TensorCoreArray, "sparse_cores", platforms=("gpu",))
@implement("matmul", NMArray, "sparse_cores", platforms=("gpu",), automatic=False)
def _() -> Implementation:
    from ._sparse_cores import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", TensorCoreArray, "cusparselt", platforms=("gpu",), automatic=False)
@implement("matmul", NMArray, "cusparselt", platforms=("gpu",), automatic=False)
def _() -> Implementation:
    from ._cusparselt import IMPLEMENTATION

    return IMPLEMENTATION


@implement("matmul", BlockArray, "xla")
def _() -> Implementation:
    from . import _xla, _xla_block

    return _xla.of(_xla_block)


@implement("matmul", NMArray, "xla")
def _() -> Implementation:
    from . import _xla, _xla_nm

    return _xla.of(_xla_nm)


@implement("matmul", Entries, "xla")
def _() -> Implementation:
    from . import _xla, _xla_entries

    return _xla.of(_xla_entries)


@implement("matmul", LowRank, "xla")
def _() -> Implementation:
    from ._composed import LOW_RANK

    return LOW_RANK


@implement("matmul", Sum, "xla")
def _() -> Implementation:
    from ._composed import SUM

    return SUM


@implement("matmul", BitmaskArray, "xla")
@implement("matmul", Matrix, "dense")
def _() -> Implementation:
    from ._dense import IMPLEMENTATION

    return IMPLEMENTATION
