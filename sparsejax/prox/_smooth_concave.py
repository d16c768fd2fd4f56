"""Smooth concave penalties: logarithm, exponential, Geman and any other given by its derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ._check import number
from ._penalty import Elementwise, Leaf, register, relu, static


class _Scaled(Elementwise):
    """`strength * phi(b / scale)` with phi concave, `phi(0) = 0`.

    In y = u / scale the proximal operator is 0 or the larger root of `y + c phi'(y) = beta`, with
    `beta = b / scale` and `c = t strength / scale^2`: whichever objective is less.
    """

    def _scale(self) -> ArrayLike:
        raise NotImplementedError

    def _price(self) -> ArrayLike:
        return self.strength  # pyright: ignore[reportAttributeAccessIssue]

    def _phi(self, y: Array) -> Array:
        raise NotImplementedError

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        """`phi'` and `phi''` for y >= 0."""
        raise NotImplementedError

    def _root(self, beta: Array, c: Array) -> Array:
        """The larger root to a few digits, anything where there is none."""
        raise NotImplementedError

    def _polish(self, dtype: Any) -> int:
        """How many steps of Newton the root needs."""
        return 2 if dtype == jnp.float32 else 4

    def _cost(self, b: Array) -> Array:
        return jnp.asarray(self._price() * self._phi(b / self._scale()))

    def _slope(self, b: Array) -> Array:
        return jnp.asarray(self._price() / self._scale() * self._derivatives(b / self._scale())[0])

    def _shrink(self, b: Array, t: Array) -> Array:
        scale = self._scale()
        c = t * (self._price() / scale) / scale
        kept, pull = self._pull(b / scale, c)
        u = jnp.where(kept, relu(b - scale * pull), 0)
        return jnp.where((c == 0) | (b == jnp.inf), b, u)

    def _kept(self, beta: Array, c: Array) -> tuple[Array, Array, Array]:
        """Where the root beats 0, the root there, and a finite beta: constants to derivatives."""
        beta, c = lax.stop_gradient((beta, c))
        usable = (beta > 0) & (beta < jnp.inf)
        beta = jnp.where(usable, beta, 1)
        y = self._polished(_inside(self._root(beta, c), beta), beta, c)
        # 0.5 (y - beta)^2 + c phi(y) < 0.5 beta^2, without the cancellation.
        kept = usable & (y > 0) & (c * self._phi(y) < y * (beta - y / 2))
        return kept, jnp.where(kept, y, 1), jnp.where(kept, beta, 1)

    def _pull(self, beta: Array, c: Array) -> tuple[Array, Array]:
        """Where the root beats 0, and `beta - y = c phi'(y)`: a large y has fewer digits."""
        kept, y, fixed = self._kept(beta, c)
        slope, bend = lax.stop_gradient(self._derivatives(y))
        fixed_c = lax.stop_gradient(c)
        rate = 1 + fixed_c * bend
        # Two terms of value 0, which carry the derivative of the root.
        lifted = jnp.where(kept, beta, 1) - fixed
        dropped = (c - fixed_c) * slope
        share = jnp.where(rate > 0, rate, 1)
        return kept, fixed_c * slope + lifted - (lifted - dropped) / share

    def _polished(self, y: Array, beta: Array, c: Array) -> Array:
        steps = self._polish(beta.dtype)
        # A few steps in a row are one pass over memory, many are a loop.
        return lax.fori_loop(
            0, steps, lambda _, y: _inside(self._step(y, beta, c), beta), y, unroll=steps < 8
        )

    def _step(self, y: Array, beta: Array, c: Array) -> Array:
        slope, bend = self._derivatives(y)
        rate = 1 + c * bend
        return y - (y - beta + c * slope) / jnp.where(rate > 0, rate, jnp.inf)


def _inside(y: Array, beta: Array) -> Array:
    """y kept between 0 and beta, where the root is; 0 for NaN."""
    return jnp.where(y > 0, jnp.minimum(y, beta), 0)


@register
class LogSum(_Scaled):
    """`strength * log(1 + |x| / eps)`, see `log_sum`."""

    strength: Leaf
    eps: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`strength / eps^2`."""
        return self.strength / self.eps**2

    def _scale(self) -> ArrayLike:
        return self.eps

    def _phi(self, y: Array) -> Array:
        return jnp.log1p(y)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        inverse = 1 / (1 + y)
        return inverse, -inverse * inverse

    def _root(self, beta: Array, c: Array) -> Array:
        # y^2 + (1 - beta) y + c - beta = 0, without overflow, and without cancellation for small y.
        whole = 1 + beta
        r = 2 * jnp.sqrt(c) / whole
        gap = whole * jnp.sqrt(jnp.where(r <= 1, (1 - r) * (1 + r), jnp.nan))
        return jnp.where(beta < 1, 2 * (beta - c) / (1 - beta + gap), (beta - 1 + gap) / 2)

    def _polish(self, dtype: Any) -> int:
        return 0


