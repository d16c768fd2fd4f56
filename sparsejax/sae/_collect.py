"""Activations of a model at one place: streamed by taps, with the gradient of the model's loss."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._arguments import check_one, checked
from ..nn import record, replace

Call = Callable[..., Any]


@checked()
def collect(
    model: Any,
    where: str,
    batches: Iterable[Any],
    *,
    keep: Callable[[Any], Any] | None = None,
    call: Call | None = None,
    transcoder: bool = False,
) -> Iterator[Any]:
    """The activations at one place of a model, one array `(tokens, d)` for each batch.

    The output of a module, the first one if it returns a tuple, as decoder layers do.
    A generator: the model runs when the next array is wanted.

    Args:
      model: As for `sj.nn.record`.
      where: Regular expression over the paths of modules that matches one module.
      batches: Inputs of the model; a tuple holds several.
      keep: Function of a batch that returns the mask of its tokens, without padding; None for all.
      call: As for `sj.nn.record`.
      transcoder: Whether to give dicts of `x`, the first input of the module, and `target`, its
        output: the data of a transcoder.

    Raises:
      ValueError: If several modules match.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> batches = [jnp.ones((2, 5, 4))] * 2
      >>> [x.shape for x in sj.sae.collect(model, "layers/0$", batches)]
      [(10, 3), (10, 3)]
    """
    pair = lambda inputs, y: {"x": first_input(inputs), "target": first(y)}  # noqa: E731
    reduce = pair if transcoder else lambda inputs, y: first(y)
    run = jax.jit(lambda *inputs: site(model, where, *inputs, call=call, reduce=reduce))
    for batch in batches:
        found = run(*(batch if isinstance(batch, tuple) else (batch,)))
        kept = slice(None) if keep is None else np.asarray(keep(batch)).ravel()
        yield jax.tree.map(lambda y: np.asarray(y).reshape(-1, y.shape[-1])[kept], found)  # noqa: B023


def site(
    model: Any, where: str, *inputs: Any, call: Call | None = None,
    reduce: Callable[[tuple[Any, ...], Any], Any] = lambda inputs, y: first(y),
) -> Any:  # fmt: skip
    """The output of the one module that matches, or another value of it."""
    _, values = record(model, where, *inputs, call=call, reduce=reduce)
    if len(values) > 1:
        raise ValueError(
            f"sae: where={where!r} must match one module, got {', '.join(values)}; end the "
            "expression with $."
        )
    return next(iter(values.values()))


def first(y: Any) -> Array:
    """The activation: the output of a module, or the first of several, as of a decoder layer."""
    return y[0] if isinstance(y, tuple) else y


def first_input(inputs: tuple[Any, ...]) -> Array:
    """The first input of a module, which a transcoder reads."""
    if not inputs:
        raise ValueError(
            "sae: a transcoder reads the first positional input of the module, which is called "
            "with keyword arguments only; choose another module."
        )
    return first(inputs[0])


def with_first(y: Any, changed: Array) -> Any:
    """The output of a module with another activation."""
    return (changed, *y[1:]) if isinstance(y, tuple) else changed


@checked(loss="loss(output)")
def gradients(
    model: Any, where: str, loss: Callable[[Any], Any], *inputs: Any, call: Call | None = None
) -> tuple[Float[Array, "*n d"], Float[Array, "*n d"]]:
    r"""The activations x at one place and the gradient dL/dx there, for `GradientTopK`.

    One forward pass, and a backward pass through the layers behind the place only. Sum the loss
    over positions, so that a gradient does not depend on the length of the sequence; a mean over n
    positions must be multiplied by n. The gradient depends on the labels.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules that matches one module.
      loss: Function of the output of the model that returns a scalar.
      *inputs: Inputs of the model.
      call: Calls the model, `lambda model, *inputs: model(*inputs)` by default.

    Returns:
      x and the gradient, of one shape.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), lambda y: y**2)
      >>> x, grad = sj.sae.gradients(model, "layers/0$", jnp.sum, jnp.ones((1, 2)))
      >>> bool(jnp.allclose(grad, 2 * x))
      True
    """
    shape = jax.eval_shape(lambda *inputs: site(model, where, *inputs, call=call), *inputs)
    call = (lambda model, *inputs: model(*inputs)) if call is None else call

    def shifted(shift):
        seen = []

        def tap(path, inner, *args, **kwargs):
            y = inner(*args, **kwargs)
            seen.append(first(y))
            return with_first(y, seen[-1] + shift)

        output = call(replace(model, {where: tap}), *inputs)
        return check_one("gradients: loss", loss(output)), seen[0]

    return jax.grad(shifted, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))[::-1]
