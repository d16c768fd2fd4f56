"""Base classes of penalties: values, proximal operators, shared dtype and phase handling."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, PyTree

from .. import _tree
from .._arrays import out_dtype, poison, quotient, real_dtype, wide_dtype, zeros_for
from .._sharding import whole_with_auto_axes, with_auto_axes

# A number or an array. Not validated: inside JAX transformations leaves may be any object.
Leaf = Any

_C = TypeVar("_C", bound=type)


def static(**kwargs: Any) -> Any:
    """A static field: hashable, part of the tree structure."""
    return field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(field, static))
def register(cls: _C) -> _C:
    """A frozen dataclass as a pytree: numbers are leaves, so that new values never recompile.

    It has no `__post_init__`: the gradient of a penalty is a penalty too and may be negative. The
    factories validate their arguments.
    """
    return _tree.register(dataclass(frozen=True, eq=False)(cls))


class Penalty:
    r"""A penalty f with its value and its exact proximal operator.

    `prox(v, step) = argmin_u 0.5 ||u - v||^2 + step * f(u)`: the global minimiser, also where it is
    discontinuous for a non-convex f (at a jump the smaller magnitude wins). Every penalty is a
    pytree: its strength and weights are leaves, which may be traced, mapped over and
    differentiated.

    Attributes:
      elementwise: Whether f is a sum over entries; `step` may then be an array.
      weak_convexity: The smallest rho for which `f + rho/2 ||x||^2` is convex, infinity if none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax import prox
      >>> v = jnp.array([3.0, -1.0, 0.5])
      >>> prox.l1(1.0).prox(v).tolist()
      [2.0, 0.0, 0.0]
      >>> path = jax.vmap(lambda penalty: penalty.prox(v))(prox.l1(jnp.array([0.5, 1.0])))
      >>> path.tolist()
      [[2.5, -0.5, 0.0], [2.0, 0.0, 0.0]]
    """

    elementwise: ClassVar[bool] = False
    # f is non-decreasing in each |x_i|; `nonneg` and `masked` rely on it.
    monotone: ClassVar[bool] = True
    takes_tree: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True

    @property
    def weak_convexity(self) -> ArrayLike:
        """The smallest rho for which `f + rho/2 ||x||^2` is convex, infinity if none."""
        return 0.0

    def value(self, x: PyTree) -> Float[Array, ""]:
        """f(x), at least in float32."""
        x, wide = self._widen(x)
        return whole_with_auto_axes(lambda own, x: own._value(x), wide, x, like=x)

    def prox(self, v: PyTree, step: ArrayLike = 1.0) -> PyTree:
        """`argmin_u 0.5 ||u - v||^2 + step * f(u)`, in the shape and dtype of v.

        Args:
          v: An array of any shape (a pytree if the penalty takes one).
          step: The step, >= 0; an array that broadcasts with v if the penalty is elementwise.
        """
        self._check_step(step)
        x, wide = self._widen(v)
        t = jnp.asarray(step, real_dtype(x))
        if self.elementwise:
            u = wide._prox(x, t)
        else:
            u = with_auto_axes(lambda own, x, t: own._prox(x, t), wide, x, t, like=x)
        return jax.tree.map(lambda new, old: new.astype(out_dtype(old)), u, v)

    def conjugate_value(self, y: PyTree) -> Float[Array, ""]:
        """The Fenchel conjugate `f*(y) = sup_x <x, y> - f(x)`, if a closed form is known."""
        y, wide = self._widen(y)
        return wide._conjugate_value(y)

    def subdiff_distance(self, x: PyTree, grad: PyTree) -> Float[Array, "..."]:
        """Distance from `-grad` to the subdifferential of f at x, per entry or per group.

        If `grad` is the gradient of the loss, x is a stationary point of `loss + f` if and only if
        this is zero everywhere: the optimality measure of solvers and the score of working sets.
        """
        (x, grad), wide = self._widen((x, grad), pair=True)
        return wide._subdiff_distance(x, grad)

    def norm_terms(self, x: PyTree) -> tuple[Array, Array]:
        """`(sizes, weights)` of a norm `f(x) = sum_g weights_g * sizes_g`.

        Its dual norm is `max_g sizes_g(y) / weights_g`, which certifies a duality gap.

        Raises:
          NotImplementedError: If the penalty is not a weighted sum of moduli or of group norms.
        """
        raise NotImplementedError(f"{self._name} is not a weighted sum of norms.")

    def _value(self, x: Any) -> Array:
        raise NotImplementedError

    def _prox(self, x: Any, t: Array) -> Any:
        raise NotImplementedError

    def _conjugate_value(self, y: Any) -> Array:
        raise NotImplementedError(
            f"no closed form of the conjugate of {self._name} is implemented."
        )

    def _subdiff_distance(self, x: Any, grad: Any) -> Array:
        raise NotImplementedError(
            f"{self._name} has no closed-form distance to its subdifferential."
        )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _widen(self, x: Any, pair: bool = False) -> Any:
        """x in at least float32, and this penalty with its parameters in that dtype."""
        for one in x if pair else (x,):
            if not self.takes_tree and not jax.tree_util.all_leaves([one]):
                raise TypeError(
                    f"{self._name} takes one array, got a {type(one).__name__}; for the leaves of "
                    "a pytree use prox.separable_sum(penalty)."
                )
        x = jax.tree.map(widen, x)
        if not self.takes_complex and any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError(f"{self._name} is a penalty of real numbers, got complex ones.")
        dtype = real_dtype(x)
        return x, jax.tree.map(lambda leaf: _cast(leaf, dtype), self)

    def _check_step(self, step: ArrayLike) -> None:
        if not self.elementwise and np.ndim(step):
            raise ValueError(
                f"{self._name} requires a scalar step, got an array of shape {np.shape(step)}, "
                "which defines a different problem; pass a scalar, or use jax.vmap for a step per "
                "row."
            )
        if isinstance(step, int | float | np.ndarray | np.number) and np.any(np.less(step, 0)):
            raise ValueError(f"step must be >= 0, got {step}; for example penalty.prox(v, 0.1).")


class Symmetric(Penalty):
    """A penalty of the moduli. Subclasses define `_cost(b)` and `_shrink(b, t)` with `b = |x|`."""

    def _value(self, x: Array) -> Array:
        return jnp.sum(self._cost(jnp.abs(x))) + poison(x)

    def _prox(self, x: Array, t: Array) -> Array:
        b, phase = polar(x)
        u = self._shrink(b, t)
        # Return +0.0, never -0.0.
        return jnp.where(jnp.isnan(b), x, jnp.where(u == 0, u, phase * u)) + self._unknown(t)

    def _unknown(self, t: Array) -> Array:
        """NaN where the step or a parameter is NaN, with which a comparison would keep x."""
        if not self.elementwise:
            return poison(t, *_numbers(self))
        lost = [jnp.where(jnp.isnan(n), n, 0) for n in (t, *_numbers(self))]
        return lax.stop_gradient(jnp.asarray(sum(lost, start=0.0)))

    def _cost(self, b: Array) -> Array:
        raise NotImplementedError

    def _shrink(self, b: Array, t: Array) -> Array:
        raise NotImplementedError


class Elementwise(Symmetric):
    """A sum of an even function over entries; `_slope(b)` is its derivative, at 0 from the right.

    Subclasses define `_cost`, `_shrink`, `_slope` and `weak_convexity`.
    """

    elementwise: ClassVar[bool] = True

    def _slope(self, b: Array) -> Array:
        raise NotImplementedError

    def _subdiff_distance(self, x: Array, grad: Array) -> Array:
        b, phase = polar(x)
        slope = self._slope(b)
        inside = jnp.where(b == 0, relu(jnp.abs(grad) - slope), jnp.abs(grad + phase * slope))
        return jnp.where(jnp.isnan(b), b, inside)


class Indicator(Penalty):
    """0 on a set, infinity outside; `_violation` is 0 on the set up to rounding."""

    def value(self, x: PyTree) -> Float[Array, ""]:
        """0 if x is in the set up to the rounding error of its dtype, else infinity."""
        rounding = max(float(jnp.finfo(out_dtype(leaf)).eps) for leaf in jax.tree.leaves(x))
        x, wide = self._widen(x)
        # One rounding of each entry to its own dtype, plus the rounding of the computation.
        slack = 4 * rounding + 32 * float(jnp.finfo(real_dtype(x)).eps)

        def outside(own, x):
            violation = jnp.max(own._violation(x), initial=0.0)
            value = jnp.where(violation <= slack, 0.0, jnp.inf).astype(real_dtype(x))
            return value + poison(*jax.tree.leaves(x))

        return whole_with_auto_axes(outside, wide, x, like=x)

    def _violation(self, x: Any) -> Array:
        raise NotImplementedError

    def _unknown(self, t: Array) -> Array:
        """NaN if a parameter is NaN; the step has no effect."""
        del t
        return poison(*_numbers(self))


def polar(x: Inexact[Array, "..."]) -> tuple[Array, Array]:
    """Modulus and phase. The phase of a real 0 is 1: a sign of 0 would hide the derivative."""
    if jnp.iscomplexobj(x):
        b = jnp.abs(x)
        return b, quotient(x, jnp.where(b > 0, b, 1))
    phase = jnp.where(x < 0, jnp.ones((), x.dtype) * -1, jnp.ones((), x.dtype))
    return x * phase, phase


def relu(x: Array) -> Array:
    """`max(x, 0)` with the derivative of the branch taken."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


