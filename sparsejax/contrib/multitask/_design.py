"""The design value: predicted estimation error of a target head for an allocation of samples."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import checked


@checked()
def design_value(W: ArrayLike, w: ArrayLike, shares: ArrayLike) -> Float[Array, ""]:
    r"""The variance factor of a target head when task t gets a share p_t of the samples.

    `w^T (W diag(p) W^T)^-1 w`; the risk of the target is about this times `sigma^2 (d - k) / n`.
    Its minimum over p is `|nu|_1^2`, attained at p proportional to |nu|, where nu is the
    combination `W nu = w` of minimum l1 norm (Elfving).

    Args:
      W: Heads of the source tasks (k, t).
      w: Head of the target task (k,).
      shares: Samples of each task (t,), normalised to sum 1.

    Returns:
      A scalar; infinite if the heads of the sampled tasks do not span w, NaN if shares are negative
      or all 0.

    Reference:
      Elfving, Optimum Allocation in Linear Regression Theory, 1952; Wang et al., Improved Active
      Multi-Task Representation Learning via Lasso, 2023, arXiv 2306.02556.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import multitask
      >>> W, w = jnp.eye(2), jnp.array([1.0, 0.0])
      >>> [round(multitask.design_value(W, w, jnp.array(p)).item(), 3) for p in ([1, 1], [3, 1])]
      [2.0, 1.333]
    """
    W, w, p = (jnp.asarray(x, jnp.result_type(W, w, jnp.float32)) for x in (W, w, shares))
    if W.ndim != 2 or w.shape != W.shape[:1] or p.shape != W.shape[1:]:
        raise ValueError(
            "design_value: W, w and shares must have shapes (k, t), (k,) and (t,), got "
            f"{W.shape}, {w.shape} and {p.shape}."
        )
    # The value is computed in units in which no square leaves the range of floats.
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in (W, w)]
    sizes = [jnp.where(size > 0, size, 1) for size in sizes]
    W, w = W / sizes[0], w / sizes[1]
    p = p / jnp.sum(p)
    spread = (W * p[None]) @ W.T
    inverse = jnp.linalg.pinv(spread, hermitian=True, rtol=1e3 * jnp.finfo(W.dtype).eps)
    found = inverse @ w
    missed = jnp.linalg.norm(spread @ found - w) > 1e-3 * jnp.linalg.norm(w)
    found = jnp.vdot(w, found) * (sizes[1] / sizes[0]) ** 2
    valid = jnp.all(p >= 0)  # False for NaN, without any samples
    return jnp.where(valid, jnp.where(missed, jnp.inf, found), jnp.nan)
