"""Taps of Linen modules by interception, and compressed Linen parameters."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen

from ..formats import Matrix
from ..kernels import matmul
from ._linear_layer import (
    LinearLayer,
    linear_layer,
    patches,
    product_class,
    promote,
    rows_of,
)
from ._taps import Choose, Kind, Recorder, outermost, run_recording, with_taps

COLLECTION = "sparsejax"


class Intercepted:
    """A Linen module whose calls are intercepted; it has the module's `apply` and attributes."""

    def __init__(self, module: linen.Module, interceptor: Callable[..., Any]):
        self.module, self.interceptor = module, interceptor

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """`module.apply` with the taps."""
        with linen.intercept_methods(self.interceptor):
            return self.module.apply(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def linen_compressed(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    r"""Interceptor that runs `linen.Dense` and `DenseGeneral` with compressed kernels.

    Use `with flax.linen.intercept_methods(sj.nn.linen_compressed): model.apply(variables, x)`,
    where the kernels of the variables were compressed by `sj.compress`.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import linen
      >>> model, x = linen.Dense(4), jnp.ones((2, 8))
      >>> variables = model.init(jax.random.key(0), x)
      >>> small = sj.compress(variables, sj.plan(variables, sj.NM(2, 4)))
      >>> with linen.intercept_methods(sj.nn.linen_compressed):
      ...     model.apply(small, x).shape
      (2, 4)
    """
    module = context.module
    if isinstance(module, linen.Dense | linen.DenseGeneral) and _is_call(context, product_class):
        kernel = module.get_variable("params", "kernel")
        if isinstance(kernel, Matrix):
            return _multiplied(module, kernel, *args, **kwargs)
    elif context.method_name == "__call__" and isinstance(_kernel(module), Matrix):
        raise NotImplementedError(
            f"{_path(context)}: linen.{type(module).__name__} cannot run with a compressed kernel, "
            "only Dense and DenseGeneral can; compress with a plan that leaves it out, by a rule "
            f"{{r'{_path(context)}/': None}} before the others."
        )
    return next_fun(*args, **kwargs)


def _kernel(module: Any) -> Any:
    """The kernel of a bound module, None if it has none."""
    return module.get_variable("params", "kernel") if module.scope is not None else None


def _multiplied(module: Any, kernel: Matrix, inputs: Any) -> Any:
    bias = module.get_variable("params", "bias")
    inputs, kernel, bias = promote((inputs, kernel, bias), dtype=module.dtype)
    axes, features = _axes(module)
    if getattr(module, "batch_dims", ()):
        raise NotImplementedError(
            f"{type(module).__name__} with batch_dims={module.batch_dims} cannot run with a "
            "compressed kernel; exclude it from the plan by a rule: None."
        )
    axes = tuple(a % inputs.ndim for a in axes)
    others = tuple(a for a in range(inputs.ndim) if a not in axes)
    flat = inputs.transpose(others + axes).reshape(*(inputs.shape[a] for a in others), -1)
    y = matmul(flat, kernel, precision=module.precision)
    y = y.reshape(*y.shape[:-1], *features)
    return y if bias is None else y + jnp.asarray(bias, y.dtype)


def _axes(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The contracted axes of the input, and the output features."""
    axis = getattr(module, "axis", -1)
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    features = module.features
    return tuple(axes), tuple(features) if isinstance(features, tuple | list) else (features,)


@linear_layer.register
def _(layer: linen.Dense) -> LinearLayer | None:
    return LinearLayer("kernel", 2, (0,), lambda x: rows_of(x, (-1,)))


@linear_layer.register
def _(layer: linen.DenseGeneral) -> LinearLayer | None:
    axes, features = _axes(layer)
    if layer.batch_dims:
        return None
    contraction = tuple(range(len(axes)))
    return LinearLayer("kernel", len(axes) + len(features), contraction, lambda x: rows_of(x, axes))


@linear_layer.register
def _(layer: linen.Conv) -> LinearLayer | None:
    window = layer.kernel_size if isinstance(layer.kernel_size, tuple | list) else None
    if window is None or layer.feature_group_count != 1 or not isinstance(layer.padding, str):
        return None
    size = len(window)
    return LinearLayer(
        "kernel",
        size + 2,
        tuple(range(size + 1)),
        lambda x: patches(x, tuple(window), layer.strides, layer.padding, layer.kernel_dilation),
    )


def _path(context: Any) -> str:
    return "/".join(context.module.path)


def _is_call(context: Any, kind: Kind) -> bool:
    """Whether the intercepted method is the call of the class that is tapped."""
    called, cls = context.orig_method.func, kind(type(context.module))
    return inspect.unwrap(called) is inspect.unwrap(cls.__call__)


@with_taps.register(linen.Module)
def _(model: Any, choose: Choose, wheres: tuple[str, ...]) -> Intercepted:
    del wheres  # Linen modules are only known when they run

    def interceptor(next_fun, args, kwargs, context):
        tap = choose(_path(context), context.module) if _is_call(context, outermost) else None
        if tap is None:
            return next_fun(*args, **kwargs)
        return tap(_path(context), next_fun, *args, **kwargs)

    return Intercepted(model, interceptor)


@run_recording.register(linen.Module)
def _(model: Any, choose: Any, recorder: Recorder, call: Any, args: Any, kwargs: Any):
    def interceptor(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        reduce = choose(_path(context), context.module)
        if reduce is not None and _is_call(context, recorder.kind):
            recorder.add(_path(context), reduce(args, y))
        return y

    intercepted = Intercepted(model, interceptor)
    run = intercepted.apply if call is None else functools.partial(call, intercepted)
    return run(*args, **kwargs), recorder.values
