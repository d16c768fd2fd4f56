"""Piecewise quadratic concave penalties: MCP, CEL0 (the same kernel), SCAD, capped l1."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked_number, known
from ._penalty import Elementwise, Leaf, Penalty, register, relu


class _Parabola(Elementwise):
    """A downward parabola that becomes flat: `slope b - curvature b^2 / 2` up to `knee`.

    One kernel for MCP and CEL0, which parametrise it differently. Uses the curvature and not its
    inverse, so that a column of norm 0 (no penalty) causes no division by 0.
    """

    def _shape(self) -> tuple[Array, Array, Array]:
        """Slope at 0, curvature, and the knee `slope / curvature` beyond which it is flat."""
        raise NotImplementedError

    def _cost(self, b: Array) -> Array:
        slope, curvature, knee = self._shape()
        inner = jnp.minimum(b, knee)
        return inner * (slope - curvature / 2 * inner)

    def _shrink(self, b: Array, t: Array) -> Array:
        slope, curvature, knee = self._shape()
        single = t * curvature < 1
        room = jnp.where(single, 1 - t * curvature, 1)
        between = jnp.where(b < knee, relu(b - t * slope) / room, b)
        jump = jnp.sqrt(t * slope * jnp.where(single, 0, knee))
        return jnp.where(single, between, jnp.where(b <= jump, 0, b))

    def _slope(self, b: Array) -> Array:
        slope, curvature, knee = self._shape()
        return jnp.where(b < knee, slope - curvature * b, 0)


@register
class MCP(_Parabola):
    """The minimax concave penalty, see `mcp`."""

    strength: Leaf
    gamma: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`1 / gamma`."""
        return 1 / self.gamma

    def _shape(self) -> tuple[Array, Array, Array]:
        # 0 times an infinite gamma: no penalty, flat from 0 on.
        knee = jnp.where(self.strength > 0, self.strength * self.gamma, 0)
        return self.strength, 1 / self.gamma, knee


@register
class CEL0(_Parabola):
    """The continuous exact l0 penalty, see `cel0`."""

    strength: Leaf
    a: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`a^2`."""
        return self.a**2

    def _shape(self) -> tuple[Array, Array, Array]:
        root = jnp.sqrt(2 * self.strength)
        knee = root / jnp.where(self.a > 0, self.a, 1)
        return root * self.a, self.a**2, jnp.where(self.a > 0, knee, jnp.inf)


@register
class SCAD(Elementwise):
    """Smoothly clipped absolute deviation, see `scad`."""

    strength: Leaf
    a: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`1 / (a - 1)`."""
        return 1 / (self.a - 1)

    def _cost(self, b: Array) -> Array:
        strength, a = self.strength, self.a
        # The slope is strength, then decreases by `bend` per unit, then is 0.
        bend = jnp.clip(b, strength, a * strength) - strength
        return strength * jnp.minimum(b, a * strength) - bend**2 / (2 * (a - 1))

    def _shrink(self, b: Array, t: Array) -> Array:
        strength, a = self.strength, self.a
        soft = relu(b - t * strength)
        single = t < a - 1
        room = jnp.where(single, a - 1 - t, 1)
        between = jnp.where(b <= strength * (1 + t), soft, ((a - 1) * b - a * t * strength) / room)
        # Beyond the limit the middle branch never contains the minimum. Comparing the other two
        # branches gives one threshold, above or below t * strength.
        far = strength * jnp.sqrt(t) * jnp.sqrt(a + 1)
        jump = jnp.where(t >= a + 1, far, strength / 2 * (a + 1 + t))
        return jnp.where(
            b > jnp.where(single, a * strength, jump), b, jnp.where(single, between, soft)
        )

    def _slope(self, b: Array) -> Array:
        strength, a = self.strength, self.a
        return jnp.where(b <= strength, strength, relu(a * strength - b) / (a - 1))


