"""Orders of samples in stochastic training."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ._arguments import check_count, check_key


def minibatches(
    samples: int, batch_size: int, steps: int, *, key: Key[Array, ""]
) -> Int[Array, "steps batch"]:
    """Rows of the minibatches: each epoch visits every sample once, in a new order.

    Args:
      samples: Number of samples.
      batch_size: Samples per step; at most all of them. The rest of an epoch is skipped.
      steps: Number of steps.
      key: A key made by `jax.random.key`.

    Returns:
      Indices of samples; the first rows do not depend on `steps`.

    Raises:
      ValueError: If a size is not positive.
    """
    check_key("key", key)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    check_count("steps", steps, 0)
    batch_size = min(batch_size, samples)
    per_epoch = samples // batch_size
    # The order of an epoch depends only on its number, so a run that stops early uses the same
    # rows.
    keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(-(-steps // per_epoch)))
    orders = jax.vmap(lambda k: jax.random.permutation(k, samples))(keys)
    return orders[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]