@register
class Exponential(_Scaled):
    """`strength * (1 - exp(-|x| / sigma))`, see `exponential`."""

    strength: Leaf
    sigma: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`strength / sigma^2`."""
        return self.strength / self.sigma**2

    def _scale(self) -> ArrayLike:
        return self.sigma

    def _phi(self, y: Array) -> Array:
        return -jnp.expm1(-y)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        decay = jnp.exp(-y)
        return decay, -decay

    def _root(self, beta: Array, c: Array) -> Array:
        # beta + W0(-c exp(-beta)), W0 by its series at the branch point, good to 0.1 everywhere.
        product = jnp.exp(jnp.log(c) - beta)
        left = 1 - jnp.e * product
        r = jnp.sqrt(2 * jnp.where(left >= 0, left, jnp.nan))
        return beta - 1 + r * (1 - r * (1 / 3 - r * (11 / 72 - r * 43 / 540)))


@register
class Geman(_Scaled):
    """`strength * |x| / (|x| + eps)`, see `geman`."""

    strength: Leaf
    eps: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`2 strength / eps^2`."""
        return 2 * self.strength / self.eps**2

    def _scale(self) -> ArrayLike:
        return self.eps

    def _phi(self, y: Array) -> Array:
        return y / (1 + y)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        inverse = 1 / (1 + y)
        return inverse**2, -2 * inverse**3

    def _root(self, beta: Array, c: Array) -> Array:
        # With 1 + y = (1 + beta) q: q^2 (1 - q) = d, and q = 2/3 is the branch point.
        whole = 1 + beta
        d = c / whole / whole / whole
        left = 1 - 27 / 4 * d
        r = jnp.sqrt(jnp.where(left >= 0, left, jnp.nan))
        return whole * (2 / 3 + r * (2 / 3 / jnp.sqrt(3.0) - 0.0516 * r)) - 1


@register
class TransformedL1(Geman):
    """`strength * (a + 1) |x| / (a + |x|)`: `Geman` by another name, see `transformed_l1`."""

    def _price(self) -> ArrayLike:
        return self.strength * (self.eps + 1)

    @property
    def weak_convexity(self) -> ArrayLike:
        """`2 strength (a + 1) / a^2`."""
        return 2 * self._price() / self.eps**2


