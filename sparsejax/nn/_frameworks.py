"""Registration of the module frameworks that are imported."""

import sys
from typing import Any

import jax


def load_frameworks() -> None:
    """Registers the modules of Flax, and of Equinox if it has been imported."""
    from . import _linen, _nnx  # noqa: F401 - they register what they know

    if "equinox" in sys.modules:
        from . import _equinox  # noqa: F401


def of_framework(function: Any, model: Any) -> Any:
    """The implementation of a function by framework, of modules in lists, dicts and others too.

    That of the class of the model where it holds no modules.
    """
    load_frameworks()
    known = lambda x: function.dispatch(type(x)) is not function.dispatch(object)  # noqa: E731
    modules = (x for x in jax.tree.leaves(model, is_leaf=known) if known(x))
    return function.dispatch(type(next(modules, model)))
