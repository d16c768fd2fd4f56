"""Smooth concave penalties: logarithm, exponential, Geman, and user-defined ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked, checked_number
from ._penalty import Leaf, Penalty, polynomial, register, static
from ._scaled import Scaled


def _root(squared: Array) -> Array:
    """The square root; 0 for negative values."""
    return jnp.sqrt(jnp.where(squared > 0, squared, 0))


def _refined(step: Callable[[Array], Array], root: Array) -> Array:
    """Refines a root of float32 precision by Newton's method if the dtype is wider."""
    for _ in range(0 if root.dtype == jnp.float32 else 2):
        root = step(root)
    return root


# Fitted at Chebyshev nodes: exp(p) where `p exp(-p) = (1 - r^2 / 2) / e`, to 2e-7, and
# 1 / (1 - z)^2 where `z (1 - z)^2 = (1 - r^2) 4 / 27`, to 5e-7.
_EXP_OF_PULL = (
    2.71828159, -2.71824723, 2.26438083, -1.7661176, 1.30690262,
    -0.88045089, 0.493907617, -0.204350525, 0.0531130197, -0.0063490016,
)  # fmt: skip
_SHARE_OF_PULL = (
    2.24999934, -2.59796447, 2.7468258, -2.80317253, 2.69288194,
    -2.23622413, 1.40574347, -0.561154127, 0.103065172,
)  # fmt: skip


@register
class LogSum(Scaled):
    """`strength * log(1 + |x| / eps)`, see `log_sum`."""

    strength: Leaf
    eps: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`strength / eps^2`."""
        return self.strength / self.eps**2

    def _scale(self) -> ArrayLike:
        return self.eps

    def _rise(self, scale: Array) -> Array:
        return jnp.log(scale) - jnp.log(self.eps)

    def _phi(self, y: Array) -> Array:
        return jnp.log1p(y)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        inverse = 1 / (1 + y)
        return inverse, -inverse * inverse

    def _pull(self, beta: Array, c: Array, first: Array) -> Array:
        del first
        # (1 + y)^2 - (1 + beta) (1 + y) + c = 0, and the pull is c / (1 + y). Where the square
        # overflows the pull is below the rounding of beta, see `_wide`.
        whole = 1 + beta
        return 2 * c / (whole + _root(whole * whole - 4 * c))


@register
class Exponential(Scaled):
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

    def _pull(self, beta: Array, c: Array, first: Array) -> Array:
        del first
        # -W0(-x), the root of p = x exp(p); p / x is smooth in r, which is 0 at the branch point.
        x = jnp.exp(jnp.log(c) - beta)
        r = _root(2 * (1 - jnp.e * x))

        def newton(p):
            pull = x * jnp.exp(p)
            return jnp.where(pull < 1, pull * (1 - p) / jnp.where(pull < 1, 1 - pull, 1), p)

        return _refined(newton, x * polynomial(r, _EXP_OF_PULL))


@register
class Geman(Scaled):
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
        bounded = jnp.where(y < jnp.inf, y, 1)
        return jnp.where(y < jnp.inf, bounded / (1 + bounded), jnp.where(jnp.isnan(y), y, 1))

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        inverse = 1 / (1 + y)
        return inverse**2, -2 * inverse**3

    def _jump(self, c: Array, rise: Array) -> Array:
        del rise
        return jnp.sqrt(2 * c) - 1

    def _pull(self, beta: Array, c: Array, first: Array) -> Array:
        del first
        # z (1 + beta) with z = d / (1 - z)^2; z / d is smooth in r, which is 0 at the branch point.
        whole = 1 + beta
        d = c / whole / whole / whole
        r = _root(1 - 27 / 4 * d)

        def newton(z):
            new = d / (1 - z) ** 2
            room = 1 - z - 2 * new
            return jnp.where(room > 0, new * (1 - 3 * z) / jnp.where(room > 0, room, 1), z)

        return whole * _refined(newton, d * polynomial(r, _SHARE_OF_PULL))


@register
class TransformedL1(Geman):
    """`strength * (a + 1) |x| / (a + |x|)`: a reparametrised `Geman`, see `transformed_l1`."""

    def _price(self) -> ArrayLike:
        return self.strength * (self.eps + 1)

    @property
    def weak_convexity(self) -> ArrayLike:
        """`2 strength (a + 1) / a^2`."""
        return 2 * self._price() / self.eps**2


# Of the threshold over a modulus: most of them near 1, where roots may lie close together.
_SHARES = np.concatenate(
    [1 - np.linspace(0, 1, 192, endpoint=False) ** 2, 2.0 ** -np.arange(7, 40)]
)


@register
class Concave(Scaled):
    """`strength * value(|x|)` for a given concave function, see `concave`."""

    function: Callable[[Array], Array] = static()
    derivative: Callable[[Array], Array] = static()
    strength: Leaf
    # Of Newton's method in one pass over memory; None for as many as are needed, in a loop.
    steps: int | None = static(default=None)

    @property
    def weak_convexity(self) -> ArrayLike:
        """`-strength * f''(0)`, the maximum for a concave function whose derivative is convex."""
        second = jax.grad(self.derivative)(0.0)
        return jnp.where(jnp.isfinite(second), -self.strength * second, jnp.inf)

    def _scale(self) -> ArrayLike:
        return 1.0

    def _wide(self, size: Array) -> Array:
        return jnp.ones_like(size)

    def _phi(self, y: Array) -> Array:
        # Its slope may be infinite at 0; keep that out of the gradient of the value.
        at = self.function(jnp.where(y > 0, y, 1)) - self.function(jnp.zeros_like(y))
        return jnp.where(y > 0, at, 0)

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        return jax.jvp(self.derivative, (y,), (jnp.ones_like(y),))

    def _newton(self, y: Array, beta: Array, c: Array, steps: int) -> Array:
        """Steps of Newton's method for a convex function, which is monotone after the first."""
        for _ in range(steps):
            y = self._step(y, beta, c, y)
        return y

    def _begin(self, first: Array, beta: Array, c: Array) -> Array:
        """The first step: from the left of the minimum of the equation to the right of the root."""
        return self._step(first, beta, c, beta)

    def _step(self, y: Array, beta: Array, c: Array, left: Array) -> Array:
        slope, bend = self._derivatives(y)
        rate = 1 + c * bend
        new = y - (y - beta + c * slope) / jnp.where(rate > 0, rate, 1)
        return jnp.where(rate > 0, jnp.where(new > 0, jnp.minimum(new, beta), 0), left)

    def _rough(self, y: Array, beta: Array, c: Array) -> Array:
        """Whether a root is not yet precise: a step and the equation are above rounding."""
        slope, _ = self._derivatives(y)
        off = jnp.abs(y - beta + c * slope)
        moved = jnp.abs(self._newton(y, beta, c, 1) - y)
        eps = jnp.finfo(y.dtype).eps * beta
        return jnp.any((moved > 4 * eps) & (off > eps))

    def _pull_from(self, y: Array, beta: Array, c: Array) -> Array:
        return jnp.where(y > 0, c * self._derivatives(jnp.where(y > 0, y, 1))[0], beta)

    def _prox(self, x: Array, t: Array) -> Array:
        c = jnp.asarray(t * self.strength)
        if self.steps is not None or c.size * _SHARES.size > x.size:
            return super()._prox(x, t)
        few = [Concave(self.function, self.derivative, self.strength, n)._prox for n in (2, 4)]
        return lax.switch(self._lacking(c), [*few, super()._prox], x, t)

    def _lacking(self, c: Array) -> Array:
        """0 if two steps suffice for all moduli above the threshold, 1 if four, 2 if neither."""
        threshold, pull = self._threshold(c, jnp.zeros_like(c))
        shares = jnp.asarray(_SHARES, c.dtype).reshape(-1, *[1] * c.ndim)
        beta = jnp.where(threshold > 0, threshold, 1) / shares
        two = self._newton(self._begin(beta - pull * shares, beta, c), beta, c, 1)
        four = self._newton(two, beta, c, 2)
        lacking = self._rough(two, beta, c), self._rough(four, beta, c)
        return jnp.sum(jnp.stack(lacking), dtype=jnp.int32)

    def _pull(self, beta: Array, c: Array, first: Array) -> Array:
        def steps(state):
            count, y, _ = state
            y = self._newton(y, beta, c, 4)
            return count + 1, y, self._rough(y, beta, c)

        start = self._begin(first, beta, c)
        if self.steps is not None:
            return self._pull_from(self._newton(start, beta, c, self.steps - 1), beta, c)

        state = jnp.int32(0), start, self._rough(start, beta, c)
        y = lax.while_loop(lambda state: (state[0] < 10) & state[2], steps, state)[1]
        return self._pull_from(y, beta, c)


