"""Powers `|x|^p`, 0 < p <= 2: a fitted polynomial, or Newton's method on logarithms."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked_number, known
from ._penalty import Elementwise, Leaf, Penalty, polynomial, register, static

Root = Callable[[Array, Array], Array]


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
        """The threshold up to which the minimiser is 0."""
        raise NotImplementedError

    def _logarithm(self, b: Array, m: Array) -> Array:
        """The logarithm of c, where b is above the threshold and m > 0."""
        return jnp.log(m * self._power()) + (self._power() - 2) * jnp.log(b)

    def _fraction(self, log_c: Array, p: Array) -> Array:
        """The root z to the precision of the dtype."""
        raise NotImplementedError

    def _cost(self, b: Array) -> Array:
        power = jnp.where(b > 0, b, 1) ** self._power()
        return self.strength * jnp.where(b > 0, power, b)

    def _shrink(self, b: Array, t: Array) -> Array:
        m, p = t * self.strength, jnp.asarray(self._power(), b.dtype)
        kept = b > lax.stop_gradient(self._threshold(m))
        inside = kept & (m > 0) & (b < jnp.inf)
        log_c = self._logarithm(jnp.where(inside, b, 1), jnp.where(m > 0, m, 1))
        z = _root(self._fraction, jnp.where(inside, log_c, _NOTHING), p)
        return jnp.where(kept, b * z, 0)

    def _slope(self, b: Array) -> Array:
        p = self._power()
        slope = self.strength * p * jnp.where(b > 0, b, 1) ** (p - 1)
        return jnp.where(b > 0, slope, jnp.where(self.strength > 0, jnp.inf, 0))


# The logarithm of a negligible c.
_NOTHING = -100.0


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _root(root: Root, log_c: Array, p: Array) -> Array:
    return root(log_c, p)


@_root.defjvp
def _root_jvp(root: Root, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative of the root of `z + exp(log c + (p - 1) log z) = 1`."""
    z, (_, p) = _root(root, *primals), primals
    moved_c, moved_p = tangents
    pull = 1 - z
    rate = z + (p - 1) * pull
    fall = pull * (moved_c + jnp.log(jnp.where(z > 0, z, 1)) * moved_p)
    return z, -z * fall / jnp.where(rate > 0, rate, 1)


def _branch(p: Array) -> tuple[Array, Array]:
    """The z and c at which both roots coincide."""
    z = (1 - p) / (2 - p)
    return z, (1 - z) * z ** (1 - p)


def _polished(z: Array, c: Array, p: Array, steps: int) -> Array:
    """Newton's method for `z + c z^(p-1) = 1`."""
    for _ in range(steps):
        pull = c * jnp.exp((p - 1) * jnp.log(z))
        rate = z + (p - 1) * pull
        z = z * (1 - (z + pull - 1) / jnp.where(rate > 0, rate, jnp.inf))
    return z


class _Fitted(_Power):
    """A power whose root is smooth in `r = sqrt(1 - c / c_branch)`: a polynomial in float32."""

    def _coefficients(self) -> tuple[float, ...]:
        raise NotImplementedError

    def _fraction(self, log_c: Array, p: Array) -> Array:
        c = jnp.exp(log_c)
        r = jnp.sqrt(jnp.maximum(1 - c / _branch(p)[1], 0))
        z = polynomial(r, self._coefficients())
        return _polished(z, c, p, 0 if z.dtype == jnp.float32 else 2)


@register
class LHalf(_Fitted):
    """`strength * |x|^(1/2)`, see `l_half`."""

    strength: Leaf

    def _power(self) -> ArrayLike:
        return 0.5

    def _threshold(self, m: Array) -> Array:
        return 1.5 * jnp.cbrt(m) ** 2

    def _coefficients(self) -> tuple[float, ...]:
        return 0.333012572, 0.546660919, 0.141201984, -0.0242412915, 0.0033658545


@register
class LTwoThirds(_Fitted):
    """`strength * |x|^(2/3)`, see `l_two_thirds`."""

    strength: Leaf

    def _power(self) -> ArrayLike:
        return 2 / 3

    def _threshold(self, m: Array) -> Array:
        root = jnp.sqrt(2 * m / 3)
        return 2 * root * jnp.sqrt(root)

    def _coefficients(self) -> tuple[float, ...]:
        return 0.249871672, 0.531354561, 0.246826527, -0.0321544979, 0.00410186873


@register
class LP(_Power):
    """`strength * |x|^p`, see `lp`."""

    strength: Leaf
    p: Leaf
    # Whether p is below 0.9, if that is known.
    low: bool | None = static(default=None)

    @property
    def weak_convexity(self) -> ArrayLike:
        """0 for p >= 1, infinity below."""
        return jnp.where(jnp.asarray(self.p) < 1, jnp.inf, 0.0)

    def _power(self) -> ArrayLike:
        return self.p

    def _threshold(self, m: Array) -> Array:
        # u + m p u^(p-1) at the jump u = (2 m (1-p))^(1/(2-p)); no jump exists for p > 1.
        p = jnp.minimum(self.p, 1)
        scale = jnp.where(m > 0, m, 1) ** (1 / (2 - p))
        u = (2 * (1 - p)) ** (1 / (2 - p))
        rise = jnp.where(u > 0, p * jnp.where(u > 0, u, 1) ** (p - 1), 1)
        return jnp.where((m > 0) & (self.p <= 1), scale * (u + rise), 0)

    def _slope(self, b: Array) -> Array:
        slope = super()._slope(b)
        at_zero = jnp.where(self.p == 1, self.strength, 0)
        return jnp.where((b == 0) & (self.p >= 1), at_zero, slope)

    def _fraction(self, log_c: Array, p: Array) -> Array:
        if self.low is not None:
            return (_beyond_jump if self.low else _by_logarithm)(log_c, p)
        return jnp.where(p < 0.9, _beyond_jump(log_c, p), _by_logarithm(log_c, p))

    def _prox(self, x: Array, t: Array) -> Array:
        if self.low is not None or jnp.ndim(self.p):
            return super()._prox(x, t)
        low, high = (LP(self.strength, self.p, low) for low in (True, False))
        if known(self.p):
            return (low if self.p < 0.9 else high)._prox(x, t)
        # Whole branches, each one pass over memory.
        return lax.cond(self.p < 0.9, low._prox, high._prox, x, t)


