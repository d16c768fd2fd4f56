"""Decoding that reads only the weights in use."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from ..._arguments import checked
from ..._tree import expression
from ...formats import Skipping
from ...nn import SparseKernel, linear_layer
from ._attach import kernels_of


@checked()
def skip_inputs(model: nnx.Module, *, where: str = "layers/", int8: bool = False) -> Any:
    r"""A copy of a model whose products read only the kernel rows with an input that is not zero.

    The outputs are the same. Attach gates to the copy, so that inputs are zero. Products of one to
    eight tokens on a CPU with a C++ compiler skip rows, others are dense: see
    `sj.formats.Skipping`.

    Args:
      model: An NNX model with its layers in a list.
      where: Regular expression over the paths of linear layers (`re.search`).
      int8: Whether to round the kernels to int8 with a scale per output.

    Raises:
      ValueError: If no linear layer matches, or a kernel is not a matrix.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
      >>> gates = activation_sparsity.input_gates(model, 0.5)
      >>> fast = sj.nn.replace(activation_sparsity.skip_inputs(model), gates)
      >>> x = jnp.array([[1.0, 2.0, 3.0, 4.0]])
      >>> bool(jnp.allclose(fast(x), sj.nn.replace(model, gates)(x), atol=1e-5))
      True
    """
    kernels_of("skip_inputs", model, where)  # checks them
    model = nnx.clone(model)
    for parts, module in list(nnx.iter_modules(model)):
        layer = linear_layer(module)
        if layer is None or not expression("where", where).search("/".join(map(str, parts))):
            continue
        if layer.install is None:
            raise ValueError(
                f"skip_inputs: {'/'.join(map(str, parts))} has a custom product; exclude it by "
                "where=."
            )
        kernel = getattr(module, layer.path)[...]
        made = Skipping.quantized(kernel) if int8 else Skipping(jnp.asarray(kernel))
        layer.install(SparseKernel(made))
    return model
