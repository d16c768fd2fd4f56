"""Penalties of singular values: nuclear norm, rank, and any even penalty of the spectrum."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked, checked_integer
from .._arrays import out_dtype
from .._sharding import whole_with_auto_axes
from ._counts import HardK
from ._elementwise import l0, l1
from ._penalty import Leaf, Penalty, register


@register
class OnSingularValues(Penalty):
    """`f(singular values of x)`, see `on_singular_values`."""

    penalty: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """The weak convexity of the inner penalty."""
        return self.penalty.weak_convexity

    def value(self, x: ArrayLike) -> Array:
        """f of the singular values, summed over leading axes; its gradient is `U f'(s) V^T`.

        Singular values that are 0 up to the rounding error of the dtype of x are treated as 0.
        """
        eps = jnp.finfo(out_dtype(x)).eps
        x, wide = self._widen(x)

        def of_spectrum(own, x):
            s = _singular_values(x)
            floor = lax.stop_gradient(s[..., :1]) * max(jnp.shape(x)[-2:]) * float(eps)
            return own.penalty.value(jnp.where(s <= floor, 0, s))

        return whole_with_auto_axes(of_spectrum, wide, x, like=x)

    def _prox(self, x: Array, t: Array) -> Array:
        if x.ndim < 2:
            raise ValueError(f"{self._name} must be applied to a matrix, got shape {x.shape}.")
        return _spectral(x, self.penalty, t)

    def _conjugate_value(self, y: Array) -> Array:
        return self.penalty.conjugate_value(_singular_values(y))


@jax.custom_jvp
def _spectral(x: Array, penalty: Penalty, t: Array) -> Array:
    """`U prox(s) V^H`, with a derivative that avoids the singular one of the singular vectors."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return (u * _thresholded(penalty, s, t)[..., None, :]) @ vh


@_spectral.defjvp
def _spectral_jvp(primals, tangents):
    # Lewis and Sendov: in the singular basis, differences of h over differences of s for the
    # Hermitian part of the tangent, sums over sums for the rest; h' where two values coincide.
    (x, penalty, t), (dx, dpenalty, dt) = primals, tangents
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    uh, v = _h(u), _h(vh)
    p = uh @ dx @ v
    ds = jnp.real(jnp.diagonal(p, axis1=-2, axis2=-1))
    h, dh = jax.jvp(_moved, (penalty, s, t), (dpenalty, ds, dt))
    _, slope = jax.jvp(lambda s: _thresholded(penalty, s, t), (s,), (jnp.ones_like(s),))
    hermitian, rest = (p + _h(p)) / 2, (p - _h(p)) / 2
    off = 1 - jnp.eye(s.shape[-1], dtype=s.dtype)
    inner = off * (_differences(s, h, slope) * hermitian) + _sums(s, h, slope) * rest
    inner = inner + (dh[..., None] * jnp.eye(s.shape[-1], dtype=x.dtype))
    factor = _over(h, s, slope)
    outside = (dx @ v - u @ p) * factor[..., None, :]
    below = factor[..., :, None] * (uh @ dx - p @ vh)
    return (u * h[..., None, :]) @ vh, u @ inner @ vh + outside @ vh + u @ below


def _moved(penalty: Penalty, s: Array, t: Array) -> Array:
    return _thresholded(penalty, s, t)


def _thresholded(penalty: Penalty, s: Array, t: Array) -> Array:
    return penalty.prox(s, t)


def _differences(s: Array, h: Array, slope: Array) -> Array:
    gap = s[..., :, None] - s[..., None, :]
    close = jnp.abs(gap) <= jnp.sqrt(jnp.finfo(s.dtype).eps) * (s[..., :1, None] + 1e-30)
    mean = (slope[..., :, None] + slope[..., None, :]) / 2
    rise = h[..., :, None] - h[..., None, :]
    return jnp.where(close, mean, rise / jnp.where(close, 1, gap))


