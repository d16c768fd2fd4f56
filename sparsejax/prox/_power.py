"""Powers `|x|^p`, 0 < p <= 2: half and two-thirds thresholding by polynomials, the rest by logs."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ._check import known, number
from ._penalty import Elementwise, Leaf, register


class _Power(Elementwise):
    """`strength * b^p` for p < 1: 0 up to a threshold, then the larger root z of
    `z + c z^(p-1) = 1`, where `u = b z` and `c = t strength p b^(p-2)`.
    """

    strength: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity: the slope is infinite at 0."""
        return jnp.inf

    def _power(self) -> ArrayLike:
        raise NotImplementedError

    def _threshold(self, m: Array) -> Array:
        """Up to here the minimiser is 0."""
        raise NotImplementedError

    def _fraction(self, b: Array, m: Array) -> Array:
        """The root z; b is at least the threshold."""
        raise NotImplementedError

    def _cost(self, b: Array) -> Array:
        power = jnp.where(b > 0, b, 1) ** self._power()
        return self.strength * jnp.where(b > 0, power, b)

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        threshold = lax.stop_gradient(self._threshold(m))
        kept = b > threshold
        inside = kept & (m > 0) & jnp.isfinite(b)
        z = self._fraction(jnp.where(inside, b, 1), jnp.where(inside, m, 0))
        return jnp.where(kept, b * jnp.where(inside, z, 1), 0)

    def _slope(self, b: Array) -> Array:
        p = self._power()
        slope = self.strength * p * jnp.where(b > 0, b, 1) ** (p - 1)
        return jnp.where(b > 0, slope, jnp.where(self.strength > 0, jnp.inf, 0))


@register
class LHalf(_Power):
    """`strength * |x|^(1/2)`, see `l_half`."""

    strength: Leaf

    def _power(self) -> ArrayLike:
        return 0.5

    def _threshold(self, m: Array) -> Array:
        return 1.5 * jnp.cbrt(m) ** 2

    def _fraction(self, b: Array, m: Array) -> Array:
        # With z = y^2: y^3 - y + c = 0, whose slope is at least 1 from the root to 1. The
        # textbook's arccos takes the time of 15 copies.
        c = m / 2 / b / jnp.sqrt(b)
        start = 1 - c * (1 / 2 + 0.64 * c)
        return _newton(lambda y: (y * (y * y - 1) + c, 3 * y * y - 1), start) ** 2


@register
class LTwoThirds(_Power):
    """`strength * |x|^(2/3)`, see `l_two_thirds`."""

    strength: Leaf

    def _power(self) -> ArrayLike:
        return 2 / 3

    def _threshold(self, m: Array) -> Array:
        root = jnp.sqrt(2 * m / 3)
        return 2 * root * jnp.sqrt(root)

    def _fraction(self, b: Array, m: Array) -> Array:
        # With z = y^3: y^4 - y + c = 0. The textbook's second cube root cancels in float32.
        c = 2 / 3 * m * jnp.exp(-4 / 3 * jnp.log(b))
        start = 1 - c * (1 / 3 + 0.47 * c)
        return _newton(lambda y: (y * (y**3 - 1) + c, 4 * y**3 - 1), start) ** 3


