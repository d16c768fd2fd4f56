"""Registration of the module frameworks that are imported."""

import sys


def load_frameworks() -> None:
    """Registers the modules of Flax, and of Equinox if it has been imported."""
    from . import _linen, _nnx  # noqa: F401 - they register what they know

    if "equinox" in sys.modules:
        from . import _equinox  # noqa: F401