def _sums(s: Array, h: Array, slope: Array) -> Array:
    total = s[..., :, None] + s[..., None, :]
    positive = total > jnp.finfo(s.dtype).tiny
    mean = (slope[..., :, None] + slope[..., None, :]) / 2
    rise = h[..., :, None] + h[..., None, :]
    return jnp.where(positive, rise / jnp.where(positive, total, 1), mean)


def _over(h: Array, s: Array, slope: Array) -> Array:
    positive = s > jnp.finfo(s.dtype).tiny
    return jnp.where(positive, h / jnp.where(positive, s, 1), slope)


def _h(x: Array) -> Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


@jax.custom_jvp
def _singular_values(x: Array) -> Array:
    return jnp.linalg.svd(x, compute_uv=False)


@_singular_values.defjvp
def _singular_values_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return s, jnp.real(jnp.einsum("...mi,...mn,...in->...i", jnp.conj(u), dx, jnp.conj(vh)))


def on_singular_values(penalty: Penalty) -> Penalty:
    r"""Any even penalty of the singular values, by its proximal operator on them.

    `f(x) = penalty(s)`, `prox(x) = U prox_penalty(s) V^T` for `x = U diag(s) V^T`. Its derivative
    is exact also where singular values coincide or vanish.

    Args:
      penalty: An elementwise penalty, or one of vectors that does not depend on their order.

    Returns:
      A penalty of matrices `(..., m, n)`, real or complex.

    Raises:
      TypeError: If the penalty can decrease when a modulus increases.

    Reference:
      Lewis, The Convex Analysis of Unitarily Invariant Matrix Functions, 1995.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.on_singular_values(prox.mcp(1.0, gamma=2.0))
      >>> penalty.prox(jnp.diag(jnp.array([3.0, 0.5]))).tolist()
      [[3.0, 0.0], [0.0, 0.0]]
    """
    if not isinstance(penalty, Penalty) or not penalty.monotone:
        raise TypeError(
            f"penalty must be non-decreasing in the modulus, got {penalty!r}; for example "
            "prox.on_singular_values(prox.l1(0.1))."
        )
    return OnSingularValues(penalty)


def nuclear(strength: ArrayLike) -> Penalty:
    r"""The nuclear norm: singular value soft thresholding.

    `f(x) = strength * sum of singular values`; the gradient of its value is `U V^T`.

    Args:
      strength: >= 0.

    Returns:
      A convex penalty of matrices.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Cai, Candes and Shen, A Singular Value Thresholding Algorithm for Matrix Completion, 2008,
      arXiv 0810.3286.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.nuclear(1.0).prox(jnp.diag(jnp.array([3.0, 0.5]))).tolist()
      [[2.0, 0.0], [0.0, 0.0]]
    """
    return on_singular_values(l1(strength))


def rank(strength: ArrayLike) -> Penalty:
    r"""The rank: singular value hard thresholding.

    `f(x) = strength * rank(x)`; keeps singular values above `sqrt(2 t strength)`.

    Args:
      strength: >= 0.

    Returns:
      A penalty of matrices; not weakly convex. Its value counts the singular values that are not
      exactly 0.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Lewis, The Convex Analysis of Unitarily Invariant Matrix Functions, 1995.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.rank(2.0).prox(jnp.diag(jnp.array([3.0, 1.0]))).tolist()
      [[3.0, 0.0], [0.0, 0.0]]
    """
    return on_singular_values(l0(strength))


@checked(r="[0, inf)")
def max_rank(r: ArrayLike) -> Penalty:
    r"""The indicator of matrices of rank at most r: keep the r largest singular values.

    `f(x) = 0 if rank(x) <= r, else infinity`.

    Args:
      r: An integer; may be traced.

    Returns:
      A penalty of matrices; not weakly convex.

    Raises:
      TypeError: If r is not an integer.

    Reference:
      Eckart and Young, The approximation of one matrix by another of lower rank, 1936.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.max_rank(1).prox(jnp.diag(jnp.array([3.0, 1.0]))).tolist()
      [[3.0, 0.0], [0.0, 0.0]]
    """
    return on_singular_values(HardK(checked_integer("r", r, "prox.max_rank(4)")))