@register
class CappedL1(Elementwise):
    """`strength * min(|x|, theta)`, see `capped_l1`."""

    strength: Leaf
    theta: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity: the concave kink at theta."""
        return jnp.inf

    def _cost(self, b: Array) -> Array:
        return self.strength * jnp.minimum(b, self.theta)

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        far = jnp.sqrt(2 * m) * jnp.sqrt(self.theta)
        jump = jnp.where(m < 2 * self.theta, self.theta + m / 2, far)
        return jnp.where(b > jump, b, relu(b - m))

    def _slope(self, b: Array) -> Array:
        return jnp.where(b <= self.theta, self.strength, 0)


def mcp(strength: ArrayLike, gamma: ArrayLike = 3.0) -> Penalty:
    r"""The minimax concave penalty: l1 near 0, constant beyond `gamma * strength`.

    `f(x) = strength |x| - x^2 / (2 gamma)` for `|x| <= gamma strength`, then
    `gamma strength^2 / 2`. The proximal operator is firm thresholding for `t < gamma` and otherwise
    hard thresholding at `strength sqrt(t gamma)`.

    Args:
      strength: >= 0.
      gamma: > 0; infinity is l1.

    Returns:
      An elementwise penalty of weak convexity `1 / gamma`.

    Raises:
      ValueError: If the strength is negative or gamma is not positive.

    Reference:
      Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010,
      arXiv 1002.4734.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.mcp(1.0, gamma=2.0).prox(jnp.array([0.5, 1.5, 3.0])).tolist()
      [0.0, 1.0, 3.0]
      >>> prox.mcp(1.0, gamma=2.0).prox(jnp.array([2.5, 3.0]), step=4.0).tolist()
      [0.0, 3.0]
    """
    call = "prox.mcp(0.1, gamma=3.0)"
    return MCP(
        checked_number("strength", strength, call),
        checked_number("gamma", gamma, call, positive=True),
    )


def firm(strength: ArrayLike, mu: ArrayLike) -> Penalty:
    r"""The penalty whose proximal operator with a step of 1 is `firm_threshold(x, strength, mu)`.

    `firm(strength, mu) = mcp(strength, gamma=mu / strength)`.

    Args:
      strength: > 0, entries up to this are zeroed.
      mu: Entries beyond this are kept; greater than the strength.

    Returns:
      An `MCP`.

    Raises:
      ValueError: If `mu <= strength`.

    Reference:
      Gao and Bruce, WaveShrink with Firm Shrinkage, 1997.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.firm(1.0, mu=2.0).prox(jnp.array([0.5, 1.5, 3.0])).tolist()
      [0.0, 1.0, 3.0]
    """
    call = "prox.firm(0.1, mu=0.2)"
    strength = checked_number("strength", strength, call, positive=True)
    checked_number("mu - strength", checked_number("mu", mu, call) - strength, call, positive=True)
    return MCP(strength, mu / strength)


def cel0(strength: ArrayLike, a: ArrayLike = 1.0) -> Penalty:
    r"""The continuous exact l0 penalty: a relaxation with the minimisers of l0 regression.

    `f(x) = strength - a^2/2 (|x| - sqrt(2 strength)/a)^2` for `|x| <= sqrt(2 strength)/a`, then
    `strength`. With a the norm of the column of the design that x multiplies,
    `0.5 ||y - A x||^2 + f(x)` has the global minimisers of l0 regression and fewer local ones.
    It is `mcp(sqrt(2 strength) a, gamma=1/a^2)`.

    Args:
      strength: >= 0, the cost of a non-zero entry.
      a: >= 0, the norm of the column: a scalar or an array that broadcasts with x.

    Returns:
      An elementwise penalty of weak convexity `a^2`.

    Raises:
      ValueError: If a number is negative.

    Reference:
      Soubies, Blanc-Feraud and Aubert, A Continuous Exact l0 Penalty for Least Squares
      Regularized Problem, 2015.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.cel0(0.5).prox(jnp.array([0.25, 0.75, 2.0]), step=0.5).tolist()
      [0.0, 0.5, 2.0]
      >>> prox.cel0(0.5).prox(jnp.array([1.25, 2.0]), step=2.0).tolist()
      [0.0, 2.0]
    """
    call = "prox.cel0(0.1, a=1.0)"
    return CEL0(checked_number("strength", strength, call), checked_number("a", a, call))


def scad(strength: ArrayLike, a: ArrayLike = 3.7) -> Penalty:
    r"""Smoothly clipped absolute deviation: l1 up to `strength`, constant beyond `a * strength`.

    `f'(x) = strength` for `x <= strength`, then `(a strength - x)_+ / (a - 1)`.

    Args:
      strength: >= 0.
      a: > 2.

    Returns:
      An elementwise penalty of weak convexity `1 / (a - 1)`; exact also for `t >= a - 1`.

    Raises:
      ValueError: If the strength is negative or `a <= 2`.

    Reference:
      Fan and Li, Variable Selection via Nonconcave Penalized Likelihood, 2001.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.scad(1.0, a=3.0).prox(jnp.array([1.5, 2.5, 4.0])).tolist()
      [0.5, 2.0, 4.0]
    """
    call = "prox.scad(0.1, a=3.7)"
    a = checked_number("a", a, call)
    if known(a):
        checked_number("a - 2", a - 2, call, positive=True)
    return SCAD(checked_number("strength", strength, call), a)


def capped_l1(strength: ArrayLike, theta: ArrayLike = 1.0) -> Penalty:
    r"""The l1 norm capped at `strength * theta` per entry.

    `f(x) = strength * min(|x|, theta)`.

    Args:
      strength: >= 0.
      theta: > 0.

    Returns:
      An elementwise penalty that is not weakly convex (a concave kink at theta).

    Raises:
      ValueError: If the strength is negative or theta is not positive.

    Reference:
      Zhang, Analysis of Multi-stage Convex Relaxation for Sparse Regularization, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.capped_l1(1.0, theta=2.0).prox(jnp.array([0.5, 2.0, 3.0])).tolist()
      [0.0, 1.0, 3.0]
    """
    call = "prox.capped_l1(0.1, theta=1.0)"
    return CappedL1(
        checked_number("strength", strength, call),
        checked_number("theta", theta, call, positive=True),
    )
