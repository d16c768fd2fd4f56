"""Combinators of penalties: scaled, shifted, smoothed, masked, summed, conjugate."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked, checked_number, known, named_masks
from .._arrays import poison
from ._penalty import Leaf, Penalty, register


class _Wrapper(Penalty):
    """Base class of penalties that wrap another penalty."""

    penalty: Leaf

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Same as for the wrapped penalty."""
        return self.penalty.elementwise

    @property
    def monotone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Same as for the wrapped penalty."""
        return self.penalty.monotone

    @property
    def takes_tree(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Same as for the wrapped penalty."""
        return self.penalty.takes_tree

    @property
    def groups(self) -> Any:
        """Same as for the wrapped penalty; None without groups."""
        return getattr(self.penalty, "groups", None)

    @property
    def weak_convexity(self) -> ArrayLike:
        """Same as for the wrapped penalty."""
        return self.penalty.weak_convexity


@register
class Scaled(_Wrapper):
    """`factor * f(x)`, see `scale`."""

    penalty: Leaf
    factor: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """The weak convexity of f times the factor."""
        return self.factor * self.penalty.weak_convexity

    def _value(self, x: PyTree) -> Array:
        return self.factor * self.penalty.value(x)

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        return self.penalty.prox(x, t * self.factor)

    def _conjugate_value(self, y: PyTree) -> Array:
        inner = jax.tree.map(lambda leaf: leaf / self.factor, y)
        return self.factor * self.penalty.conjugate_value(inner)


@register
class Shifted(_Wrapper):
    """`f(x - center)`, see `shift`."""

    monotone = False  # pyright: ignore[reportAssignmentType]

    penalty: Leaf
    center: Leaf

    def _value(self, x: PyTree) -> Array:
        return self.penalty.value(jax.tree.map(jnp.subtract, x, self.center))

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        moved = self.penalty.prox(jax.tree.map(jnp.subtract, x, self.center), t)
        return jax.tree.map(jnp.add, moved, self.center)


@register
class Conjugate(_Wrapper):
    """The Fenchel conjugate of f, see `conjugate`."""

    monotone = False  # pyright: ignore[reportAssignmentType]

    penalty: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """0: conjugates are convex."""
        return 0.0

    def _value(self, x: PyTree) -> Array:
        return self.penalty.conjugate_value(x)

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        # Moreau's decomposition.
        safe = jnp.where(t == 0, 1, t)
        inner = self.penalty.prox(jax.tree.map(lambda leaf: leaf / safe, x), 1 / safe)
        return jax.tree.map(lambda leaf, u: jnp.where(t == 0, leaf, leaf - safe * u), x, inner)

    def _conjugate_value(self, y: PyTree) -> Array:
        return self.penalty.value(y)


@register
class NonNegative(_Wrapper):
    """f on non-negative x, infinity elsewhere, see `nonneg`."""

    takes_complex = False

    penalty: Leaf

    def _value(self, x: PyTree) -> Array:
        below = jnp.array([jnp.any(leaf < 0) for leaf in jax.tree.leaves(x)])
        value = jnp.where(jnp.any(below), jnp.inf, self.penalty.value(x))
        return value + poison(*jax.tree.leaves(x)).astype(value.dtype)

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        return self.penalty.prox(jax.tree.map(lambda leaf: jnp.where(leaf < 0, 0, leaf), x), t)


@register
class Masked(_Wrapper):
    """f of the entries in the mask, see `masked`."""

    penalty: Leaf
    mask: Leaf

    def _value(self, x: PyTree) -> Array:
        return self.penalty.value(self._inside(x))

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        moved = self.penalty.prox(self._inside(x), t)
        return self._map(lambda keep, u, leaf: jnp.where(keep, u, leaf), moved, x)

    def _inside(self, x: PyTree) -> PyTree:
        return self._map(lambda keep, leaf: jnp.where(keep, leaf, 0), x)

    def _map(self, f, *trees: PyTree) -> PyTree:
        return jax.tree.map(
            lambda keep, *subs: jax.tree.map(lambda *s: f(keep, *s), *subs), self.mask, *trees
        )


@register
class MoreauEnvelope(_Wrapper):
    """`min_u f(u) + ||x - u||^2 / (2 smoothing)`, see `moreau_envelope`."""

    penalty: Leaf
    smoothing: Leaf

    @property
    def weak_convexity(self) -> ArrayLike:
        """`rho / (1 - rho smoothing)`, infinity if that is not positive; 0 if f is convex."""
        rho = jnp.asarray(self.penalty.weak_convexity)
        room = 1 - rho * self.smoothing
        return jnp.where(room > 0, rho / jnp.where(room > 0, room, 1), jnp.inf)

    def _value(self, x: PyTree) -> Array:
        return _envelope(x, self.penalty, self.smoothing)

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        inner = self.penalty.prox(x, t + self.smoothing)
        share = t / (t + self.smoothing)
        return jax.tree.map(lambda leaf, u: leaf + share * (u - leaf), x, inner)


@jax.custom_jvp
def _envelope(x: PyTree, penalty: Penalty, smoothing: Array) -> Array:
    return _objective(penalty.prox(x, smoothing), x, penalty, smoothing)


@_envelope.defjvp
def _envelope_jvp(primals, tangents):
    # The minimiser is stationary to first order: hold it fixed and differentiate the rest.
    x, penalty, smoothing = primals
    u = penalty.prox(x, smoothing)
    return jax.jvp(lambda *args: _objective(u, *args), primals, tangents)


