"""The table of attention over lists. Each is loaded at first use.

A product takes `(q, k, v, index, count, block, rule)`, heads first, and returns the output and the
log of the sum of exponentials of each query, which the gradient needs; a product over pages takes
`(q, k, v, index, count, length, page, scale)`, the batch first. Kernels for hardware are used by
name only, until they have run on a device.
"""

from .._table import Implementation, implement
from ._lists import KeyBlocks


@implement("attention", KeyBlocks, "pallas_tpu", platforms=("tpu",), automatic=False)
def _() -> Implementation:
    from ._pallas_tpu import product

    return Implementation(product)


@implement("attention", KeyBlocks, "pallas_gpu", platforms=("gpu",), automatic=False)
def _() -> Implementation:
    from ._pallas_gpu import product

    return Implementation(product)


@implement("attention", KeyBlocks, "xla")
def _() -> Implementation:
    from ._xla import product

    return Implementation(product)


@implement("attention", KeyBlocks, "dense")
def _() -> Implementation:
    from ._dense import product

    return Implementation(product)


@implement("paged_attention", KeyBlocks, "pallas_tpu", platforms=("tpu",), automatic=False)
def _() -> Implementation:
    from ._paged_tpu import product

    return Implementation(product)


@implement("paged_attention", KeyBlocks, "xla")
def _() -> Implementation:
    from ._paged import gathered

    return Implementation(gathered)


@implement("paged_attention", KeyBlocks, "dense")
def _() -> Implementation:
    from ._paged import dense

    return Implementation(dense)
