"""Concave penalties of a scaled modulus: the proximal operator is 0 or the larger root."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ._penalty import Elementwise, largest_float, relu


class Scaled(Elementwise):
    """`strength * phi(b / scale)` with phi concave, phi' convex, `phi(0) = 0`.

    In y = u / scale the proximal operator is 0 or the larger root of `y + c phi'(y) = beta`, with
    `beta = b / scale` and `c = t strength / scale^2`. Solvers return the pull `beta - y`, which is
    more accurate for large y.
    """

    def _scale(self) -> ArrayLike:
        raise NotImplementedError

    def _rise(self, scale: Array) -> Array:
        """The limit of `phi(u / own scale) - phi(u / scale)` for large u: 0 if phi is bounded."""
        return jnp.zeros_like(scale)

    def _price(self) -> ArrayLike:
        return self.strength  # pyright: ignore[reportAttributeAccessIssue]

    def _phi(self, y: Array) -> Array:
        raise NotImplementedError

    def _derivatives(self, y: Array) -> tuple[Array, Array]:
        """`phi'` and `phi''` for y >= 0."""
        raise NotImplementedError

    def _pull(self, beta: Array, c: Array, first: Array) -> Array:
        """`beta - y` at the larger root y, near `first`; arbitrary if no root exists."""
        raise NotImplementedError

    def _jump(self, c: Array, rise: Array) -> Array:
        """The y > 0 with the objective of 0, `y^2 / 2 = c (phi(y) - y phi'(y))`, if it exists."""
        least = self._least(c)
        holds = lambda y: (y < least) | (_gain(self, y, c, rise) >= 0)  # noqa: E731
        return largest_float(holds, c.shape, c.dtype)

    def _least(self, c: Array) -> Array:
        """The y below which rounding hides jumps; 0, none, where the slope at 0 is infinite."""
        slope, bend = self._derivatives(jnp.zeros_like(c))
        curved = (bend < 0) & jnp.isfinite(bend) & jnp.isfinite(slope)
        tiny = jnp.sqrt(jnp.finfo(c.dtype).eps).astype(c.dtype)
        return jnp.where(curved, -tiny * slope / jnp.where(curved, bend, -1), 0)

    def _wide(self, size: Array) -> Array:
        """The scale, or one at which size / scale and c stay floats: only `_rise` differs."""
        info = jnp.finfo(size.dtype)
        least = float(info.max) ** -0.4 * lax.stop_gradient(size)
        return jnp.maximum(self._scale(), jnp.maximum(least, 4 * info.tiny))  # so is 1 / scale

    def _cost(self, b: Array) -> Array:
        scale = self._wide(jnp.where(b < jnp.inf, b, 0))
        return jnp.asarray(self._price() * (self._phi(b / scale) + self._rise(scale)))

    def _slope(self, b: Array) -> Array:
        scale = self._wide(jnp.where(b < jnp.inf, b, 0))
        return jnp.asarray(self._price() / scale * self._derivatives(b / scale)[0])

    def _shrink(self, b: Array, t: Array) -> Array:
        scale = self._wide(jnp.sqrt(t * self._price()))
        # XLA would divide by the square of the scale, which may be no float.
        inverse = lax.optimization_barrier(1 / scale)
        beta, c = b * inverse, t * (self._price() * inverse) * inverse
        rise = lax.stop_gradient(self._rise(scale))
        if c.size < beta.size:
            kept, pull = self._by_threshold(beta, c, rise)
        else:
            kept, pull = self._by_objective(beta, c, rise)
        u = jnp.where(kept, relu(b - scale * pull), 0)
        return jnp.where((c == 0) | (beta == jnp.inf), b, u)

    def _by_threshold(self, beta: Array, c: Array, rise: Array) -> tuple[Array, Array]:
        """Whether the root beats 0, by one threshold for many entries, and the pull."""
        threshold, pull = self._threshold(c, rise)
        kept = beta > threshold
        beta = jnp.where(kept, beta, jnp.where(threshold > 0, threshold, 1))
        first = beta - pull * threshold / beta
        return kept, _pull(self, beta, c, lax.stop_gradient(first))

    def _threshold(self, c: Array, rise: Array) -> tuple[Array, Array]:
        """The largest beta whose minimiser is 0, and the pull there; without derivatives."""
        c = lax.stop_gradient(c)
        slope, bend = self._derivatives(jnp.zeros_like(c))
        y = jnp.where(c * bend >= -1, 0, self._jump(c, rise))
        slope = jnp.where(y > 0, self._derivatives(jnp.where(y > 0, y, 1))[0], slope)
        pull = jnp.where(c > 0, c * slope, 0)
        return lax.stop_gradient(y + pull), lax.stop_gradient(pull)

    def _by_objective(self, beta: Array, c: Array, rise: Array) -> tuple[Array, Array]:
        """The same if each entry has its own c."""
        pull = _pull(self, beta, c, lax.stop_gradient(beta))
        y = jnp.maximum(beta - pull, 0)
        # 0.5 (y - beta)^2 + c phi(y) < 0.5 beta^2, without the cancellation.
        return (y > 0) & (c * (self._phi(y) + rise) < y * (beta - y / 2)), pull


@jax.custom_jvp
def _pull(penalty: Scaled, beta: Array, c: Array, first: Array) -> Array:
    return penalty._pull(beta, c, first)


@_pull.defjvp
def _pull_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The derivative of the root, which depends on the parameters through beta and c only."""
    penalty, beta, c, _ = primals
    _, moved_beta, moved_c, _ = tangents
    pull = _pull(*primals)
    y = beta - pull
    slope, bend = penalty._derivatives(jnp.where((y > 0) & (y < jnp.inf), y, 1))
    rate = 1 + c * bend
    rise = (slope * moved_c + c * bend * moved_beta) / jnp.where(rate > 0, rate, 1)
    return pull, rise


def _gain(penalty: Scaled, y: Array, c: Array, rise: Array) -> Array:
    """The objective at 0 minus that at a stationary point y."""
    return c * (penalty._phi(y) + rise - y * penalty._derivatives(y)[0]) - y * y / 2
