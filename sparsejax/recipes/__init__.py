"""How whole procedures run: functions over train and evaluate callables of the user."""

from ._sara import SaRAState as SaRAState
from ._sara import sara as sara

__all__ = ["SaRAState", "sara"]
