"""Convex elementwise penalties, and l0."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import check_real, checked, checked_number
from .._arrays import poison
from ._penalty import Elementwise, Indicator, Leaf, Penalty, register, relu


@register
class L1(Elementwise):
    """`strength * |x|`, see `l1`."""

    strength: Leaf

    def _cost(self, b: Array) -> Array:
        return jnp.where(b == 0, 0, b) * jnp.where(b == 0, 0, self.strength)

    def _shrink(self, b: Array, t: Array) -> Array:
        # An infinite weight forces a zero, even for inf - inf and for a step of 0.
        forced = jnp.isinf(self.strength)
        threshold = t * jnp.where(forced, 0, self.strength)
        return jnp.where(forced | (b <= threshold), 0, b - threshold)

    def _slope(self, b: Array) -> Array:
        return jnp.broadcast_to(self.strength, b.shape)

    def norm_terms(self, x: Array) -> tuple[Array, Array]:
        return jnp.abs(x), jnp.asarray(self.strength)

    def _conjugate_value(self, y: Array) -> Array:
        return outside(*self.norm_terms(y))


@register
class L0(Elementwise):
    """`strength` for every entry that is not 0, see `l0`."""

    strength: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity: the jump at 0."""
        return jnp.inf

    def _cost(self, b: Array) -> Array:
        return jnp.where(b != 0, self.strength, 0)

    def _shrink(self, b: Array, t: Array) -> Array:
        return jnp.where(jnp.isinf(self.strength) | (b <= jnp.sqrt(2 * t * self.strength)), 0, b)

    def _slope(self, b: Array) -> Array:
        # Every slope is a subgradient at 0; elsewhere the slope is 0.
        return jnp.where(b == 0, jnp.inf, 0)


@register
class Ridge(Elementwise):
    """`strength / 2 * x^2`, see `ridge`."""

    strength: Leaf

    def _cost(self, b: Array) -> Array:
        return self.strength / 2 * b**2

    def _shrink(self, b: Array, t: Array) -> Array:
        return b / (1 + t * self.strength)

    def _slope(self, b: Array) -> Array:
        return self.strength * b

    def _conjugate_value(self, y: Array) -> Array:
        return jnp.sum(jnp.abs(y) ** 2 / (2 * self.strength))


@register
class ElasticNet(Elementwise):
    """`strength * (ratio |x| + (1 - ratio)/2 x^2)`, see `elastic_net`."""

    strength: Leaf
    ratio: Leaf

    def _cost(self, b: Array) -> Array:
        return self.strength * (self.ratio * b + (1 - self.ratio) / 2 * b**2)

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        return relu(b - m * self.ratio) / (1 + m * (1 - self.ratio))

    def _slope(self, b: Array) -> Array:
        return self.strength * (self.ratio + (1 - self.ratio) * b)


@register
class Huber(Elementwise):
    """`strength * x^2 / (2 delta)`, linear beyond delta, see `huber`."""

    strength: Leaf
    delta: Leaf

    def _cost(self, b: Array) -> Array:
        inner = jnp.minimum(b, self.delta)
        return self.strength * (inner**2 / (2 * self.delta) + (b - inner))

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        return jnp.where(b <= self.delta + m, b * (self.delta / (self.delta + m)), b - m)

    def _slope(self, b: Array) -> Array:
        return self.strength * jnp.minimum(b / self.delta, 1)


@register
class BerHu(Elementwise):
    """`strength * |x|`, quadratic beyond delta, see `berhu`."""

    strength: Leaf
    delta: Leaf

    def _cost(self, b: Array) -> Array:
        beyond = relu(b - self.delta)
        return self.strength * (b + beyond**2 / (2 * self.delta))

    def _shrink(self, b: Array, t: Array) -> Array:
        m = t * self.strength
        return jnp.where(b <= self.delta + m, relu(b - m), b * (self.delta / (self.delta + m)))

    def _slope(self, b: Array) -> Array:
        return self.strength * jnp.maximum(b / self.delta, 1)

    def _conjugate_value(self, y: Array) -> Array:
        b, s = jnp.abs(y), self.strength
        return jnp.sum(jnp.where(b <= s, 0, self.delta / 2 * (b - s) * (b + s) / s))


@register
class Box(Indicator):
    """The indicator of `lower <= x <= upper`, see `box`."""

    elementwise = True
    monotone = False
    takes_complex = False

    lower: Leaf
    upper: Leaf

    def _violation(self, x: Array) -> Array:
        return jnp.where((x < self.lower) | (x > self.upper), jnp.inf, 0)

    def _prox(self, x: Array, t: Array) -> Array:
        inside = jnp.where(x < self.lower, self.lower, x)
        return jnp.where(inside > self.upper, self.upper, inside) + self._unknown(t)


def outside(b: Array, radius: Array) -> Array:
    """Infinity if an entry exceeds the radius: the conjugate of a norm.

    The tolerance is the root of eps, since the tested value is a difference of larger numbers.
    """
    slack = 1 + jnp.sqrt(jnp.finfo(b.dtype).eps)
    return jnp.where(jnp.any(b > radius * slack), jnp.inf, 0).astype(b.dtype) + poison(b)


def l1(strength: ArrayLike) -> Penalty:
    r"""The l1 norm: soft thresholding.

    `f(x) = sum_i strength_i |x_i|`, `prox(v, t) = sign(v) max(|v| - t strength, 0)`.

    Args:
      strength: >= 0, a scalar or an array that broadcasts with x (the weighted l1 norm of
        reweighting schemes): 0 leaves an entry unpenalized, infinity forces it to 0.

    Returns:
      A convex elementwise penalty; complex x by modulus and phase.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Donoho, De-noising by soft-thresholding, 1995.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l1(1.0).prox(jnp.array([3.0, -1.0, -2.0]), step=0.5).tolist()
      [2.5, -0.5, -1.5]
    """
    return L1(checked_number("strength", strength, "prox.l1(0.1)"))


