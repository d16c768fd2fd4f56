"""Gram matrices of the inputs of each kernel over calibration data."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._arguments import checked
from .._arrays import wide_dtype
from ._frameworks import of_framework
from ._linear_layer import linear_layer, product_class, rows_of
from ._taps import Recorder, observing, run_recording

Call = Callable[[Any, Any], Any]
Grams = OrderedDict[str, Float[Array, "..."]]


@checked()
def input_grams(
    model: Any, batches: Iterable[PyTree], call: Call | None = None
) -> dict[str, Float[Array, "*layers k k"]]:
    r"""The Gram matrices `X^T X` of the inputs of every linear kernel, summed over tokens.

    The input of `sj.masks.wanda` and `sj.recipes.sparsegpt`; the diagonal holds the squared norms
    of the inputs. Covers the layers registered with `sj.nn.linear_layer` (linear layers and
    convolutions of Flax NNX, Linen and Equinox, and their subclasses), under `nnx.scan` and
    `nnx.vmap` with a leading axis for the layers, and every `sj.nn.observe` of a function.

    Args:
      model: An NNX, Linen or Equinox module, or a function; it is not changed.
      batches: Inputs, each passed to the model as one argument; few distinct shapes avoid
        recompilation. An Equinox module is mapped over their first axis.
      call: How a batch is passed to the model: `lambda model, batch: model(*batch)`; for a Linen
        module `lambda model, batch: model.apply(variables, batch)`.

    Returns:
      Gram matrices in float32 (or wider) by the path of the kernel, in the order in which the
      layers run.

    Raises:
      ValueError: If `batches` is empty, or no linear layer of the model ran.
      TypeError: If the model does not take a batch that is a tuple, list or dict, and `call` is not
        given.

    Reference:
      Sun et al., 2023 (arXiv 2306.11695); Frantar and Alistarh, 2023 (arXiv 2301.00774).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> sj.nn.input_grams(model, [jnp.array([[1.0, 2.0], [3.0, 0.0]])])["kernel"].tolist()
      [[10.0, 2.0], [2.0, 4.0]]
    """
    grams_of = of_framework(compiled_grams, model)(model, call)
    total: dict[str, Array] = {}
    for batch in batches:
        try:
            found = grams_of(batch)
        except (TypeError, ValueError, AttributeError) as error:
            _check_batch(error, batch, call)
            raise
        total |= {name: total[name] + x if name in total else x for name, x in found.items()}
    if not total:
        raise ValueError(
            "input_grams: no linear layer ran; pass at least one batch to a model with layers such "
            "as nnx.Linear, or call sj.nn.observe(path, x) in the forward pass."
        )
    return total


@functools.singledispatch
def compiled_grams(model: Any, call: Call | None) -> Callable[[Any], Grams]:
    """A function from a batch to Gram matrices, by framework (jitted if possible)."""
    return lambda batch: grams_of(model, batch, call)


def grams_of(model: Any, batch: Any, call: Call | None) -> Grams:
    """The Gram matrices of one batch by the path of the kernel, in the order of execution."""
    kernels: dict[str, str] = {}

    def choose(path: str, module: Any) -> Any:
        if module is None:  # recorded by observe
            return lambda inputs, output: gram(rows_of(inputs[0], (-1,)))
        layer = linear_layer(module)
        if layer is None:
            return None
        kernels[path] = "/".join(filter(None, (path, layer.path)))
        return lambda inputs, output: gram(layer.rows(inputs[0]))

    recorder = Recorder(jnp.add, product_class)
    with observing(recorder, choose):
        run = of_framework(run_recording, model)
        found: dict[str, Array] = run(model, choose, recorder, call, (batch,), {})[1]
    # jit sorts a plain dict by name.
    return OrderedDict((kernels.get(path, path), value) for path, value in found.items())


def _check_batch(error: Exception, batch: Any, call: Call | None) -> None:
    """Re-raises the model's error on tuple batches with a hint."""
    if call is not None or not isinstance(batch, tuple | list | dict):
        return
    first = next(iter(batch)) if isinstance(batch, dict) else 0
    raise TypeError(
        f"input_grams: the model was called with a batch that is a {type(batch).__name__} of "
        f"{len(batch)}; pass the call as call=lambda model, batch: model(batch[{first!r}])."
    ) from error


def gram(rows: Float[Array, "tokens k"]) -> Float[Array, "k k"]:
    """`X^T X` in at least float32."""
    wide = rows.astype(wide_dtype(rows))
    return jnp.matmul(wide.T, wide, precision=jax.lax.Precision.HIGHEST)
