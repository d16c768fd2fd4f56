"""Gradients of one attention head with respect to its projections, exact or almost linear."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked, known
from ._attention import Method, chosen, polynomial_attention
from ._degree import attention_norm, bound_for, degree_for


class AttentionGradients(NamedTuple):
    """Gradients of a loss of one attention head.

    Attributes:
      q: With respect to the kernel of the queries; of a factor of an adapter `scale a b` they are
        `scale q b^T` and `scale a^T q`.
      k: With respect to the kernel of the keys.
      v: With respect to the kernel of the values.
      out: The output of the head, by the same method.
      bound: `attention_norm` of the head.
      degree: Degree of the polynomial; None if softmax was computed.
    """

    q: Float[Array, "w d"]
    k: Float[Array, "w d"]
    v: Float[Array, "w e"]
    out: Float[Array, "n e"]
    bound: Float[Array, ""]
    degree: int | None


@checked(scale="(0, inf)", eps="(0, 1)", degree="[0, inf)", chunk="[1, inf)")
def attention_gradients(
    x: Shaped[Array | np.ndarray, "n w"],
    wq: Shaped[Array | np.ndarray, "w d"],
    wk: Shaped[Array | np.ndarray, "w d"],
    wv: Shaped[Array | np.ndarray, "w e"],
    *,
    target: Shaped[Array | np.ndarray, "n e"] | None = None,
    cotangent: Shaped[Array | np.ndarray, "n e"] | Callable[[Array], Array] | None = None,
    method: Method = "auto",
    degree: int | None = None,
    eps: float = 1e-3,
    scale: float | None = None,
    center: bool = True,
    chunk: int = 1024,
) -> AttentionGradients:
    r"""The gradients of a loss of `softmax(scale x Wq (x Wk)^T) x Wv` by `polynomial_attention`.

    Args:
      x: Tokens of one text.
      wq: Kernel of the queries, with adapters merged.
      wk: Kernel of the keys.
      wv: Kernel of the values.
      target: Y of the loss `1/2 ||out - Y||^2`.
      cotangent: In its place the gradient of any loss with respect to the output, or a function
        of the output that returns it.
      method: As for `polynomial_attention`.
      degree: Even; None for `degree_for(bound, eps)`.
      eps: Relative error of the exponential.
      scale: As for `polynomial_attention`.
      center: As for `polynomial_attention`.
      chunk: As for `polynomial_attention`.

    Returns:
      `AttentionGradients`.

    Raises:
      ValueError: If not exactly one of `target` and `cotangent` is given, the shapes do not match,
        or `degree` is None under jit, where the norm is not known, or for a norm above 500.

    Reference:
      Hu et al., Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer
      Models, 2024 (arXiv 2406.03136).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> x, w = jax.random.normal(jax.random.key(0), (64, 8)) / 4, jnp.eye(8, 2)
      >>> kinds = ("exact", "polynomial")
      >>> a, b = [lora_limits.attention_gradients(x, w, w, w, target=x @ w, method=kind)
      ...         for kind in kinds]
      >>> b.degree, bool(jnp.linalg.norm(a.q - b.q) < 1e-3 * jnp.linalg.norm(a.q))
      (4, True)
    """
    if (target is None) == (cotangent is None):
        raise ValueError(
            "attention_gradients: exactly one of target (the loss is half the squared distance to "
            "it) and cotangent (the gradient at the output, or a function of the output) must be "
            "given."
        )
    x, wq, wk, wv = (jnp.asarray(a) for a in (x, wq, wk, wv))
    q, k = (jnp.matmul(x, w)[:, None] for w in (wq, wk))
    bound = attention_norm(q, k, scale=scale, center=center)[0]
    if method != "exact":
        degree = _degree(bound, eps) if degree is None else degree
        n, d, e = len(x), wq.shape[1], wv.shape[1]
        method = chosen(method, degree, n, d, e)
        if method == "auto" and known(bound):
            method = "polynomial" if float(bound) <= bound_for(degree, float(eps)) else "exact"
    degree = None if method == "exact" else degree
    more = {"method": method, "eps": float(eps), "center": center, "chunk": int(chunk)}
    factor = None if scale is None else float(scale)
    out, pull = _head(x, wq, wk, wv, degree=int(degree or 0), scale=factor, **more)
    if cotangent is None:
        c = out - jnp.asarray(target)
    else:
        c = cotangent(out) if callable(cotangent) else cotangent
    c = jnp.asarray(c)
    if c.shape != out.shape:
        raise ValueError(
            f"attention_gradients: cotangent must have the shape of the output {out.shape}, got "
            f"{c.shape}."
        )
    dq, dk, dv = _pulled(pull, c.astype(out.dtype))
    return AttentionGradients(dq, dk, dv, out, bound, degree)


def _degree(bound: Array, eps: float) -> int:
    if not known(bound):
        raise ValueError(
            "attention_gradients: degree must be given under jit, where the norm of the logits is "
            "not known; pass degree=4, or lora_limits.degree_for(bound, eps) of an expected bound."
        )
    if not float(bound) <= 500:
        raise ValueError(
            f"attention_gradients: the logits of x must be at most 500 and finite, got "
            f'{float(bound):.3g}; pass method="exact".'
        )
    return degree_for(float(bound), eps)


@partial(jax.jit, static_argnames=("method", "degree", "eps", "scale", "center", "chunk"))
def _head(x, wq, wk, wv, *, degree, **more):
    def run(*kernels: Array) -> Array:
        q, k, v = (jnp.matmul(x, w)[:, None] for w in kernels)
        return polynomial_attention(q, k, v, degree, **more)[:, 0]

    return jax.vjp(run, wq, wk, wv)


@jax.jit
def _pulled(pull, c):
    return pull(c)
