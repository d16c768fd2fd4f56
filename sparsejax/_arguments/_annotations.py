"""Checks of all arguments of a function by their annotations, before anything is traced."""

# Annotations are values here, of which pyright knows no type.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PyTree, Shaped

from .._tree import is_array, is_variable
from ._functions import check_optimizer
from ._numbers import is_int, known

F = TypeVar("F", bound=Callable[..., Any])
Test = Callable[[Any], bool]


def checked(**intervals: str) -> Callable[[F], F]:
    """Decorates a function, or a class, to raise for arguments that do not fit their annotations.

    The error names the function and the argument. `intervals` gives the numbers that an argument
    may hold, such as `rounds="[1, inf)"`, in which NaN never is, or how a function is called,
    such as `smooth="smooth(w)"`, or an example, such as `rules="sj.NM(2, 4)"`. Traced values and
    schedules are not compared with an interval, nor is None where it is the default. NNX variables
    and lists become arrays where those are wanted.
    """

    def decorate(function: Any) -> Any:
        call = function.__init__ if inspect.isclass(function) else function
        name_of = function.__qualname__.removesuffix(".__init__")
        signed = functools.cache(lambda: _tests(call, intervals))

        @functools.wraps(call)
        def check(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            signature, by_name, axes = signed()
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name_of}: {error}.") from None
            given = bound.arguments
            for name, value in given.items():
                tests = by_name.get(name, ())
                if is_variable(value) and not _fits_all(tests, value):
                    value = given[name] = value.get_value()
                for fits, wanted in tests:
                    if not fits(value):
                        verb = "" if wanted.startswith("come ") else "be "
                        kind = ValueError if _is_value(wanted) or _is_nan(value) else TypeError
                        what = f"{name_of}: {name} must {verb}{wanted}"
                        raise kind(f"{what}, got {_text(value)}.")
                if name in axes and isinstance(value, list | tuple):
                    given[name] = jnp.asarray(value)
            _check_lengths(name_of, given, axes)
            return call(*bound.args, **bound.kwargs)

        if inspect.isclass(function):
            function.__init__ = check
            return function
        check.__wrapped__ = inspect.unwrap(call)  # below other checks of types, as of a test
        return check

    return decorate


def _fits_all(tests: Iterable[tuple[Test, str]], value: Any) -> bool:
    return all(fits(value) for fits, _ in tests)


def _is_value(wanted: str) -> bool:
    """Whether the value is wrong, or the shape, and not the type."""
    return wanted.startswith("a number in") or "of shape" in wanted or "one of" in wanted


def _text(value: Any) -> str:
    if is_array(value) and np.ndim(value):
        return f"an array {value.dtype} of shape {np.shape(value)}"
    return f"{value!r:.80}"


def _tests(function: Any, intervals: Mapping[str, str]) -> Any:
    """The signature, and for each argument the tests, the text of what each wants, its axes."""
    signature = inspect.signature(function)
    by_name: dict[str, list[tuple[Test, str]]] = {}
    axes: dict[str, list[str]] = {}
    for name, parameter in signature.parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        annotation = None if variadic else parameter.annotation
        annotation = jax.random.key if name == "key" else annotation
        tests = [found] if (found := _test_of(annotation)) else []
        given = "callback(progress)" if name == "callback" else intervals.get(name, "")
        if given.startswith(f"{name}("):
            takes = functools.partial(_takes, many=given.count(",") + 1)
            tests = [_KINDS[Callable], (takes, f"called as {given}")]
        elif given and given[0] not in "[(":
            tests = [(fits, f"{text}, {given} for example") for fits, text in tests]
        elif name in intervals:
            tests.append(
                (
                    _within(intervals[name], _has_several(annotation)),
                    f"a number in {intervals[name]}",
                )
            )
        elif annotation is float:
            tests.append((lambda x: not _is_nan(x), "a number"))
        if parameter.default is None or type(None) in typing.get_args(annotation):
            tests = [(lambda x, fits=fits: x is None or fits(x), text) for fits, text in tests]
        by_name[name] = tests
        axes |= {name: words} if (words := _axes_of(annotation)) else {}
    return signature, by_name, axes


def _check_lengths(name_of: str, given: Mapping[str, Any], axes: Mapping[str, list[str]]) -> None:
    """Raises if an axis that two arguments have by name differs in length."""
    seen: dict[str, tuple[Any, str]] = {}
    for name, words in axes.items():
        if given.get(name) is not None:
            for axis, length in (_lengths(words, np.shape(given[name])) or {}).items():
                first, other = seen.setdefault(axis, (length, name))
                if first != length:
                    shapes = f"{np.shape(given[name])} and {other} {np.shape(given[other])}"
                    raise ValueError(
                        f"{name_of}: {name} {shapes} must agree in the axis {axis!r} of "
                        f"{name} ({', '.join(words)}) and {other} ({', '.join(axes[other])})."
                    )