def l0(strength: ArrayLike) -> Penalty:
    r"""The number of non-zero entries: hard thresholding.

    `f(x) = strength * #{i: x_i != 0}`, `prox(v, t) = v where |v| > sqrt(2 t strength), else 0`.

    Args:
      strength: >= 0, a scalar or an array that broadcasts with x.

    Returns:
      An elementwise penalty; not weakly convex.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Blumensath and Davies, Iterative Thresholding for Sparse Approximations, 2008.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l0(2.0).prox(jnp.array([3.0, 2.0, -2.5])).tolist()
      [3.0, 0.0, -2.5]
    """
    return L0(checked_number("strength", strength, "prox.l0(0.1)"))


def ridge(strength: ArrayLike) -> Penalty:
    r"""Half the squared l2 norm: shrinks entries without zeroing any.

    `f(x) = strength/2 * ||x||^2`, `prox(v, t) = v / (1 + t strength)`.

    Args:
      strength: >= 0, a scalar or an array that broadcasts with x.

    Returns:
      A convex elementwise penalty.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Hoerl and Kennard, Ridge Regression, 1970.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.ridge(1.0).prox(jnp.array([2.0, -4.0])).tolist()
      [1.0, -2.0]
    """
    return Ridge(checked_number("strength", strength, "prox.ridge(0.1)"))


def elastic_net(strength: ArrayLike, ratio: ArrayLike = 0.5) -> Penalty:
    r"""The elastic net: l1 plus ridge.

    `f(x) = strength * (ratio ||x||_1 + (1 - ratio)/2 ||x||^2)`.

    Args:
      strength: >= 0.
      ratio: Share of the l1 norm, between 0 and 1.

    Returns:
      A convex elementwise penalty.

    Raises:
      ValueError: If the strength is negative or the ratio outside [0, 1].

    Reference:
      Zou and Hastie, Regularization and variable selection via the elastic net, 2005.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.elastic_net(1.0, ratio=0.5).prox(jnp.array([2.0, 0.5])).tolist()
      [1.0, 0.0]
    """
    call = "prox.elastic_net(0.1, ratio=0.5)"
    ratio = checked_number("ratio", ratio, call)
    checked_number("1 - ratio", 1 - ratio, call)
    return ElasticNet(checked_number("strength", strength, call), ratio)


def huber(strength: ArrayLike, delta: ArrayLike = 1.0) -> Penalty:
    r"""Quadratic near 0, linear beyond delta: a smoothed l1 norm.

    `f(x) = strength * x^2 / (2 delta)` for `|x| <= delta`, `strength * (|x| - delta/2)` beyond.
    It is the Moreau envelope of `l1`. Other libraries define it multiplied by delta.

    Args:
      strength: >= 0.
      delta: > 0, the end of the quadratic part.

    Returns:
      A convex elementwise penalty.

    Raises:
      ValueError: If the strength is negative or delta is not positive.

    Reference:
      Huber, Robust Estimation of a Location Parameter, 1964.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.huber(1.0, delta=1.0).prox(jnp.array([1.0, -4.0])).tolist()
      [0.5, -3.0]
    """
    call = "prox.huber(0.1, delta=1.0)"
    return Huber(
        checked_number("strength", strength, call),
        checked_number("delta", delta, call, positive=True),
    )


def berhu(strength: ArrayLike, delta: ArrayLike = 1.0) -> Penalty:
    r"""The l1 norm near 0, quadratic beyond delta: a reversed Huber function.

    `f(x) = strength * |x|` for `|x| <= delta`, `strength * (x^2 + delta^2) / (2 delta)` beyond. It
    sets small entries to 0 like `l1` and shrinks large ones like `ridge`.

    Args:
      strength: >= 0.
      delta: > 0, the end of the linear part.

    Returns:
      A convex elementwise penalty.

    Raises:
      ValueError: If the strength is negative or delta is not positive.

    Reference:
      Owen, A Robust Hybrid of Lasso and Ridge Regression, 2007.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.berhu(1.0, delta=1.0).prox(jnp.array([0.5, 1.5, -4.0])).tolist()
      [0.0, 0.5, -2.0]
    """
    call = "prox.berhu(0.1, delta=1.0)"
    return BerHu(
        checked_number("strength", strength, call),
        checked_number("delta", delta, call, positive=True),
    )


@checked()
def box(lower: ArrayLike = 0.0, upper: ArrayLike = jnp.inf) -> Penalty:
    r"""The indicator of a box: clipping.

    `f(x) = 0 if lower <= x <= upper, else infinity`. The default constrains x to be non-negative.

    Args:
      lower: Lower bounds, a scalar or an array that broadcasts with x.
      upper: Upper bounds, at least the lower ones.

    Returns:
      A convex elementwise penalty of real x.

    Raises:
      ValueError: If a lower bound exceeds the upper one.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.box(0.0, 1.0).prox(jnp.array([-2.0, 0.5, 3.0])).tolist()
      [0.0, 0.5, 1.0]
    """
    check_real("lower", lower, "prox.box(0.0, 1.0)")
    check_real("upper", upper, "prox.box(0.0, 1.0)")
    checked_number("upper - lower", jnp.asarray(upper) - jnp.asarray(lower), "prox.box(0.0, 1.0)")
    return Box(lower, upper)
