"""Dtypes, units and norms of arrays of numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree


def real_dtype(tree: PyTree) -> Any:
    """The dtype of real scalars to combine with the arrays of a tree."""
    leaves = jax.tree.leaves(tree)
    return jnp.finfo(jnp.result_type(*leaves)).dtype if leaves else jnp.dtype(jnp.float32)


def out_dtype(v: ArrayLike) -> Any:
    """The result dtype for v: its own, float32 for integers."""
    dtype = jnp.result_type(v)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.float32)


def wide_dtype(*arrays: Any) -> Any:
    """The dtype to compute with arrays in: at least float32, also where promotion is strict."""
    return common_dtype(*arrays, jnp.float32)


def common_dtype(*arrays: Any) -> Any:
    """The dtype of a sum of arrays, also where promotion is strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(jnp.result_type(x) for x in arrays))


def zeros_for(shape: tuple[int, ...], dtype: Any, *arrays: Any) -> Array:
    """Zeros to start a loop, which vary over the devices of `jax.shard_map` as the arrays do."""
    zeros = jnp.zeros(shape, dtype)
    for x in arrays:
        zeros = zeros + jnp.zeros_like(x, shape=(), dtype=dtype)
    return zeros


def magnitude(*arrays: Array) -> Float[Array, ""]:
    """The approximate largest modulus, 1 for zeros: a power of two, so that division is exact.

    Products of two of them and of their inverses stay in the float range: XLA divides by products.
    """
    largest = jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in arrays]).max()
    limits = jnp.finfo(largest.dtype)
    far = 2.0 ** (limits.maxexp // 2 - 4)
    inside = lax.stop_gradient(jnp.clip(largest, 1 / far, far))
    # The quotient of a float and its mantissa is exact; jnp.exp2 is not.
    return jnp.where(largest > 0, inside / jnp.frexp(inside)[0], 1)


def poison(*arrays: Array) -> Float[Array, ""]:
    """NaN if an array holds NaN, else 0, with derivative 0: added to a value that would hide it."""
    lost = [jnp.sum(jnp.where(jnp.isnan(x), jnp.abs(x), 0)) for x in map(jnp.asarray, arrays)]
    return lax.stop_gradient(jnp.asarray(sum(lost, start=0.0)))


def passed(kept: Array, x: Array) -> Array:
    """x where it is kept or NaN, which no selection may hide, and 0 elsewhere."""
    return jnp.where(kept | jnp.isnan(x), x, jnp.zeros((), x.dtype))


@jax.custom_jvp
def quotient(u: Array, r: Array) -> Array:
    """`u / r`, whose derivative `(du - (u / r) dr) / r` does not form the square of a tiny r."""
    return u / r


@quotient.defjvp
def _(primals, tangents):
    (u, r), (du, dr) = primals, tangents
    q = quotient(u, r)
    return q, (du - q * dr) * quotient(jnp.ones_like(r), r)


class Units(NamedTuple):
    """The scales of X and y that `balanced` divided by; both are powers of two."""

    X: Float[Array, ""]
    y: Float[Array, ""]

    def outside(self, w: Array) -> Array:
        """Coefficients in the original units."""
        return w * self.y / self.X

    def inside(self, w: Array) -> Array:
        """Coefficients in the units of the balanced problem."""
        return w * self.X / self.y

    def objective(self, value: Array) -> Array:
        """An objective value or gap in the original units."""
        return value * self.y * self.y


def largest_eigenvalue(dictionary: Array) -> Array:
    """`||D||_2^2`, exactly: power iteration underestimates it, which would make steps too large.

    1 for a matrix of zeros, NaN outside the float range.
    """
    size = magnitude(dictionary)
    nothing = ~jnp.any(dictionary)
    dictionary = dictionary / size
    wide = dictionary.shape[1] > dictionary.shape[0]
    gram = dictionary @ dictionary.T if wide else dictionary.T @ dictionary
    top = jnp.linalg.eigvalsh(lax.stop_gradient(gram))[-1] * size * size
    return jnp.where(nothing, 1, jnp.where((top > 0) & jnp.isfinite(top), top, jnp.nan))


def turned(
    x: Float[Array, "*b heads size"], angle: Float[Array, "*b half"], interleaved: bool
) -> Float[Array, "*b heads size"]:
    """Each pair of entries turned by an angle: neighbours, or entries half a row apart."""
    half = x.shape[-1] // 2
    cos, sin = (f(angle)[..., None, :] for f in (jnp.cos, jnp.sin))
    shape = (half, 2) if interleaved else (2, half)
    axis = -1 if interleaved else -2
    a, b = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], *shape), axis, 0)
    pairs = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis)
    return pairs.reshape(x.shape).astype(x.dtype)
