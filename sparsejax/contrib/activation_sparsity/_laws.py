"""Laws of the activation ratio over training tokens."""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ..._arguments import checked

Kind = Literal["relu", "silu"]


class ActivationLaw(NamedTuple):
    """The parameters of a law, and the sum of squared residuals of its fit.

    Attributes:
      kind: "relu": `A(D) = exp(-c D^alpha + b) + limit`; "silu": `A(D) = -c / D^alpha + limit`.
      alpha: Exponent.
      b: Offset of "relu"; 0 for "silu".
      c: Rate.
      limit: The activation ratio after infinite data.
      residual: Sum of squared residuals.
    """

    kind: str
    alpha: float
    b: float
    c: float
    limit: float
    residual: float = 0.0


@checked()
def activation_law(law: ActivationLaw, tokens: ArrayLike) -> Float[np.ndarray, "..."]:
    """The activation ratio after a number of training tokens.

    Args:
      law: The parameters.
      tokens: In billions, above 0.

    Raises:
      ValueError: If tokens are not above 0, or the law is of no kind.

    Reference:
      Luo et al., Sparsing Law, 2024 (arXiv 2411.02335).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> law = activation_sparsity.ActivationLaw("silu", alpha=1.0, b=0.0, c=0.5, limit=0.4)
      >>> round(float(activation_sparsity.activation_law(law, 10.0)), 3)
      0.35
    """
    if law.kind not in get_args(Kind):
        raise ValueError(f"activation_law: law.kind must be 'relu' or 'silu', got {law.kind!r}.")
    x = np.asarray(tokens, np.float64)
    if not (x > 0).all():
        raise ValueError("activation_law: tokens must be above 0, in billions.")
    return _curve(law.kind, np.array([law.alpha, law.b, law.c, law.limit]), x)


@checked()
def fit_activation_law(tokens: ArrayLike, ratios: ArrayLike, kind: Kind) -> ActivationLaw:
    r"""Fits a law to activation ratios by least squares, from several starts.

    ReLU networks: `exp(-c D^alpha + b) + limit`, which falls; SiLU networks: `-c / D^alpha +
    limit`, which rises. Levenberg-Marquardt from a grid of starts; the best fit is returned.

    Args:
      tokens: D, training tokens in billions, `(n,)`, above 0.
      ratios: Activation ratios in [0, 1], `(n,)`.
      kind: "relu" or "silu".

    Raises:
      ValueError: If the arrays differ in shape, hold fewer than five numbers or ones out of range.

    Reference:
      Luo et al., Sparsing Law, 2024 (arXiv 2411.02335).

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import activation_sparsity
      >>> tokens = np.linspace(8, 300, 60)
      >>> law = activation_sparsity.fit_activation_law(tokens, 0.38 - 0.5 / tokens, "silu")
      >>> round(law.alpha, 3), round(law.limit, 3)
      (1.0, 0.38)
    """
    x, y = np.asarray(tokens, np.float64), np.asarray(ratios, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 5:
        raise ValueError(
            "fit_activation_law: tokens and ratios must be lists of at least five numbers, got "
            f"shapes {x.shape} and {y.shape}."
        )
    if not (np.isfinite(x) & (x > 0)).all():
        raise ValueError("fit_activation_law: tokens must be above 0, in billions.")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("fit_activation_law: ratios must be in [0, 1].")
    from scipy.optimize import least_squares

    free = [0, 1, 2, 3] if kind == "relu" else [0, 2, 3]

    def residual(values):
        return _curve(kind, _filled(values, free), x) - y

    fits = [
        least_squares(residual, start[free], method="lm", max_nfev=2000, xtol=1e-15, ftol=1e-15)
        for start in _starts(kind, y)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    alpha, b, c, limit = map(float, _filled(best.x, free))
    return ActivationLaw(kind, alpha, b, c, limit, 2 * float(best.cost))


def _starts(kind: str, y: np.ndarray) -> list[np.ndarray]:
    if kind == "silu":
        return [
            np.array([alpha, 0.0, c, y.max()]) for alpha in (0.3, 0.5, 1) for c in (0.05, 0.2, 0.6)
        ]
    spread = np.log(max(y.max() - y.min(), 1e-6))
    return [
        np.array([alpha, spread, c, part * y.min()])
        for alpha in (0.3, 1, 1.5)
        for c in (1e-3, 1e-2, 0.1, 1)
        for part in (0.9, 0.99)
    ]


def _filled(values: np.ndarray, free: list[int]) -> np.ndarray:
    whole = np.zeros(4)
    whole[free] = values
    return whole


def _curve(kind: str, parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    alpha, b, c, limit = parameters
    power = np.exp(np.clip(alpha * np.log(x), -50, 50))
    if kind == "silu":
        return np.asarray(limit - c / power)
    return np.asarray(np.exp(np.minimum(b - c * power, 50)) + limit)