def _test_of(annotation: Any) -> tuple[Test, str] | None:
    """A test of values by an annotation, and what it wants; None for no test."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _test_of_union(of)
    if origin is Literal:
        return lambda x: (x is None or isinstance(x, str)) and x in of, _one_of(of)
    if origin is Callable and of and isinstance(of[0], list):
        many = len(of[0])
        text = f"a function of {many} argument{'s' * (many > 1)}"
        return lambda x: callable(x) and _takes(x, many), text
    if origin in _KINDS:
        fits, text = _KINDS[origin]
        if origin is tuple and of[-1] is not Ellipsis:
            return _test_of_tuple(of)
        inner = _test_of(of[-1 if origin is Mapping else 0]) if of and origin in _HOLDERS else None
        if inner is None:
            return fits, text
        each = f"{text}{' with values that are' if origin is Mapping else ', each'} {inner[1]}"
        return lambda x: fits(x) and all(map(inner[0], _held(x))), each
    if isinstance(annotation, type) and annotation.__module__.startswith(("sparsejax", "flax")):
        name = annotation.__name__
        return lambda x: isinstance(x, annotation), f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    return _test_of_array(annotation) if isinstance(annotation, _ANNOTATED) else None


def _held(x: Any) -> Iterable[Any]:
    """The elements of a container that can be read more than once."""
    if isinstance(x, Mapping):
        return x.values()
    return x if isinstance(x, Sequence) else ()


def _test_of_tuple(of: tuple[Any, ...]) -> tuple[Test, str]:
    tests = [_test_of(x) or (lambda x: True, "any value") for x in of]
    texts = dict.fromkeys(text for _, text in tests)

    def fits(x: Any) -> bool:
        whole = _is_sequence(x) and len(x) == len(of)
        return whole and all(test(y) for (test, _), y in zip(tests, x))

    return fits, f"a tuple of {len(of)}: {' and '.join(texts)}"


def _test_of_union(of: tuple[Any, ...]) -> tuple[Test, str] | None:
    if any(isinstance(x, _ANNOTATED) for x in of):  # Shaped[ArrayLike, "..."]
        of = tuple(x for x in of if x not in _NUMERIC)
    if {jax.Array, np.ndarray} <= set(of):  # the parts of jax.typing.ArrayLike
        of = (jax.Array, *(x for x in of if x is type(None) or x not in _NUMERIC))
    if _DTYPE_LIKE <= set(of):
        of = (np.dtype, *(x for x in of if x not in _DTYPE_LIKE))
    tests = [_test_of(x) for x in of]
    if None in tests:
        return None
    every = [*dict.fromkeys(text for _, text in tests)]  # pyright: ignore[reportGeneralTypeIssues]
    texts = [x for x in every if not any(other.startswith(f"{x} or ") for other in every)]
    return lambda x: any(fits(x) for fits, _ in tests), " or ".join(texts)  # pyright: ignore


def _test_of_array(annotation: Any) -> tuple[Test, str]:
    words = annotation.dim_str.split()
    kind = next((k for name, k in _DTYPES.items() if annotation.__name__.startswith(name)), None)
    text = f"an array of {kind[1]}" if kind else "an array"

    def fits(x: Any) -> bool:
        if not _is_numeric(x) or (kind and not jnp.issubdtype(jnp.result_type(_array(x)), kind[0])):
            return False
        return _lengths(words, np.shape(x)) is not None

    return fits, text if len(words) == 1 and _is_free(words[0]) else (
        f"{text} of shape ({', '.join(words)})"
    )


def _is_free(word: str) -> bool:
    """Whether a word of a shape matches any number of axes."""
    return word == "..." or word.startswith("*")


def _lengths(words: Sequence[str], shape: tuple[Any, ...]) -> dict[str, Any] | None:
    """The length of each named axis; None if a shape does not fit the words of an annotation."""
    free = next((i for i, word in enumerate(words) if _is_free(word)), None)
    fixed = len(words) - (free is not None)
    if len(shape) < fixed or (free is None and len(shape) > fixed):
        return None
    after = [] if free is None else words[:free:-1]
    found: dict[str, Any] = {}
    if free is not None and words[free].startswith("*"):
        found[words[free]] = shape[free : len(shape) - len(after)]
    for word, length in (*zip(words[:free], shape), *zip(after, shape[::-1])):
        if word.isdigit() and int(word) != length:
            return None
        if word.isidentifier() and word[0] != "_" and found.setdefault(word, length) != length:
            return None
    return found


def _axes_of(annotation: Any) -> list[str] | None:
    """The words of the shape of an argument that is an array; None for other arguments."""
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    of = typing.get_args(annotation) if union else (annotation,)
    shapes = {x.dim_str if isinstance(x, _ANNOTATED) else "" for x in of if x is not type(None)}
    return shapes.pop().split() if len(shapes) == 1 else None


def _array(x: Any) -> Any:
    return x if is_array(x) else np.asarray(x)


def _one_of(of: Sequence[Any]) -> str:
    return "one of " + ", ".join(map(repr, of))


def _is_numeric(x: Any) -> bool:
    """Whether `x` is a number, an array of numbers, or nested sequences of them."""
    if isinstance(x, list | tuple) and not any(isinstance(y, str) for y in x):
        try:
            x = np.asarray(x)
        except (TypeError, ValueError):
            return False
    if isinstance(x, bool | int | float | complex):
        return True
    return is_array(x) and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)


def _is_scalar(x: Any, kind: Any) -> bool:
    return is_array(x) and np.ndim(x) == 0 and jnp.issubdtype(x.dtype, kind)


def _is_real(x: Any) -> bool:
    plain = isinstance(x, int | float) and not isinstance(x, bool)
    return plain or _is_scalar(x, jnp.integer) or _is_scalar(x, jnp.floating)


def _is_nan(x: Any) -> bool:
    return _is_real(x) and known(x) and math.isnan(x)


def _is_tree(x: Any) -> bool:
    """Whether the leaves are arrays, or parts of modules, and not words or unknown objects."""
    leaves = jax.tree.leaves(x)
    function = callable(x) and len(leaves) == 1 and leaves[0] is x
    # Modules may hold a name among their arrays.
    words = bool(leaves) and all(type(leaf) in (str, bytes, object) for leaf in leaves)
    plain = isinstance(x, list | tuple | dict)
    words |= plain and any(type(leaf) in (str, bytes, object) for leaf in _plain_leaves(x))
    return x is not None and not words and (isinstance(x, nnx.Module) or not function)


def _plain_leaves(x: Any) -> list[Any]:
    """The leaves of lists, tuples and dicts; other containers are leaves."""
    return jax.tree.leaves(x, is_leaf=lambda y: not isinstance(y, list | tuple | dict))


def _is_sequence(x: Any) -> bool:
    words = isinstance(x, str | bytes)
    return (isinstance(x, Sequence) and not words) or (is_array(x) and np.ndim(x) > 0)


def _is_optimizer(x: Any) -> bool:
    try:
        check_optimizer("", x)
    except TypeError:
        return False
    return True


def _is_dtype(x: Any) -> bool:
    try:
        return x is not None and jnp.dtype(x).kind != "O"
    except TypeError:
        return False


def _takes(function: Any, many: int) -> bool:
    """Whether a function takes so many positional arguments, as far as is known."""
    try:
        inspect.signature(function).bind(*range(many))
    except ValueError:  # builtins have no signature
        return True
    except TypeError:
        return False
    return True


def _is_key(x: Any) -> bool:
    if not isinstance(x, jax.Array | np.ndarray):
        return False
    typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and x.shape == ()
    return typed or (x.dtype == np.uint32 and x.ndim == 1)


def _has_several(annotation: Any) -> bool:
    parts = {typing.get_origin(x) for x in (annotation, *typing.get_args(annotation))}
    return bool(parts & {Sequence, tuple})


def _within(interval: str, several: bool) -> Test:
    """A test whether a known number, or each of several, is in an interval such as "[0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    above = np.greater_equal if interval[0] == "[" else np.greater
    below = np.less_equal if interval[-1] == "]" else np.less

    def fits(x: Any) -> bool:
        if callable(x) or isinstance(x, Tracer):
            return True
        if several and _is_sequence(x):
            return all(map(fits, x))
        return _is_real(x) and bool(above(x, low) & below(x, high))

    return fits


_ANNOTATED = type(Shaped[jax.Array, "..."])
_DTYPES = {"Int": (jnp.integer, "integers"), "Bool": (bool, "booleans")}
_HOLDERS = (Sequence, tuple, list, Iterable, Mapping)
_DTYPE_LIKE = set(typing.get_args(DTypeLike))
_NUMERIC = {jax.Array, np.ndarray, np.bool_, np.number, bool, int, float, complex}
_ARRAY = (_is_numeric, "a number or an array")
_KINDS: dict[Any, Any] = {
    bool: (lambda x: isinstance(x, bool | np.bool_) or _is_scalar(x, bool), "True or False"),
    int: (lambda x: is_int(x) or _is_scalar(x, jnp.integer), "an integer"),
    float: (_is_real, "a number"),
    str: (lambda x: isinstance(x, str), "a string"),
    type(None): (lambda x: x is None, "None"),
    type: (lambda x: isinstance(x, type), "a class"),
    np.dtype: (_is_dtype, "a dtype, jnp.float32"),
    jax.Array: _ARRAY,
    np.ndarray: _ARRAY,
    np.number: _ARRAY,
    jax.random.key: (_is_key, "come from jax.random.key(0)"),
    Callable: (callable, "a function"),
    Sequence: (_is_sequence, "a sequence"),
    tuple: (_is_sequence, "a tuple"),
    list: (_is_sequence, "a list"),
    Mapping: (lambda x: isinstance(x, Mapping), "a mapping"),
    Mesh: (lambda x: isinstance(x, Mesh), 'a mesh, jax.make_mesh((8,), ("fsdp",))'),
    Iterable: (
        lambda x: isinstance(x, Iterable) and not isinstance(x, str | Mapping),
        "an iterable",
    ),
    os.PathLike: (lambda x: isinstance(x, os.PathLike), "a path"),
    PyTree: (_is_tree, "a tree of arrays"),
    optax.GradientTransformation: (_is_optimizer, "an optimizer, optax.adamw(1e-3)"),
}