def log_sum(strength: ArrayLike, eps: ArrayLike = 1.0) -> Penalty:
    r"""The sum of logarithms: reweighted l1 in the limit.

    `f(x) = strength * sum log(1 + |x_i| / eps)`.

    Args:
      strength: >= 0.
      eps: > 0; smaller values approach l0.

    Returns:
      An elementwise penalty of weak convexity `strength / eps^2`; its proximal operator is
      continuous for `t strength <= eps^2` and discontinuous beyond.

    Raises:
      ValueError: If the strength is negative or eps is not positive.

    Reference:
      Candes, Wakin and Boyd, Enhancing Sparsity by Reweighted l1 Minimization, 2008,
      arXiv 0711.1612.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.log_sum(1.0, eps=1.0).prox(jnp.array([1.0, 1.5])).round(4).tolist()
      [0.0, 1.0]
    """
    call = "prox.log_sum(0.1, eps=1.0)"
    return LogSum(
        checked_number("strength", strength, call), checked_number("eps", eps, call, positive=True)
    )


def exponential(strength: ArrayLike, sigma: ArrayLike = 1.0) -> Penalty:
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
    sigma = checked_number("sigma", sigma, call, positive=True)
    return Exponential(checked_number("strength", strength, call), sigma)


def geman(strength: ArrayLike, eps: ArrayLike = 1.0) -> Penalty:
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
    return Geman(
        checked_number("strength", strength, call), checked_number("eps", eps, call, positive=True)
    )


def transformed_l1(strength: ArrayLike, a: ArrayLike = 1.0) -> Penalty:
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
    a = checked_number("a", a, call, positive=True)
    return TransformedL1(checked_number("strength", strength, call), a)


@checked(value="value(x)", derivative="derivative(x)")
def concave(
    value: Callable[[Array], Array],
    derivative: Callable[[Array], Array],
    strength: ArrayLike = 1.0,
) -> Penalty:
    r"""Any even penalty that is concave in the modulus, given by two functions.

    `f(x) = strength * sum value(|x_i|)`. The proximal operator is 0 or the larger root of
    `u + t strength value'(u) = |v|`, found by Newton's method, whichever has the lower
    objective: exact if value is non-decreasing and concave and its derivative convex.

    Args:
      value: Elementwise function of moduli, in JAX.
      derivative: Its derivative, convex and decreasing (it may be infinite at 0).
      strength: >= 0.

    Returns:
      An elementwise penalty. The functions are static: reuse the same function objects to avoid
      recompilation.

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
    return Concave(value, derivative, checked_number("strength", strength, call))
