"""Checks of token ids, which JAX would clip or drop in silence."""

from typing import Any

import numpy as np

from ..._arguments import known


def check_tokens(caller: str, name: str, ids: Any, vocabulary: int) -> None:
    """Raises if concrete token ids are not in [0, vocabulary)."""
    if not known(ids) or not np.size(ids):
        return
    low, high = int(np.min(ids)), int(np.max(ids))
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"{caller}: {name} must be tokens in [0, {vocabulary}), the vocabulary, got tokens "
            f"from {low} to {high}; padding needs a valid id and a mask of False."
        )
