"""Influence unlearning: one Newton step away from the forget set."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._arguments import check_count, check_finite, checked, rows_of
from ..._arrays import wide_dtype
from ...masks import apply_masks

Inverse = Literal["exact", "woodfisher_cheap"]


@checked(alpha="(-inf, inf)", damping="(0, inf)", samples="[1, inf)", loss="loss(params, batch)")
def influence_unlearning(
    params: PyTree,
    masks: PyTree | None,
    loss: Callable[[PyTree, PyTree], Any],
    *,
    forget: PyTree,
    retain: PyTree,
    alpha: float = 1.0,
    damping: float = 1.0,
    samples: int = 1024,
    method: Inverse = "exact",
) -> PyTree:
    r"""Influence unlearning (IU): one Newton step away from the forget set.

    `theta + alpha H^-1 v` with `v = (n_f / N) (g_f - g_r)`, g the mean gradients on both sets, and
    the damped empirical Fisher `H = damping I + (1 / n) sum_i g_i g_i'` of n retained samples,
    solved exactly: `H^-1 v = (v - G' (n damping I + G G')^-1 G v) / damping`.

    "woodfisher_cheap" is the recursion of the authors' code, with two vectors in memory instead of
    n: `k = v` and `o = g_1`, then for i = 2, ..., n with `t = o' g_i` and N = `samples`
    `k <- k - (k' g_i) / (N + t) o` and `o <- o - t / (N + t) o`. Its k is not `H^-1 v`.

    Args:
      params: Trained parameters: a tree of arrays.
      masks: Boolean arrays and None, looked up by path; None is the dense network.
      loss: Function `(params, batch)` to the mean loss of a batch.
      forget: Samples to forget: arrays with the samples along their first axis.
      retain: The rest of the training samples.
      alpha: Length of the step.
      damping: Added to the diagonal; 1 in the authors' code. The recursion has no other.
      samples: The largest n; "exact" has the gradients of n samples in memory at once. 1000 in the
        authors' code.
      method: "exact" or "woodfisher_cheap".

    Returns:
      Parameters that are zero off the masks.

    Raises:
      ValueError: If one of the sets is empty, `damping` is not positive, or not 1 with the
        recursion, `alpha` is not finite, or `method` is not one of the two names.

    Reference:
      Koh and Liang, Understanding Black-box Predictions via Influence Functions, 2017 (arXiv
      1703.04730); Jia et al., 2023 (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearning
      >>> loss = lambda w, batch: jnp.mean((batch - w) ** 2) / 2
      >>> data = dict(forget=jnp.array([3.0]), retain=jnp.array([1.0]))
      >>> round(float(unlearning.influence_unlearning(jnp.array(2.0), None, loss, **data)), 3)
      1.5
    """
    check_count("samples", samples)
    n_f, n_r = rows_of("forget", forget), rows_of("retain", retain)
    check_finite("influence_unlearning", alpha=alpha)
    if not damping > 0:
        raise ValueError(f"influence_unlearning: damping={damping!r} must be positive.")
    if method not in ("exact", "woodfisher_cheap"):
        raise ValueError(f"method={method!r} must be 'exact' or 'woodfisher_cheap'.")
    if method == "woodfisher_cheap" and damping != 1:
        raise ValueError(
            f"influence_unlearning: damping={damping!r} must be 1 with method='woodfisher_cheap'; "
            "method='exact' takes any."
        )
    params = apply_masks(params, masks)
    flat, unravel = ravel_pytree(params)
    wide = wide_dtype(flat)

    def gradient(batch):
        grads = jax.grad(lambda p: loss(p, batch))(params)
        return ravel_pytree(apply_masks(grads, masks))[0].astype(wide)

    v = n_f / (n_f + n_r) * (gradient(forget) - gradient(retain))
    n = min(samples, n_r)
    alone = jax.tree.map(lambda x: jnp.asarray(x)[:n, None], retain)
    solve = _recursion if method == "woodfisher_cheap" else _exact
    direction = solve(v, alone, gradient, n, damping, samples)
    step = unravel((alpha * direction).astype(flat.dtype))
    return apply_masks(jax.tree.map(jnp.add, params, step), masks)


def _exact(v, alone, gradient, n: int, damping: float, samples: int) -> Float[Array, " d"]:
    del samples
    g = jax.vmap(gradient)(alone)
    inner = jnp.linalg.solve(n * damping * jnp.eye(n, dtype=v.dtype) + g @ g.T, g @ v)
    return (v - g.T @ inner) / damping


def _recursion(v, alone, gradient, n: int, damping: float, samples: int) -> Float[Array, " d"]:
    del n, damping

    def step(carry, row):
        k, o = carry
        g = gradient(row)
        t = samples + o @ g
        return (k - (k @ g) / t * o, o - (o @ g) / t * o), None

    first, rest = (jax.tree.map(lambda x, at=at: x[at], alone) for at in (0, slice(1, None)))
    return jax.lax.scan(step, (v, gradient(first)), rest)[0][0]
