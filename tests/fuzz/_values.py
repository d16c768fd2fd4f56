"""Rows of the table, the bad values of each kind of argument, and what a call must do with them."""

import inspect
import re
import signal
import traceback
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy import inf, nan

import sparsejax as sj

from ._left import DOCUMENTED, PASSED_ON

WORDS = {"text": "text", "dict": {"a": 1.0}, "object": object()}
NOTHING = WORDS | {"None": None, "words": ["a"], "lambda": lambda x: x}


def _number(valid):
    return NOTHING | {
        "nan": nan, "-inf": -inf, "-1": -1.0, "complex": 1j, "vector": np.ones(7), "flag": True,
        "empty": [],
    }  # fmt: skip


def _count(valid):
    return NOTHING | {
        "nan": nan, "inf": inf, "-1": -1, "1.5": 1.5, "flag": True, "vector": np.ones(7, int),
        "huge": -(10**20), "empty": [],
    }  # fmt: skip


def _flag(valid):
    return WORDS | {"None": None, "nan": nan, "empty": [], "vector": np.ones(2, bool)}


def _choice(valid):
    return {"None": None, "text": "no such choice", "nan": nan, "1": 1, "empty": [], "dict": {}}


def _key(valid):
    return NOTHING | {"0": 0, "vector": np.ones(2), "nan": nan, "keys": jax.random.split(valid)}


def _function(valid):
    return WORDS | {"None": None, "nan": nan, "1": 1.0, "arity": lambda: 0.0}


def _array(valid):
    shape, dtype = np.shape(valid), np.asarray(valid).dtype
    bad = NOTHING | {"rank": np.ones((2, 1, *shape), dtype), "scalar": np.ones((), dtype)}
    if np.issubdtype(dtype, np.floating) and shape:
        one = np.zeros(shape, bool)
        one.flat[0] = True
        return bad | {"nan in": np.where(one, np.float32(nan), valid)}
    if np.issubdtype(dtype, np.integer) and shape:
        bad |= {"-1 in": valid - valid.max() - 1, "floats": valid * 0.5, "over": valid + 10**6}
    return bad


def _tree(valid):
    leaves = jax.tree.leaves(valid)
    bad = {"text": "text", "object": object(), "None": None, "lambda": lambda x: x}
    if not leaves or callable(leaves[0]):
        return bad
    if np.asarray(leaves[0]).dtype == object:
        return bad | {"words": {"a": "a"}, "numbers": {"a": 1.0}}
    dtype = jnp.result_type(leaves[0])
    bad |= {
        "other names": {"other": jnp.ones((3, 2), dtype)},
        "shapes": jax.tree.map(lambda x: jnp.ones((5, *np.shape(x)), dtype), valid),
        "words": jax.tree.map(lambda x: "a", valid),
    }
    flags = jnp.issubdtype(dtype, bool)
    return bad | ({"floats": jax.tree.map(lambda x: x * 0.5, valid)} if flags else {})


def _other(valid):
    """Values of one class: a plan, a pattern, a penalty, an optimizer, a format, a module."""
    return NOTHING | {"nan": nan, "1": 1, "class": type(valid), "vector": np.ones(3)}


def _sequence(valid):
    bad = WORDS | {"None": None, "nan": nan, "1": 1.0, "words": ["a"], "nan in": (nan, *valid[1:])}
    return bad | {"None in": (None, *valid[1:]), "object in": (object(), *valid[1:])}


def bad_values(valid: Any) -> dict[str, Any]:
    """The bad values for an argument of which `valid` is a valid one, by label."""
    if valid is None:
        return {"object": object()}
    if isinstance(valid, jax.Array) and jnp.issubdtype(valid.dtype, jax.dtypes.prng_key):
        return _key(valid)
    for kind, values in KINDS:
        if isinstance(valid, kind):
            return values(valid)
    return _function(valid) if callable(valid) else _other(valid)


