"""Checks of token ids."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from .._arguments import known
from .._tree import is_array


def ids_of(
    what: str, ids: Any, vocabulary: int, seen: Array | None = None
) -> Integer[Array, "batch length"]:
    """Token ids of a batch as an array, 0 where they are not `seen`.

    Traced ids outside of the vocabulary are made too large for an embedding, which then gives NaN;
    a negative one would count from the end.
    """
    given = ids if is_array(ids) else np.asarray(ids)
    found = jnp.asarray(given)
    if found.ndim != 2:
        raise ValueError(
            f"{what}: ids must have the shape (batch, length), got {found.shape}; ids[None] for "
            "one sequence."
        )
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"{what}: ids must hold integers, got {found.dtype} {found.shape}.")
    if known(found, seen) and found.is_fully_addressable:
        tokens = np.asarray(given)  # not cut to 32 bits
        check_range(
            f"{what}: ids", tokens if seen is None else tokens[np.asarray(seen)], vocabulary
        )
    found = found if seen is None else jnp.where(seen, found, 0)
    if not jnp.issubdtype(found.dtype, jnp.signedinteger):
        return found
    wide = found.astype(jnp.promote_types(found.dtype, jnp.int32))
    return jnp.where(wide < 0, vocabulary, wide)


def row_of(what: str, tokens: Any, vocabulary: int | None, least: int) -> np.ndarray:
    """At least so many known token ids of one sequence."""
    row = np.asarray(tokens)
    if row.ndim != 1 or len(row) < least:
        raise ValueError(
            f"{what} must be a list of at least {least} token ids, got the shape {row.shape}."
        )
    if not np.issubdtype(row.dtype, np.integer):
        raise ValueError(f"{what} must hold integers, got {row.dtype}.")
    check_range(what, row, vocabulary)
    return row


def check_range(what: str, ids: np.ndarray, vocabulary: int | None) -> None:
    """Raises for ids outside of the vocabulary; None for an unknown one."""
    if ids.size and (ids.min() < 0 or vocabulary is not None and ids.max() >= vocabulary):
        raise ValueError(
            f"{what} must hold ids from 0 to {'' if vocabulary is None else vocabulary - 1}, got "
            f"{ids.min()} to {ids.max()}; is this the tokenizer of this model?"
        )
