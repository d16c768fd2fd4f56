"""Packages that read models, which come with the extra `models`."""

import importlib
from typing import Any


def extra(name: str) -> Any:
    """The module of this name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; it comes with: pip install 'sparsejax[models]'") from None