@register
class Concave(_Scaled):
    """`strength * value(|x|)` for a given concave function, see `concave`."""

    function: Callable[[Array], Array] = static()
    derivative: Callable[[Array], Array] = static()
    strength: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`-strength * f''(0)`, the worst of a concave function whose derivative is convex."""
        second = jax.grad(self.derivative)(0.0)
        return jnp.where(jnp.isfinite(second), -self.strength * second, jnp.inf)

    def _scale(self) -> ArrayLike:
        return 1.0

    def _phi(self, y: Array) -> Array:
        # Its slope may be infinite at 0, which must not reach the gradient of the value.
        at = self.function(jnp.where(y > 0, y, 1)) - self.function(jnp.zeros_like(y))
        return jnp.where(y > 0, at, 0)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        return jax.jvp(self.derivative, (y,), (jnp.ones_like(y),))

    def _polish(self, dtype: Any) -> int:
        return 40

    def _root(self, beta: Array, c: Array) -> Array:
        del c
        return beta


def log_sum(strength: ArrayLike, eps: ArrayLike = 1.0) -> LogSum:
    r"""The sum of logarithms: reweighted l1 in the limit.

    `f(x) = strength * sum log(1 + |x_i| / eps)`.

    Args:
      strength: >= 0.
      eps: > 0; the smaller, the nearer to l0.

    Returns:
      An elementwise penalty of weak convexity `strength / eps^2`; its proximal operator is
      continuous while `t strength <= eps^2` and jumps beyond.

    Raises:
      ValueError: If the strength is negative or eps is not positive.

    Reference:
      Candes, Wakin and Boyd, Enhancing Sparsity by Reweighted l1 Minimization, 2008,
      arXiv 0711.1612.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.log_sum(1.0, eps=1.0).prox(jnp.array([1.0, 1.5])).tolist()
      [0.0, 1.0]
    """
    call = "prox.log_sum(0.1, eps=1.0)"
    return LogSum(number("strength", strength, call), number("eps", eps, call, positive=True))


def exponential(strength: ArrayLike, sigma: ArrayLike = 1.0) -> Exponential:
    r"""The exponential-type penalty (ETP, PiE, Laplace).

    `f(x) = strength * sum (1 - exp(-|x_i| / sigma))`.

    Args:
      strength: >= 0.
      sigma: > 0.

    Returns:
      An elementwise penalty of weak convexity `strength / sigma^2`.

    Raises:
      ValueError: If the strength is negative or sigma is not positive.

    Reference:
      Trzasko and Manduca, Highly Undersampled Magnetic Resonance Image Reconstruction via
      Homotopic l0-Minimization, 2009.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.exponential(1.0, sigma=1.0).prox(jnp.array([1.0, 1.5])).round(3).tolist()
      [0.0, 1.1980000734329224]
    """
    call = "prox.exponential(0.1, sigma=1.0)"
    sigma = number("sigma", sigma, call, positive=True)
    return Exponential(number("strength", strength, call), sigma)


def geman(strength: ArrayLike, eps: ArrayLike = 1.0) -> Geman:
    r"""Geman's penalty: a hyperbola that saturates at `strength`.

    `f(x) = strength * sum |x_i| / (|x_i| + eps)`.

    Args:
      strength: >= 0.
      eps: > 0.

    Returns:
      An elementwise penalty of weak convexity `2 strength / eps^2`.

    Raises:
      ValueError: If the strength is negative or eps is not positive.

    Reference:
      Geman and Yang, Nonlinear Image Recovery with Half-Quadratic Regularization, 1995.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.geman(1.0, eps=1.0).prox(jnp.array([0.5, 2.25])).round(4).tolist()
      [0.0, 2.149199962615967]
    """
    call = "prox.geman(0.1, eps=1.0)"
    return Geman(number("strength", strength, call), number("eps", eps, call, positive=True))


def transformed_l1(strength: ArrayLike, a: ArrayLike = 1.0) -> TransformedL1:
    r"""Transformed l1: between l0 (a to 0) and l1 (a to infinity).

    `f(x) = strength * sum (a + 1) |x_i| / (a + |x_i|)`, which is `geman(strength (a + 1), a)`.

    Args:
      strength: >= 0.
      a: > 0.

    Returns:
      An elementwise penalty of weak convexity `2 strength (a + 1) / a^2`.

    Raises:
      ValueError: If the strength is negative or a is not positive.

    Reference:
      Zhang and Xin, Minimization of Transformed L1 Penalty, 2018, arXiv 1411.5735.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.transformed_l1(1.0, a=1.0).value(jnp.array([1.0, -3.0])).item()
      2.5
    """
    call = "prox.transformed_l1(0.1, a=1.0)"
    a = number("a", a, call, positive=True)
    return TransformedL1(number("strength", strength, call), a)


def concave(
    value: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    strength: ArrayLike = 1.0,
) -> Concave:
    r"""Any even penalty that is concave in the modulus, given by two functions.

    `f(x) = strength * sum value(|x_i|)`. The proximal operator is 0 or the larger root of
    `u + t strength value'(u) = |v|`, found by Newton's method from `|v|`, whichever has the lower
    objective: exact if value is non-decreasing and concave and its derivative convex.

    Args:
      value: Elementwise function of moduli, in JAX.
      derivative: Its derivative, convex and decreasing (it may be infinite at 0).
      strength: >= 0.

    Returns:
      An elementwise penalty. The functions are static: pass the same ones to compile once.

    Raises:
      TypeError: If value or derivative is not a function.
      ValueError: If the strength is negative.

    Reference:
      Gong, Zhang, Lu, Huang and Ye, A General Iterative Shrinkage and Thresholding Algorithm for
      Non-convex Regularized Optimization Problems, 2013, arXiv 1303.4434.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.concave(jnp.log1p, lambda b: 1 / (1 + b))
      >>> penalty.prox(jnp.array([1.0, 1.5])).tolist()
      [0.0, 1.0]
    """
    call = "prox.concave(jnp.log1p, lambda b: 1 / (1 + b))"
    for name, function in (("value", value), ("derivative", derivative)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}; for example {call}.")
    return Concave(value, derivative, number("strength", strength, call))