@register
class LP(_Power):
    """`strength * |x|^p`, see `lp`."""

    strength: Leaf
    p: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """0 from p = 1 on, infinity below."""
        return jnp.where(jnp.asarray(self.p) < 1, jnp.inf, 0.0)

    def _power(self) -> ArrayLike:
        return self.p

    def _threshold(self, m: Array) -> Array:
        # u + m p u^(p-1) at the jump u = (2 m (1-p))^(1/(2-p)); there is none for p > 1.
        p = jnp.minimum(self.p, 1)
        scale = jnp.where(m > 0, m, 1) ** (1 / (2 - p))
        u = (2 * (1 - p)) ** (1 / (2 - p))
        rise = jnp.where(u > 0, p * jnp.where(u > 0, u, 1) ** (p - 1), 1)
        return jnp.where((m > 0) & (self.p <= 1), scale * (u + rise), 0)

    def _fraction(self, b: Array, m: Array) -> Array:
        # In w = log z both terms are exponentials: convex, so that Newton from the right of the
        # root is monotone for every p in (0, 2], and 8 steps reach float32 where z^(p-1) needs 40.
        p = self.p
        log_c = jnp.log(jnp.where(m > 0, m * p, 1)) + (p - 2) * jnp.log(b)
        log_c = jnp.where(m > 0, log_c, -40)
        above = jnp.where(p > 1, p - 1, 1)
        start = jnp.where(p > 1, jnp.minimum(0, -log_c / above), 0)
        steps = 8 if b.dtype == jnp.float32 else 20

        def newton(w):
            z, pull = jnp.exp(w), jnp.exp(log_c + (p - 1) * w)
            # At p = 1 and the threshold both vanish.
            slope = z + (p - 1) * pull
            return w - (z + pull - 1) / jnp.where(slope > 0, slope, 1)

        w = lax.stop_gradient(jnp.broadcast_to(start, b.shape))
        for _ in range(steps - 1):
            w = lax.stop_gradient(newton(w))
        return jnp.exp(newton(w))

    def _slope(self, b: Array) -> Array:
        slope = super()._slope(b)
        at_zero = jnp.where(self.p == 1, self.strength, 0)
        return jnp.where((b == 0) & (self.p >= 1), at_zero, slope)


def _newton(residual, y: Array) -> Array:
    """A root from two digits of it; the last step carries the derivative."""
    y = lax.stop_gradient(y)
    for _ in range(2 if y.dtype == jnp.float32 else 4):
        value, slope = residual(y)
        y = lax.stop_gradient(y - value / slope)
    value, slope = residual(y)
    return y - value / slope


def l_half(strength: ArrayLike) -> LHalf:
    r"""The square root of the modulus: half thresholding.

    `f(x) = strength * sum sqrt(|x_i|)`; the proximal operator is 0 up to `1.5 m^(2/3)`, where it
    jumps to `m^(2/3)`, with `m = t strength`. (Papers without the 1/2 before the square write
    `2 m` for our m.)

    Args:
      strength: >= 0.

    Returns:
      An elementwise penalty that is not weakly convex.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Xu, Chang, Xu and Zhang, L1/2 Regularization: A Thresholding Representation Theory and a
      Fast Solver, 2012.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l_half(1.0).prox(jnp.array([1.5, -100.0])).round(2).tolist()
      [0.0, -99.94999694824219]
    """
    return LHalf(number("strength", strength, "prox.l_half(0.1)"))


def l_two_thirds(strength: ArrayLike) -> LTwoThirds:
    r"""The power 2/3 of the modulus.

    `f(x) = strength * sum |x_i|^(2/3)`; the proximal operator is 0 up to `2 (2m/3)^(3/4)`.

    Args:
      strength: >= 0.

    Returns:
      An elementwise penalty that is not weakly convex.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Cao, Sun and Xu, Fast image deconvolution using closed-form thresholding formulas of Lq
      (q = 1/2, 2/3) regularization, 2013.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l_two_thirds(1.5).prox(jnp.array([2.0, 9.0])).round(2).tolist()
      [0.0, 8.510000228881836]
    """
    return LTwoThirds(number("strength", strength, "prox.l_two_thirds(0.1)"))


def lp(strength: ArrayLike, p: ArrayLike) -> LP:
    r"""A power of the modulus.

    `f(x) = strength * sum |x_i|^p`. For p < 1 the proximal operator jumps, p = 1 is l1, p = 2 is
    `ridge(2 strength)`. `l_half` and `l_two_thirds` are faster.

    Args:
      strength: >= 0.
      p: In (0, 2], possibly traced.

    Returns:
      An elementwise penalty, convex from p = 1 on.

    Raises:
      ValueError: If the strength is negative or p outside (0, 2].

    Reference:
      Marjanovic and Solo, On lq Optimization and Matrix Completion, 2012.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.lp(1.0, p=1.5).prox(jnp.array([2.5, 0.0])).round(4).tolist()
      [1.0, 0.0]
    """
    call = "prox.lp(0.1, p=0.5)"
    p = number("p", p, call, positive=True)
    if known(p):
        number("2 - p", 2 - p, call)
    return LP(number("strength", strength, call), p)
