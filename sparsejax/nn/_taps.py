"""Taps: record and replace the calls of modules, in every framework, under jit, grad and vmap."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax.extend
from jaxtyping import PyTree

from .._arguments import checked
from .._tree import expression
from ._frameworks import of_framework

# Called with the path of a module, the module's own call, and the inputs of the call.
Tap = Callable[..., Any]
# Called with the path and the module; returns the tap of the module, or None.
Choose = Callable[[str, Any], Tap | None]
Reduce = Callable[[tuple[Any, ...], Any], Any]
# The class, among the bases of a module's class, whose call is tapped.
Kind = Callable[[type], type]


def outermost(cls: type) -> type:
    """Taps the call of the module's own class."""
    return cls


class Recorder:
    """The values of one recording by path."""

    def __init__(self, combine: Callable[[Any, Any], Any] | None, kind: Kind = outermost):
        self.combine, self.kind = combine, kind
        self.values: dict[str, Any] = {}
        self.order: list[str] = []
        self.trace = trace_state()

    def add(self, path: str, value: Any) -> None:
        """Records a value; raises if it cannot leave the transformation that computes it."""
        if trace_state() != self.trace:
            raise kept_inside(path)
        self.values[path] = self.merged(path, self.values.get(path, _MISSING), value)
        self.order.append(path)

    def merged(self, path: str, old: Any, new: Any) -> Any:
        """Combines the value with that of an earlier run of the module."""
        if old is _MISSING:
            return new
        if self.combine is None:
            raise ValueError(
                f"record: {path} runs several times in one call; pass combine=, for example "
                "combine=jnp.add, or record another module."
            )
        return self.combine(old, new)


def kept_inside(path: str) -> TypeError:
    """The error for a value that cannot leave the transformation in which it is computed."""
    return TypeError(
        f"record: {path or 'the model'} runs inside jax.lax.scan, jax.jit or another "
        "transformation that its values cannot leave. With NNX use nnx.scan or nnx.vmap over "
        "layers, which give one record per layer; elsewhere run the layers in a Python loop."
    )


_MISSING = object()
_active: ContextVar[tuple[Recorder, Choose] | None] = ContextVar("recorder", default=None)


def trace_state() -> Any:
    """An opaque value that is equal only inside the same transformation."""
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


@checked()
def record(
    model: Any,
    where: str,
    *args: Any,
    reduce: Reduce | None = None,
    combine: Callable[[Any, Any], Any] | None = None,
    call: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, PyTree]]:
    r"""Runs a model and records values of some of its modules.

    A pure function: the model is not changed, and it can be jitted, differentiated and vmapped.
    Modules under `nnx.scan` and `nnx.vmap` return one value with a leading axis for the layers.

    Args:
      model: An NNX module, a Linen module, an Equinox module, a container of them with `call`, or
        a function whose forward pass calls `sj.nn.observe`.
      where: Regular expression over the paths of modules (`re.search`), such as `r"mlp$"`.
      *args: Inputs of the model; for a Linen module variables and inputs, as for `apply`.
      reduce: Function `(inputs, output)` that returns the recorded value; None records the output.
      combine: Function of two values for a module that runs several times; None raises.
      call: Calls the model, `lambda model, *args: model(*args)` by default.
      **kwargs: Keyword arguments of the model.

    Returns:
      The output of the model, and the values by path, in the order in which the modules ran.

    Raises:
      ValueError: If no module matches, or a module runs several times without `combine`.
      TypeError: If a value cannot leave the transformation in which it is computed.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> y, values = sj.nn.record(model, r"layers/0$", jnp.ones((3, 4)))
      >>> y.shape, {path: value.shape for path, value in values.items()}
      ((3, 2), {'layers/0': (3, 8)})
    """
    reduce = (lambda inputs, output: output) if reduce is None else reduce
    matches, recorder = expression("record: where", where).search, Recorder(combine)

    def choose(path: str, module: Any) -> Reduce | None:
        del module
        return reduce if matches(path) else None

    with observing(recorder, choose):
        run = of_framework(run_recording, model)
        y, values = run(model, choose, recorder, call, args, kwargs)
    if not values:
        raise ValueError(
            f"record: where={where!r} matches no module that ran; sj.nn.record(model, '', ...) all."
        )
    return y, values


