"""Products with sparse codes: a few decoder rows per token, with gradients as segment sums."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from .._arguments import checked
from .._arrays import wide_dtype, zeros_for


@checked()
def decode(
    indices: Int[Array | np.ndarray, "*n k"],
    values: Shaped[Array | np.ndarray, "*n k"],
    W_dec: Shaped[Array | np.ndarray, "h d"],
) -> Float[Array, "*n d"]:
    r"""The combination of a few decoder rows for each token, `sum_j v_nj W_dec[i_nj]`.

    Reads k rows a token instead of all h. The gradient in the rows is a segment sum, that in the
    values a product of each selected row with the gradient; sums are at least float32.

    Args:
      indices: Latents of each token, in [0, h); others are clipped. An index may occur twice.
      values: Their coefficients; 0 for unused positions.
      W_dec: One row for each latent.

    Returns:
      The reconstruction without the decoder bias, in the dtype of `W_dec`.

    Raises:
      ValueError: If shapes do not agree.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> W_dec = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
      >>> sj.sae.decode(jnp.array([[0, 2]]), jnp.array([[3.0, 0.5]]), W_dec).tolist()
      [[4.0, 1.0]]
    """
    W_dec = jnp.asarray(W_dec)
    lead, (h, d) = indices.shape[:-1], W_dec.shape
    index = jnp.clip(jnp.asarray(indices).reshape(-1, indices.shape[-1]), 0, h - 1)
    coefficients = jnp.asarray(values).reshape(index.shape)
    return combined(index, coefficients, W_dec).reshape(*lead, d)


@jax.custom_vjp
def combined(indices: Array, values: Array, rows: Array) -> Array:
    """`sum_j v_nj rows[i_nj]`, one position of all tokens at a time."""
    wide = wide_dtype(values, rows)

    def add(total, position):
        index, value = position
        return total + value[:, None].astype(wide) * rows[index].astype(wide), None

    zero = zeros_for((len(indices), rows.shape[1]), wide, indices, values, rows)
    return lax.scan(add, zero, (indices.T, values.T))[0].astype(rows.dtype)


@jax.custom_vjp
def sampled(indices: Array, x: Array, rows: Array) -> Array:
    """`<rows[i_nj], x_n>`: the entries of `x @ rows.T` at the indices."""
    wide = wide_dtype(x, rows)

    def at(index):
        return jnp.sum(rows[index].astype(wide) * x.astype(wide), axis=-1)

    return lax.map(at, indices.T).T.astype(x.dtype)


def scattered(indices: Array, values: Array, x: Array, rows: Array) -> Array:
    """`sum over (n, j) with i_nj = i of v_nj x_n` for each i, shaped as the rows."""
    wide = wide_dtype(values, x)

    def add(total, position):
        index, value = position
        return total.at[index].add(value[:, None].astype(wide) * x.astype(wide)), None

    zero = zeros_for(rows.shape, wide, indices, values, x)
    return lax.scan(add, zero, (indices.T, values.T))[0].astype(rows.dtype)


# Each is linear in both arguments, so that the three are closed under differentiation.
def _combined_backward(residual, g):
    indices, values, rows = residual
    return None, sampled(indices, g, rows).astype(values.dtype), scattered(indices, values, g, rows)


def _sampled_backward(residual, g):
    indices, x, rows = residual
    return None, combined(indices, g, rows).astype(x.dtype), scattered(indices, g, x, rows)


combined.defvjp(lambda i, v, w: (combined(i, v, w), (i, v, w)), _combined_backward)
sampled.defvjp(lambda i, x, w: (sampled(i, x, w), (i, x, w)), _sampled_backward)
