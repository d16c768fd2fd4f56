"""Noise calibration for the private moments of one record."""

import math
from typing import NamedTuple

from ..._arguments import checked
from ._mechanisms import ROUNDING, PrivacySpent, check_positive, gaussian_sigma

# The tails of `normal`, which end at 9.4 standard deviations, hold less than this.
LEAST_DELTA = 1e-15


class MomentMechanism(NamedTuple):
    """Public parameters of the clipping and noise of each user's moments.

    Attributes:
      features: Number of features d.
      radius: Bound of |x| in the second moment.
      bound_x: Bound of the entries of x in the cross moment.
      bound_y: Bound of |y| in the cross moment.
      clip: Clipping of x in the cross moment: "entries", "l2" or "both".
      second_sigma: Noise of the second moment; None if public rows replace it.
      cross_sigma: Noise of the cross moment.
      split: "budget" if each user sends both moments, "users" if each sends one.
      spent: Privacy budget of all messages of a user.
    """

    features: int
    radius: float
    bound_x: float
    bound_y: float
    clip: str
    second_sigma: float | None
    cross_sigma: float
    split: str
    spent: PrivacySpent


@checked()
def moment_mechanism(
    features: int,
    users: int,
    epsilon: float,
    delta: float,
    *,
    radius: float | None = None,
    bound_x: float | None = None,
    bound_y: float | None = None,
    clip: str = "both",
    share: float = 0.5,
    accounting: str = "gdp",
    split: str = "budget",
    public: bool = False,
) -> MomentMechanism:
    r"""Calibrates the noise that makes the moments of one user (epsilon, delta)-private.

    The upper triangle of `x x^T` has sensitivity `sqrt(2) radius^2` between any two records (for
    d = 1 `radius^2`), `x y` has `2 sqrt(d) bound_x bound_y`, or `2 radius bound_y` with |x|
    clipped. Two messages of one user share the budget exactly: `mu^2 = mu_1^2 + mu_2^2`.

    Args:
      features: Number of features d.
      users: Number of users n, for the default bounds.
      epsilon: The privacy level of each user.
      delta: The probability of failure, at least 1e-15.
      radius: Bound of |x|, `sqrt(d) + sqrt(2 log n)` by default, for covariates of variance 1.
        Choose this and the next two bounds without looking at the data.
      bound_x: Bound of the entries of x, `sqrt(2 log n)` by default.
      bound_y: Bound of |y|, `sqrt(2 log n)` by default.
      clip: Clipping of x in the cross moment: its "entries", its norm ("l2") or "both"; the
        tighter bound sets the noise.
      share: Share of mu^2 for the second moment.
      accounting: "gdp", exact; "paper" for half of epsilon and delta for each message by the
        classic formula and looser sensitivities (epsilon <= 2).
      split: "budget": each user sends both messages; "users": each user sends one message with
        the whole budget.
      public: Whether the second moment comes from public rows; users then send only the cross
        moment.

    Returns:
      A `MomentMechanism`.

    Raises:
      ValueError: If an argument is out of its range.

    Example:
      >>> from sparsejax.contrib import private
      >>> found = private.moment_mechanism(4, 1000, 1.0, 1e-6, radius=1.0, bound_y=1.0)
      >>> round(found.second_sigma, 2), round(found.cross_sigma, 2)
      (8.45, 11.95)
    """
    if features < 1 or users < 1:
        raise ValueError(
            f"moment_mechanism: features and users must be >= 1, got {features} and {users}."
        )
    if delta < LEAST_DELTA:
        raise ValueError(
            f"delta must be at least {LEAST_DELTA}, got {delta}: the tails of the noise end at 9.4 "
            "sigma."
        )
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}.")
    for name, got, known_names in (
        ("clip", clip, ("entries", "l2", "both")),
        ("accounting", accounting, ("gdp", "paper")),
        ("split", split, ("budget", "users")),
    ):
        if got not in known_names:
            raise ValueError(f"{name} must be one of {', '.join(known_names)}, got {got!r}.")
    usual = math.sqrt(2 * math.log(max(users, 2)))
    radius = math.sqrt(features) + usual if radius is None else radius
    bound_x = usual if bound_x is None else bound_x
    bound_y = usual if bound_y is None else bound_y
    for name, x in (("radius", radius), ("bound_x", bound_x), ("bound_y", bound_y)):
        check_positive(name, x)
    by_entries, by_length = 2 * math.sqrt(features) * bound_x * bound_y, 2 * radius * bound_y
    cross = {"entries": by_entries, "l2": by_length, "both": min(by_entries, by_length)}[clip]
    second = radius**2 * (1 if features == 1 else math.sqrt(2))
    sole = public or split == "users"
    if accounting == "paper":
        parts = 1 if sole else 2
        each = (epsilon / parts, delta / parts)
        second, cross = 2 * radius**2, by_length if clip == "l2" else by_entries
        sigmas = [gaussian_sigma(s * ROUNDING, *each, "classic") for s in (second, cross)]
        mu = None
    else:
        mu = 1 / gaussian_sigma(1.0, epsilon, delta)
        weights = (1.0, 1.0) if sole else (share, 1 - share)
        pairs = zip((second, cross), weights)
        sigmas = [s * ROUNDING / (mu * math.sqrt(w)) for s, w in pairs]
    spent = PrivacySpent(float(epsilon), float(delta), mu)
    return MomentMechanism(
        features, radius, bound_x, bound_y, clip, None if public else sigmas[0], sigmas[1], split,
        spent,
    )  # fmt: skip