def _beyond_jump(log_c: Array, p: Array) -> Array:
    """For p < 0.9, a polynomial in r for `(1 - z) / c` through its values at the nodes of
    Chebyshev between the jump and r = 1: the nearest singularity is r = -1, so that nine degrees
    reach float32 precision.
    """
    p = jnp.minimum(p, 0.9)
    limit = _branch(p)[1]
    z = 2 * (1 - p) / (2 - p)  # at the jump
    low = jnp.sqrt(jnp.maximum(1 - (1 - z) * z ** (1 - p) / limit, 0))
    middle, half = (1 + low) / 2, (1 - low) / 2
    across = lambda x: jnp.asarray(x, p.dtype).reshape(-1, *[1] * p.ndim)  # noqa: E731
    nodes = middle + half * across(_NODES)
    found = _by_logarithm(jnp.log(limit * (1 - nodes**2)), p) ** (p - 1)
    for matrix in (_TO_CHEBYSHEV, _TO_POWERS):  # one by one, in which nothing cancels
        found = jnp.stack([jnp.sum(across(row) * found, axis=0) for row in matrix])
    c = jnp.exp(log_c)
    r = jnp.sqrt(jnp.maximum(1 - c * (1 / limit), 0))
    # Where p is so small that the jump is at r = 1, z is 1.
    pull = c * polynomial((r - middle) * (1 / jnp.where(half > 0, half, 1)), [*found])
    return _polished(1 - pull, c, p, 0 if c.dtype == jnp.float32 else 2)


# The nodes in (-1, 1); maps of values there to coefficients of the polynomials of Chebyshev, and of
# those to coefficients of powers.
_NODES = np.cos(np.pi * (np.arange(10) + 0.5) / 10)
_TO_CHEBYSHEV = np.linalg.inv(np.polynomial.chebyshev.chebvander(_NODES, 9))
_TO_POWERS = np.linalg.inv(np.vander(_NODES, increasing=True)) @ np.linalg.inv(_TO_CHEBYSHEV)


def _by_logarithm(log_c: Array, p: Array) -> Array:
    """For every p. In w = log z both terms are exponentials and convex, so that Newton's method
    from the right of the root is monotone: 8 steps reach float32 precision where z^(p-1) needs 40;
    within 1 % of p = 1 that is precision in units of b.
    """
    start = jnp.where(p > 1, jnp.minimum(0, -log_c / jnp.where(p > 1, p - 1, 1)), 0)
    w = jnp.broadcast_to(start, jnp.broadcast_shapes(start.shape, log_c.shape))
    for _ in range(8 if w.dtype == jnp.float32 else 20):
        z, pull = jnp.exp(w), jnp.exp(log_c + (p - 1) * w)
        # Both vanish at p = 1 and the threshold.
        slope = z + (p - 1) * pull
        w = w - (z + pull - 1) / jnp.where(slope > 0, slope, 1)
    return jnp.exp(w)


def l_half(strength: ArrayLike) -> Penalty:
    r"""The square root of the modulus: half thresholding.

    `f(x) = strength * sum sqrt(|x_i|)`; the proximal operator is 0 up to `1.5 m^(2/3)`, where it
    jumps to `m^(2/3)`, with `m = t strength`. (Papers without the factor 1/2 write `2 m` for m.)

    Args:
      strength: >= 0.

    Returns:
      An elementwise penalty; not weakly convex.

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
    return LHalf(checked_number("strength", strength, "prox.l_half(0.1)"))


def l_two_thirds(strength: ArrayLike) -> Penalty:
    r"""The power 2/3 of the moduli.

    `f(x) = strength * sum |x_i|^(2/3)`; the proximal operator is 0 up to `2 (2m/3)^(3/4)`.

    Args:
      strength: >= 0.

    Returns:
      An elementwise penalty; not weakly convex.

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
    return LTwoThirds(checked_number("strength", strength, "prox.l_two_thirds(0.1)"))


def lp(strength: ArrayLike, p: ArrayLike) -> Penalty:
    r"""A power of the modulus.

    `f(x) = strength * sum |x_i|^p`. For p < 1 the proximal operator is discontinuous, p = 1 is l1,
    p = 2 is `ridge(2 strength)`. `l_half` and `l_two_thirds` are faster.

    Args:
      strength: >= 0.
      p: In (0, 2], possibly traced.

    Returns:
      An elementwise penalty, convex for p >= 1.

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
    p = checked_number("p", p, call, positive=True)
    if known(p):
        checked_number("2 - p", 2 - p, call)
    return LP(checked_number("strength", strength, call), p)