def widen(v: ArrayLike) -> Inexact[Array, "..."]:
    """The array in at least float32; float64 and complex are unchanged."""
    x = jnp.asarray(v)
    return x.astype(wide_dtype(x))


def polynomial(x: Array, coefficients: Sequence[ArrayLike]) -> Array:
    """`sum_i coefficients_i x^i`, in one pass over memory."""
    total = jnp.zeros((), x.dtype)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def largest_float(holds: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """The largest float >= 0 for which `holds` is True; it must switch to False once.

    Bit by bit, since non-negative floats are ordered like their bits: 31 passes for float32 (63
    for float64) give the exact float, without a sort, which is slower and does not shard.
    """
    bits = jnp.finfo(dtype).bits
    integer = jnp.dtype(f"uint{bits}")
    one = jnp.ones((), integer)

    def set_bit(i, found):
        candidate = found | (one << jnp.asarray(bits - 2 - i, integer))
        return jnp.where(holds(lax.bitcast_convert_type(candidate, dtype)), candidate, found)

    start = zeros_for(shape, integer, holds(jnp.zeros(shape, dtype)))
    found = lax.fori_loop(0, bits - 1, set_bit, start)
    return lax.stop_gradient(lax.bitcast_convert_type(found, dtype))


def implicit(residual: Any, root: Array, *args: Array) -> Array:
    """Attaches the derivatives of a root of `residual(root, *args)` that was found without them.

    A Newton step from the root changes it by rounding only and carries the derivative; a second
    one carries the derivatives of second and third order.
    """
    root = lax.stop_gradient(root)
    for _ in range(2):
        _, slope = jax.jvp(lambda y: residual(y, *args), (root,), (jnp.ones_like(root),))
        root = root - residual(root, *args) / jnp.where(slope > 0, slope, 1)
    return root


def _numbers(penalty: Penalty) -> list[Array]:
    """The parameters of a penalty, without counts and labels."""
    leaves = jax.tree.leaves(penalty)
    return [n for n in leaves if jnp.issubdtype(jnp.result_type(n), jnp.floating)]


def _cast(leaf: Any, dtype: Any) -> Any:
    return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf
