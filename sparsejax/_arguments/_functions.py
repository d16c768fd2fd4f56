"""Checks of functions, optimizers, and results to resume from."""

import inspect
from typing import Any


def check_callable(name: str, f: Any, *arguments: str, keywords: tuple[str, ...] = ()) -> None:
    """Raises if `f` cannot be called as `name(*arguments, keyword=...)`."""
    call = f"{name}({', '.join([*arguments, *(f'{k}=...' for k in keywords)])})"
    if not callable(f):
        raise TypeError(f"{name}={f!r} must be a function, called as {call}.")
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # builtins have no signature
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {call}, which its signature {signature} does not take ({error})."
        ) from None


def check_optimizer(what: str, optimizer: Any) -> None:
    """Raises unless `optimizer` is an optimizer, for example if it is a function that makes one."""
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return
    name = getattr(optimizer, "__name__", None)
    if callable(optimizer) and name is not None:
        package = (getattr(optimizer, "__module__", None) or "").split(".")[0]
        name = f"optax.{name}" if package == "optax" else name
        raise TypeError(
            f"{what}(optimizer={name}) is the function that makes an optimizer: call it, "
            f"{what}({name}(1e-3), ...)."
        )
    raise TypeError(
        f"{what} wraps an optimizer such as optax.adamw(1e-3), got a {type(optimizer).__name__}."
    )


def check_resume(name: str, given: Any, kind: type) -> None:
    """Raises if a recipe is resumed from a value of another type than its result."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name}={given!r:.80} is a {type(given).__name__} and must be the {kind.__name__} "
            f"that an earlier call returned or passed to callback; read it from its file first."
        )