def _objective(u: PyTree, x: PyTree, penalty: Penalty, smoothing: Array) -> Array:
    gaps = jax.tree.leaves(jax.tree.map(jnp.subtract, x, u))
    squares = sum(jnp.sum(jnp.real(gap * jnp.conj(gap)) / (2 * smoothing)) for gap in gaps)
    return penalty.value(u) + squares


def scale(penalty: Penalty, factor: ArrayLike) -> Penalty:
    r"""A scaled penalty: `factor * f(x)`, `prox(v, t) = prox_f(v, t factor)`.

    Args:
      penalty: f.
      factor: >= 0.

    Returns:
      A penalty, elementwise if f is.

    Raises:
      ValueError: If the factor is negative.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014, section 2.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.scale(prox.l1(1.0), 2.0).prox(jnp.array([3.0, -1.0])).tolist()
      [1.0, 0.0]
    """
    call = "prox.scale(prox.l1(0.1), 2.0)"
    return Scaled(_penalty(penalty, call), checked_number("factor", factor, call))


@checked()
def shift(penalty: Penalty, center: PyTree) -> Penalty:
    r"""A shifted penalty: `f(x - center)`, `prox(v, t) = center + prox_f(v - center, t)`.

    Args:
      penalty: f.
      center: An array that broadcasts with x, or a pytree like x.

    Returns:
      A penalty, elementwise if f is.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014, section 2.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.shift(prox.l1(1.0), 5.0).prox(jnp.array([5.5, 8.0])).tolist()
      [5.0, 7.0]
    """
    return Shifted(_penalty(penalty, "prox.shift(prox.l1(0.1), 1.0)"), center)


def conjugate(penalty: Penalty) -> Penalty:
    r"""The Fenchel conjugate of a convex penalty: `f*(y) = sup_x <x, y> - f(x)`.

    `prox(v, t) = v - t prox_f(v / t, 1 / t)` for `t > 0` (Moreau). Its value is available if f has
    a `conjugate_value`.

    Args:
      penalty: f, convex.

    Returns:
      A convex penalty, elementwise if f is.

    Raises:
      ValueError: If f is not convex.

    Reference:
      Moreau, Proximite et dualite dans un espace hilbertien, 1965.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.conjugate(prox.l1(1.0)).prox(jnp.array([3.0, -0.5])).tolist()
      [1.0, -0.5]
    """
    rho = _penalty(penalty, "prox.conjugate(prox.l1(0.1))").weak_convexity
    if known(rho) and jnp.any(jnp.asarray(rho) > 0):
        raise ValueError(
            f"{type(penalty).__name__} is not convex (weak convexity {rho}), and Moreau's "
            "decomposition requires convexity; for example prox.conjugate(prox.l1(0.1))."
        )
    return Conjugate(penalty)


def nonneg(penalty: Penalty) -> Penalty:
    r"""A penalty on non-negative arrays: `f(x) if x >= 0, else infinity`.

    `prox(v, t) = prox_f(max(v, 0), t)`, for every penalty that is non-decreasing in the moduli.

    Args:
      penalty: f.

    Returns:
      A penalty of real x, elementwise if f is.

    Raises:
      ValueError: If f can decrease when a modulus increases.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.nonneg(prox.l1(1.0)).prox(jnp.array([3.0, -3.0])).tolist()
      [2.0, 0.0]
    """
    return NonNegative(_growing(penalty, "prox.nonneg(prox.l1(0.1))"))


@checked()
def masked(penalty: Penalty, mask: PyTree) -> Penalty:
    r"""A penalty of some entries: `f(mask * x)`; the others (biases, norms) are unchanged.

    Args:
      penalty: f, non-decreasing in every modulus.
      mask: Booleans that broadcast with x; or a pytree of them in the structure of x.

    Returns:
      A penalty, elementwise if f is.

    Raises:
      ValueError: If f can decrease when a modulus increases.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014, section 2.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> mask = jnp.array([True, False])
      >>> prox.masked(prox.l1(1.0), mask).prox(jnp.array([3.0, 3.0])).tolist()
      [2.0, 3.0]
    """
    flags = jax.tree.map(lambda m: jnp.asarray(m) if isinstance(m, bool) else m, mask)
    named_masks("masked", flags)
    return Masked(_growing(penalty, "prox.masked(prox.l1(0.1), mask)"), mask)


@checked()
def moreau_envelope(penalty: Penalty, smoothing: ArrayLike = 1.0) -> Penalty:
    r"""A smooth penalty below f: `min_u f(u) + ||x - u||^2 / (2 smoothing)`.

    The gradient of its value is `(x - prox_f(x, smoothing)) / smoothing`; its own proximal
    operator is `v + t / (t + smoothing) (prox_f(v, t + smoothing) - v)`.

    Args:
      penalty: f, convex or not.
      smoothing: > 0.

    Returns:
      A penalty, elementwise if f is.

    Raises:
      ValueError: If smoothing is not positive.

    Reference:
      Moreau, Proximite et dualite dans un espace hilbertien, 1965.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax import prox
      >>> envelope = prox.moreau_envelope(prox.l1(1.0))
      >>> jax.grad(envelope.value)(jnp.array([0.5, -3.0])).tolist()
      [0.5, -1.0]
    """
    call = "prox.moreau_envelope(prox.l1(0.1), 1.0)"
    smoothing = checked_number("smoothing", smoothing, call, positive=True)
    return MoreauEnvelope(_penalty(penalty, call), smoothing)


def _penalty(penalty: Any, call: str) -> Penalty:
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a penalty, got {penalty!r}; for example {call}.")
    return penalty


def _growing(penalty: Any, call: str) -> Penalty:
    if not _penalty(penalty, call).monotone:
        raise ValueError(
            f"{type(penalty).__name__} must be non-decreasing in every modulus; for example {call}."
        )
    return penalty
