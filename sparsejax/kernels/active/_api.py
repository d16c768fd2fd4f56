"""Products that reduce over active units, produce active units, or both."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype
from ...select import ActiveSet
from .._table import attempt, platform_of, requested
from ._dense import spread, take_units

Implementation = str | Sequence[str] | None


@checked()
def active_reduce(
    v: Shaped[Array | np.ndarray, "..."],
    w: Shaped[Array | np.ndarray, "..."],
    s: ActiveSet,
    scale: Shaped[Array | np.ndarray, "..."] | None = None,
    *,
    gathered: bool = False,
    implementation: Implementation = None,
) -> Float[Array, "t d"]:
    r"""A product that contracts only over the active units.

    `y = sum_{j < count} scale_j v[index_j] w[index_j]`, accumulated in float32.

    Args:
      v: `(T, n, g)`, or `(T, n)` for units of one neuron; with `gathered` `(T, K, g)`, as
        `active_expand` gives it.
      w: `(n, g, d)` or `(n, d)`; see `sj.formats.unit_major`. A Flax kernel `(in, out)` has this
        form. Floats, or int8 without their scales: multiply v (or `scale`) by those of units, the
        result by those of features.
      s: One set for all tokens, or one per token.
      scale: `(T, K)`, a factor per token and active unit.
      gathered: Whether v is indexed by list position.
      implementation: "xla", "dense", "pallas_tpu", "pallas_gpu", "native" (on a CPU with a C++
        compiler; for few tokens, sums of float32), or names to try in turn; None selects one.

    Returns:
      `(T, d)` in the dtype of v.

    Raises:
      ValueError: If the shapes do not match.

    Reference:
      Chen et al., WINA, 2025, arXiv 2505.19427; Song et al., BlockFFN, 2025, arXiv 2507.08771.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> v, w = jnp.array([[0.0, 2.0, 0.0, 1.0]]), jnp.ones((4, 3))
      >>> s = sj.select.NonZero().set(v, 2, union=True)
      >>> sj.kernels.active_reduce(v, w, s).tolist()
      [[3.0, 3.0, 3.0]]
    """
    names = _names("active_reduce", implementation, v)
    v, w = _units("active_reduce", v, 2), _units("active_reduce", w, 1)
    length = s.capacity if gathered else w.shape[0]
    if v.shape[1:] != (length, w.shape[1]):
        kind = "places" if gathered else "units"
        raise ValueError(
            f"active_reduce: v of shape {v.shape} needs {length} {kind} of {w.shape[1]} for w of "
            f"shape {w.shape}."
        )
    _check_set("active_reduce", s, v.shape[0])
    scale = _scale("active_reduce", scale, s, v.shape[0])
    return _reduced(v if gathered else take_units(v, s), w, s, scale, names).astype(v.dtype)


@checked()
def active_expand(
    x: Shaped[Array | np.ndarray, "..."],
    w: Shaped[Array | np.ndarray, "..."],
    s: ActiveSet,
    scale: Shaped[Array | np.ndarray, "..."] | None = None,
    *,
    activation: Callable[[Array], Array] | None = None,
    implementation: Implementation = None,
) -> Float[Array, "t k g"]:
    r"""A product that computes only the active units.

    `h_j = scale_j activation(x w[index_j]^T)`, accumulated in float32; zero from `count` on.

    Args:
      x: `(T, d)`.
      w: `(n, g, d)` or `(n, d)`; see `sj.formats.unit_major`.
      s: One set for all tokens, or one per token.
      scale: `(T, K)`, a factor per token and active unit.
      activation: An elementwise function.
      implementation: As for `active_reduce`.

    Returns:
      `(T, K, g)` in the dtype of x, by list position.

    Raises:
      ValueError: If the shapes do not match.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> s = sj.select.TopK(2).set(jnp.array([0.0, 9.0, 1.0]))
      >>> w = jnp.arange(6.0).reshape(3, 2)
      >>> sj.kernels.active_expand(jnp.ones((1, 2)), w, s)[..., 0].tolist()
      [[5.0, 9.0]]
    """
    names = _names("active_expand", implementation, x)
    x, w = jnp.asarray(x), _units("active_expand", w, 1)
    _check_input("active_expand", x, w)
    _check_set("active_expand", s, x.shape[0])
    scale = _scale("active_expand", scale, s, x.shape[0])
    h = _produced(x, w, s, activation, names)
    return (h if scale is None else h * scale[..., None]).astype(x.dtype)


@checked()
def active_ffn(
    x: Shaped[Array | np.ndarray, "..."],
    w_up: Shaped[Array | np.ndarray, "..."],
    w_down: Shaped[Array | np.ndarray, "..."],
    s: ActiveSet,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    w_gate: Shaped[Array | np.ndarray, "..."] | None = None,
    gate_values: Shaped[Array | np.ndarray, "..."] | None = None,
    scale: Shaped[Array | np.ndarray, "..."] | None = None,
    implementation: Implementation = None,
) -> Float[Array, "t d"]:
    r"""A feed-forward network restricted to the active units.

    `y = sum_j scale_j h_j w_down[index_j]` with `h_j = activation(x w_up[index_j]^T)`; with
    `w_gate` `h_j = activation(x w_gate[index_j]^T) (x w_up[index_j]^T)`; with `gate_values`, which
    are already activated and by list position, `h_j = gate_values_j (x w_up[index_j]^T)`.

    Args:
      x: `(T, d)`.
      w_up: `(n, g, d)` or `(n, d)`; see `sj.formats.unit_major`.
      w_down: The same shape.
      s: One set for all tokens, or one per token.
      activation: An elementwise function.
      w_gate: The same shape.
      gate_values: `(T, K, g)`, or `(T, K)`.
      scale: `(T, K)`, a factor per token and active unit; zero for units of the union that a token
        does not use.
      implementation: As for `active_reduce`.

    Returns:
      `(T, d)` in the dtype of x.

    Raises:
      ValueError: If the shapes do not match, or both gates are given.

    Reference:
      Song et al., BlockFFN, 2025, arXiv 2507.08771; Lee et al., CATS, 2024, arXiv 2404.08763.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> x, w = jnp.ones((1, 2)), jnp.arange(6.0).reshape(3, 2)
      >>> s = sj.select.TopK(1).set((x @ w.T)[0])
      >>> sj.kernels.active_ffn(x, w, w, s).tolist()
      [[36.0, 45.0]]
    """
    if w_gate is not None and gate_values is not None:
        raise ValueError("active_ffn: pass w_gate or gate_values, not both.")
    names = _names("active_ffn", implementation, x)
    x = jnp.asarray(x)
    up, down = _units("active_ffn", w_up, 1), _units("active_ffn", w_down, 1)
    gate = None if w_gate is None else _units("active_ffn", w_gate, 1)
    for name, w in (("w_up", up), ("w_down", down), ("w_gate", gate)):
        if w is not None and w.shape != up.shape:
            raise ValueError(
                f"active_ffn: {name} of shape {w.shape} and w_up of shape {up.shape} differ; units "
                "come first in all of them, as returned by sj.formats.unit_major(kernel, axis)."
            )
    _check_input("active_ffn", x, up)
    _check_set("active_ffn", s, x.shape[0])
    scale = _scale("active_ffn", scale, s, x.shape[0])
    if gate_values is not None:
        gate_values = _units("active_ffn", gate_values, 2)
        made = (x.shape[0], s.capacity, up.shape[1])
        if gate_values.shape != made:
            raise ValueError(
                f"active_ffn: gate_values of shape {gate_values.shape} must be {made}, by list "
                "position, as returned by active_expand."
            )
        h = _produced(x, up, s, None, names) * gate_values
    elif gate is not None:
        h = _produced(x, gate, s, activation, names) * _produced(x, up, s, None, names)
    else:
        h = _produced(x, up, s, activation, names)
    return _reduced(h, down, s, scale, names).astype(x.dtype)


def _reduced(h, w, s: ActiveSet, scale, names) -> Float[Array, "t d"]:
    """The sum over list positions of h, which is exactly zero at unused positions."""
    # Before the factor is applied: values at unused positions may be non-finite.
    h = jnp.where(s.used[..., None], h.astype(wide_dtype(h)), 0)
    return _reduce(h if scale is None else h * scale[..., None], w, s, names)


def _produced(x, w, s: ActiveSet, activation, names) -> Float[Array, "t k g"]:
    u: Any = _expand(x, w, s, names)
    if activation is None:
        return u
    # Not every function is 0 at 0, or has a finite derivative there.
    safe = jnp.where(s.used[..., None], u, 1)
    return jnp.where(s.used[..., None], activation(safe), 0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _reduce(h, w, s: ActiveSet, names):
    return _attempt(names, "reduce", h, w, s)


def _reduce_forward(h, w, s, names):
    return _reduce(h, w, s, names), (h, w, s)


def _reduce_backward(names, saved, dy):
    h, w, s = saved
    dh: Any = _expand(dy, w, s, names)
    return dh.astype(h.dtype), _outer(h, dy, s, w), _no_gradient(s)


_reduce.defvjp(_reduce_forward, _reduce_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _expand(x, w, s: ActiveSet, names):
    return _attempt(names, "expand", x, w, s)


def _expand_forward(x, w, s, names):
    return _expand(x, w, s, names), (x, w, s)


def _expand_backward(names, saved, du):
    x, w, s = saved
    du = jnp.where(s.used[..., None], du, 0)
    dx: Any = _reduce(du, w, s, names)
    return dx.astype(x.dtype), _outer(du, x, s, w), _no_gradient(s)


_expand.defvjp(_expand_forward, _expand_backward)


def _outer(h, x, s: ActiveSet, w) -> Any:
    """The gradient of the weights: `h_j` times x at active units, zero at the others."""
    if w.dtype == jnp.int8:
        return np.zeros(w.shape, jax.dtypes.float0)
    wide = wide_dtype(x)
    h = spread(h, s, w.shape[0])
    return jnp.einsum("tng,td->ngd", h, x, preferred_element_type=wide).astype(w.dtype)


def _no_gradient(s: ActiveSet) -> ActiveSet:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), s)


class _Names(NamedTuple):
    """The names to try, and the target platform."""

    names: tuple[str, ...]
    platform: str


def _names(function: str, implementation: Implementation, x: Any) -> _Names:
    platform = platform_of(x)
    operation = "active_reduce" if function == "active_ffn" else function
    names = requested(operation, ActiveSet, implementation, platform, function)
    return _Names(names, platform)


def _attempt(names: _Names, operation: str, *args: Any) -> Any:
    chosen, platform = names
    call = lambda i: i.product(*args)  # noqa: E731
    return attempt(f"active_{operation}", ActiveSet, chosen, call, platform)


def _units(what: str, w: Any, lead: int) -> Shaped[Array, "..."]:
    """Adds the axis of neurons within a unit if it was omitted."""
    w = jnp.asarray(w)
    if w.dtype != jnp.int8 or lead == 2:
        _check_floats(what, w)
    if w.ndim == 2:
        return w[:, None] if lead == 1 else w[..., None]
    if w.ndim != 3:
        raise ValueError(
            f"{what}: w and v (w_up, w_down, w_gate) must have 2 or 3 axes, got {w.shape}."
        )
    return w


def _scale(what: str, scale: Any, s: ActiveSet, tokens: int) -> Any:
    """The factors, 1 at unused positions, where values may be non-finite."""
    if scale is None:
        return None
    scale = jnp.asarray(scale)
    if scale.shape != (tokens, s.capacity):
        raise ValueError(
            f"{what}: scale of shape {scale.shape} must be {(tokens, s.capacity)}, a factor per "
            "token and list position."
        )
    return jnp.where(s.used, scale, jnp.ones((), scale.dtype))


def _check_floats(what: str, w: Any) -> None:
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(f"{what}: w must hold floats, got {w.dtype} of shape {w.shape}.")


def _check_input(what: str, x: Any, w: Any) -> None:
    _check_floats(what, x)
    if x.ndim != 2 or x.shape[1] != w.shape[2]:
        raise ValueError(
            f"{what}: x of shape {x.shape} must be (T, {w.shape[2]}) for w of shape {w.shape}; "
            "units come first in w, as returned by sj.formats.unit_major(kernel, axis=1)."
        )


def _check_set(what: str, s: ActiveSet, tokens: int) -> None:
    if s.index.ndim not in (1, 2) or (s.index.ndim == 2 and s.index.shape[0] != tokens):
        raise ValueError(
            f"{what}: lists of shape {s.index.shape} for {tokens} tokens; one set (K,) or one per "
            f"token ({tokens}, K) is needed."
        )
    if np.shape(s.count) != s.index.shape[:-1]:
        raise ValueError(
            f"{what}: count of shape {np.shape(s.count)} must be {s.index.shape[:-1]} for lists of "
            f"shape {s.index.shape}."
        )