@checked()
def replace(model: Any, taps: Mapping[str, Tap]) -> Any:
    r"""A copy of a model in which the calls of some modules are replaced.

    A tap `f(path, call, *inputs)` replaces the call of a module; `call(*inputs)` is the original
    call. Taps receive tracers under jit, grad and vmap, and the slice of one layer under `nnx.scan`
    and `nnx.vmap`.

    Args:
      model: An NNX module, a Linen module or an Equinox module; it is not changed.
      taps: Functions by regular expressions over the paths of modules (`re.search`); the first
        match applies.

    Returns:
      A model of the same framework; for a Linen module an object with its `apply`.

    Raises:
      ValueError: If an expression matches no module (if modules are known before they run).
      TypeError: If the framework of the model is not supported.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> def top2(path, call, x):
      ...     y = call(x)
      ...     return jnp.where(sj.select.TopK(2)(y), y, 0)
      >>> sparse = sj.nn.replace(model, {r"layers/0$": top2})
      >>> sparse(jnp.ones((3, 4))).shape
      (3, 2)
    """
    compiled = [(expression("replace: taps", where), tap) for where, tap in taps.items()]

    def choose(path: str, module: Any) -> Tap | None:
        del module
        return next((tap for where, tap in compiled if where.search(path)), None)

    return of_framework(with_taps, model)(model, choose, tuple(taps))


@checked()
def observe(path: str, x: Any) -> Any:
    """Returns x unchanged; a surrounding `sj.nn.record` records it under a path.

    The hook for models of other frameworks: call it in the forward pass on the input of a
    kernel, with the path of the kernel.

    Args:
      path: Name of the record, such as "blocks/0/mlp/kernel".
      x: An array.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> w = jnp.ones((2, 3))
      >>> forward = lambda x: sj.nn.observe("kernel", x) @ w
      >>> sj.nn.input_grams(forward, [jnp.array([[1.0, 2.0], [3.0, 0.0]])])["kernel"].tolist()
      [[10.0, 2.0], [2.0, 4.0]]
    """
    if active := _active.get():
        recorder, choose = active
        reduce = choose(path, None)
        if reduce is not None:
            recorder.add(path, reduce((x,), x))
    return x


@contextlib.contextmanager
def observing(recorder: Recorder, choose: Choose) -> Iterator[None]:
    """Within this context `observe` records values reduced by `choose(path, None)`."""
    token = _active.set((recorder, choose))
    try:
        yield
    finally:
        _active.reset(token)


@functools.singledispatch
def run_recording(
    model: Any, choose: Any, recorder: Recorder, call: Any, args: Any, kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Output and recorded values of a model, by framework. Functions use `observe` only."""
    del choose
    if not callable(model) and call is None:
        raise TypeError(
            f"record: model must be an NNX, Linen or Equinox module or a function, got a "
            f"{type(model).__name__}."
        )
    y = model(*args, **kwargs) if call is None else call(model, *args, **kwargs)
    return y, recorder.values


@functools.singledispatch
def with_taps(model: Any, choose: Choose, wheres: tuple[str, ...]) -> Any:
    """A copy with taps, by framework."""
    del choose, wheres
    raise TypeError(
        f"replace: model must be an NNX, Linen or Equinox module, got a {type(model).__name__}."
    )


def check_found(wheres: tuple[str, ...], paths: list[str]) -> None:
    """Raises if an expression matches no path."""
    for where in wheres:
        if not any(re.search(where, path) for path in paths):
            raise ValueError(
                f"replace: {where!r} matches no module; the modules are "
                f"{', '.join(filter(None, paths))}."
            )