KINDS = [
    (bool, _flag),
    (int, _count),
    (float, _number),
    (str, _choice),
    (jax.Array | np.ndarray, _array),
    (dict, _tree),
    (
        optax.GradientTransformation | sj.masks.Plan | sj.patterns.Pattern | sj.formats.Matrix
        | sj.prox.Penalty | sj.recipes.Progress | sj.select.ActiveSet,
        _other,
    ),
    (tuple | list, _sequence),
]  # fmt: skip


def listed(argument: str) -> set[str]:
    """The labels that `_left` lists for an argument, `function.argument`."""
    tables = [by_name for table in (DOCUMENTED, PASSED_ON) for by_name in table.values()]
    return {label for by_name in tables for label in by_name.get(argument, "").split(", ")}


@dataclass(frozen=True)
class Row:
    """A public callable, a valid call, and the bad values it takes by argument: "*" is each one."""

    function: Callable
    arguments: dict[str, Any]
    takes: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def cases(self) -> list[tuple[str, str, Any]]:
        """(argument, label, bad value) for each bad value that the argument does not take."""
        found = []
        for name in self.arguments:
            takes = self._taken(name) | listed(f"{self.name}.{name}")
            bad = bad_values(self.arguments[name])
            found += [(name, label, x) for label, x in bad.items() if label not in takes]
        return found

    def listed_cases(self) -> list[tuple[str, str, Any]]:
        """The same for the values that `_left` lists, by the same rules."""
        found = []
        for name in self.arguments:
            labels = listed(f"{self.name}.{name}") - self._taken(name)
            bad = bad_values(self.arguments[name])
            found += [(name, label, x) for label, x in bad.items() if label in labels]
        return found

    def _taken(self, name: str) -> set[str]:
        """The labels of values that are not bad, by the row and by the signature."""
        trees = sum(isinstance(x, dict) for x in self.arguments.values())
        takes = {*self.takes.get(name, "").split(", "), *self.takes.get("*", "").split(", ")}
        called = self.function.__init__ if inspect.isclass(self.function) else self.function
        parameter = inspect.signature(called).parameters[name]
        of = typing.get_args(parameter.annotation)
        takes |= {"None"} if parameter.default is None or type(None) in of else set()
        takes |= {"lambda"} if any(typing.get_origin(x) is Callable for x in of) else set()
        takes |= {"-1", "huge"} if name in ("axis", "outgoing_axis") else set()
        return takes | ({"other names", "shapes"} if trees < 2 or name == "params" else set())


def row(function, takes=None, /, **arguments):
    return Row(function, arguments, takes or {}, function.__name__)


def named(name, function):
    """A function that stands for a public one, under its name."""
    function.__name__ = name
    return function


# Two trees that do not fit: the leaf, or the argument that it does not fit, may be named.
_MISMATCHES = (
    "other names",
    "shapes",
    "words",
    "floats",
    "nan",
    "nan in",
    "rank",
    "scalar",
    "no rows",
    "empty",
)
_LEAVES = ["kernel", "bias", "other"]


class _Late(Exception):
    pass


def _late(*_):
    raise _Late


def fault(call: Row, argument: str, label: str, value: Any, seconds: int = 10) -> str | None:
    """The fault of a call with a bad value, None if it is refused by name or gives NaN for NaN."""
    before = signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        result = call.function(**call.arguments | {argument: value})
        if label == "nan in" and not _finite(result):
            return None
        return f"taken: {result!r:.60}"
    except _Late:
        return f"takes more than {seconds} s"
    except (ValueError, TypeError) as error:
        names = [argument, *(_LEAVES + [*call.arguments] if label in _MISMATCHES else [])]
        named = re.search(rf"\b({'|'.join(names)})\b", str(error))
        if named and "site-packages" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            return None
        return f"unnamed: {type(error).__name__}: {error!s:.90}"
    except Exception as error:
        return f"raw: {type(error).__name__}: {error!s:.90}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _finite(result) -> bool:
    numbers = [x for x in jax.tree.leaves(result) if isinstance(x, float | np.ndarray | jax.Array)]
    numbers = [x for x in numbers if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return all(bool(np.isfinite(x).all()) for x in numbers)
