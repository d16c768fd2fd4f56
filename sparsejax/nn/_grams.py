"""What goes into each kernel of a model: Gram matrices of the inputs over calibration data."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def input_grams(
    model: nnx.Module,
    batches: Iterable[Any],
    call: Callable[[Any, Any], Any] | None = None,
) -> dict[str, Float[Array, "k k"]]:
    r"""The Gram matrices `X^T X` of the inputs of every linear kernel, summed over tokens.

    What `sj.masks.wanda` and `sj.recipes.sparsegpt` need; the diagonal holds the squared norms of
    the inputs. Covers `nnx.Linear`, `nnx.LinearGeneral` (hence attention) and `nnx.Einsum` that
    multiply with their stock `dot_general` or `einsum_op`, outside of `nnx.scan` and `nnx.vmap`.

    Args:
      model: An NNX module; it is not changed.
      batches: Inputs, each given to the model as one argument, of few different shapes.
      call: How a batch is given to the model, `lambda model, batch: model(*batch)` for example.

    Returns:
      Gram matrices in float32 (or wider) by the path of the kernel, in the order in which the
      layers run.

    Raises:
      ValueError: If there are no batches, or no linear layer of the model ran.
      TypeError: If the model does not take a batch that is a tuple, list or dict, and `call` does
        not say what it gets.

    Reference:
      Sun et al., 2023 (arXiv 2306.11695); Frantar and Alistarh, 2023 (arXiv 2301.00774).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> sj.nn.input_grams(model, [jnp.array([[1.0, 2.0], [3.0, 0.0]])])["kernel"].tolist()
      [[10.0, 2.0], [2.0, 4.0]]
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"input_grams takes an NNX module, got a {type(model).__name__}; for others make a "
            "dict {path of the kernel: X^T X} of the inputs X yourself."
        )
    graphdef, state = nnx.split(model)
    order: list[str] = []

    @jax.jit
    def grams_of(state, batch):
        copy = nnx.merge(graphdef, state)
        found: dict[str, Array] = {}
        for path, layer in nnx.iter_modules(copy):
            _listen(layer, "/".join(map(str, (*path, "kernel"))), found)
        _ = copy(batch) if call is None else call(copy, batch)
        order.extend(name for name in found if name not in order)  # jit returns them by name
        return found

    total: dict[str, Array] = {}
    for batch in batches:
        grams = _told(grams_of, state, batch, call)
        total |= {n: total[n] + grams[n] if n in total else grams[n] for n in order if n in grams}
    if not total:
        raise ValueError(
            "input_grams: no linear layer ran; give at least one batch to a model with nnx.Linear, "
            "nnx.LinearGeneral or nnx.Einsum layers."
        )
    return total


def _told(grams_of: Callable[..., Any], state: Any, batch: Any, call: Any) -> dict[str, Array]:
    """The Gram matrices of a batch; what the model says of several arrays at once, in our words."""
    try:
        return grams_of(state, batch)
    except (TypeError, ValueError, AttributeError) as error:
        if call is not None or not isinstance(batch, tuple | list | dict):
            raise
        first = next(iter(batch)) if isinstance(batch, dict) else 0
        raise TypeError(
            f"input_grams: the model was given a batch that is a {type(batch).__name__} of "
            f"{len(batch)}; say what it gets of it: call=lambda model, batch: "
            f"model(batch[{first!r}])."
        ) from error


def _listen(layer: Any, name: str, found: dict[str, Array]) -> None:
    """Makes a layer of this copy add up the Gram matrix of what it multiplies."""

    def add(matrix):
        wide = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        gram = jnp.matmul(wide.T, wide, precision=jax.lax.Precision.HIGHEST)
        found[name] = found[name] + gram if name in found else gram

    if isinstance(layer, nnx.Linear | nnx.LinearGeneral):
        made = getattr(layer, "dot_general_cls", None)
        multiply = made() if made is not None else layer.dot_general or jax.lax.dot_general

        def dot_general(x, kernel, dimensions, *args, **kwargs):
            axes, batch = dimensions[0][0], dimensions[1][0]
            if not batch:
                others = [a for a in range(x.ndim) if a not in axes]
                width = _size(x.shape, axes)
                add(x.transpose(*others, *axes).reshape(-1, width))
            return multiply(x, kernel, dimensions, *args, **kwargs)

        layer.dot_general = dot_general
        if isinstance(layer, nnx.LinearGeneral):
            layer.dot_general_cls = None
    elif isinstance(layer, nnx.Einsum):
        einsum = layer.einsum_op

        def einsum_op(equation, x, kernel, *args, **kwargs):
            left, rest = equation.replace(" ", "").split(",")
            right, out = rest.split("->")
            if "." not in equation:
                axes = [left.index(c) for c in right if c in left and c not in out]
                others = [a for a in range(x.ndim) if a not in axes]
                add(x.transpose(*others, *axes).reshape(-1, _size(x.shape, axes)))
            return einsum(equation, x, kernel, *args, **kwargs)

        layer.einsum_op = einsum_op


def _size(shape: tuple[int, ...], axes: Iterable[int]) -> int:
    """Number of entries along axes."""
    size = 1
    for axis in axes:
        size *= shape[axis]
    return size
