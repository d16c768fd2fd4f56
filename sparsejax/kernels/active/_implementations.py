"""The table of products with active units. Each is loaded at first use."""

from ...formats import Skipping
from ...select import ActiveSet
from .._table import Implementation, implement


@implement("active_reduce", ActiveSet, "pallas_tpu", platforms=("tpu",))
def _() -> Implementation:
    from ._pallas_tpu import reduce

    return Implementation(reduce)


@implement("active_expand", ActiveSet, "pallas_tpu", platforms=("tpu",))
def _() -> Implementation:
    from ._pallas_tpu import expand

    return Implementation(expand)


@implement("active_reduce", ActiveSet, "pallas_gpu", platforms=("gpu",))
def _() -> Implementation:
    from ._pallas_gpu import reduce

    return Implementation(reduce)


@implement("active_expand", ActiveSet, "pallas_gpu", platforms=("gpu",))
def _() -> Implementation:
    from ._pallas_gpu import expand

    return Implementation(expand)


@implement("active_reduce", ActiveSet, "native", platforms=("cpu",), automatic=False)
def _() -> Implementation:
    from ._native import reduce

    return Implementation(reduce)


@implement("active_expand", ActiveSet, "native", platforms=("cpu",), automatic=False)
def _() -> Implementation:
    from ._native import expand

    return Implementation(expand)


@implement("active_reduce", ActiveSet, "xla")
def _() -> Implementation:
    from ._xla import reduce

    return Implementation(reduce)


@implement("active_expand", ActiveSet, "xla")
def _() -> Implementation:
    from ._xla import expand

    return Implementation(expand)


@implement("matmul", Skipping, "native", platforms=("cpu",))
def _() -> Implementation:
    from ._native import SKIPPING

    return SKIPPING


@implement("active_reduce", ActiveSet, "dense")
def _() -> Implementation:
    from ._dense import reduce

    return Implementation(reduce)


@implement("active_expand", ActiveSet, "dense")
def _() -> Implementation:
    from ._dense import expand

    return Implementation(expand)


@implement("gated_products", Skipping, "native", platforms=("cpu",))
def _() -> Implementation:
    from ._native import GATED_PRODUCTS

    return GATED_PRODUCTS


@implement("gated_mlp", Skipping, "native", platforms=("cpu",))
def _() -> Implementation:
    from ._native import GATED_MLP

    return GATED_MLP


@implement("gated_products", Skipping, "xla")
def _() -> Implementation:
    from ._gated import products_in_xla

    return Implementation(products_in_xla)


@implement("gated_mlp", Skipping, "xla")
def _() -> Implementation:
    from ._gated import mlp_in_xla

    return Implementation(mlp_in_xla)


@implement("gated_layer", Skipping, "native", platforms=("cpu",))
def _() -> Implementation:
    from ._native import GATED_LAYER

    return GATED_LAYER


@implement("gated_layer", Skipping, "xla")
def _() -> Implementation:
    from ._layer import layer_in_xla

    return Implementation(layer_in_xla)
