"""The tables of conformance in two tiers: a few rows in `make test`, the others slow."""

import pytest


def parametrize(argnames, rows, quick, ids=None):
    """Like pytest.mark.parametrize; the rows for which `quick(row)` is false are slow."""
    marked = [row if quick(row) else pytest.param(row, marks=pytest.mark.slow) for row in rows]
    return pytest.mark.parametrize(argnames, marked, ids=ids)
