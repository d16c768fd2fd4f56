"""Whether paired results differ."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class PairedTest(NamedTuple):
    """The mean difference, Student's t of it, and the two-sided p-value."""

    difference: Float[Array, ""]
    statistic: Float[Array, ""]
    p_value: Float[Array, ""]


def paired_t_test(a: Float[Array, " n"], b: Float[Array, " m"]) -> PairedTest:
    r"""Student's paired t-test of `a - b`: is the mean difference of n trials other than 0?

    `t = mean(a - b) / (sd(a - b) / sqrt(n))` with n - 1 degrees of freedom. Where all differences
    are equal p is 0, or 1 if they are 0.

    Args:
      a: Results, one a trial.
      b: Those of the other method in the same trials.

    Returns:
      A `PairedTest`.

    Raises:
      ValueError: If there are fewer than two trials or unequal numbers.

    Reference:
      Student, The Probable Error of a Mean, 1908.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.search import paired_t_test
      >>> test = paired_t_test(jnp.array([0.9, 0.8, 0.95]), jnp.array([0.8, 0.75, 0.9]))
      >>> round(float(test.difference), 4), round(float(test.p_value), 3)
      (0.0667, 0.057)
    """
    if a.shape != b.shape or a.size < 2:
        raise ValueError(
            f"paired_t_test needs the same two or more trials, got {a.size} and {b.size} results."
        )
    apart = a.astype(jnp.promote_types(a.dtype, jnp.float32)) - b
    mean, error = jnp.mean(apart), jnp.std(apart, ddof=1) / a.size**0.5
    t = mean / jnp.where(error > 0, error, 1)
    t = jnp.where(error > 0, t, jnp.where(mean == 0, 0, jnp.sign(mean) * jnp.inf))
    freedom = jnp.asarray(a.size - 1, apart.dtype)
    share = freedom / (freedom + jnp.minimum(t**2, jnp.finfo(apart.dtype).max))
    p = jax.scipy.special.betainc(freedom / 2, jnp.asarray(0.5, apart.dtype), share)
    return PairedTest(mean, t, p)
