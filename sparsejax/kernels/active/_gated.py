"""Products behind gates: of one input with several matrices, and a feed-forward network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import check_not_nan, checked
from ..._arrays import wide_dtype
from ...formats import Skipping
from .._table import attempt, platform_of, requested

Implementation = str | Sequence[str] | None


class Limit(NamedTuple):
    """A gate: the inputs of `|x_i| norms_i > tau` are kept; all of them for tau below 0.

    Attributes:
      norms: `(k,)`, float32.
      tau: `()`, float32.
    """

    norms: Any
    tau: Any

    @classmethod
    def none(cls, inputs: int) -> "Limit":
        """The gate that keeps all inputs."""
        return cls(jnp.ones(inputs, jnp.float32), jnp.float32(-1))

    def masked(self, x: Shaped[Array, "t k"]) -> Shaped[Array, "t k"]:
        """The inputs, 0 where they are not kept; NaN is, so that no gate hides it."""
        scores = jnp.abs(x.astype(jnp.float32)) * self.norms
        return jnp.where((self.tau < 0) | ~(scores <= self.tau), x, jnp.zeros((), x.dtype))


@checked()
def gated_products(
    x: Shaped[Array | np.ndarray, "t k"],
    kernels: Sequence[Skipping],
    limits: Sequence[Any],
    *,
    implementation: Implementation = None,
) -> tuple[Array, ...]:
    r"""Products of one input with several matrices, each behind its gate.

    `y_j = (x * (|x| norms_j > tau_j)) W_j`, accumulated in float32. One call for the query, key and
    value projections of a token: a decoder spends as much time between small products as in them.

    Args:
      x: Tokens.
      kernels: Matrices of k inputs.
      limits: A gate `(norms, tau)` for each; norms `(k,)`, tau below 0 for none.
        An input that is NaN is kept.
      implementation: "native" (on a CPU with a C++ compiler; one to eight tokens), "xla", or names
        to try in turn; None selects one. Derivatives are those of "xla".

    Returns:
      `(t, n_j)` for each kernel, in the dtype of x.

    Raises:
      ValueError: If the shapes do not match.

    Reference:
      Chen et al., WINA, 2025 (arXiv 2505.19427).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> x, w = jnp.array([[1.0, -3.0]]), sj.formats.Skipping(jnp.ones((2, 3)))
      >>> gate = (jnp.ones(2), jnp.float32(2))
      >>> sj.kernels.gated_products(x, [w], [gate])[0].tolist()
      [[-3.0, -3.0, -3.0]]
    """
    x, given = jnp.asarray(x), limits_of("gated_products", limits)
    check_input("gated_products", x)
    if not kernels or len(kernels) != len(given):
        raise ValueError(
            f"gated_products: limits must hold a gate (norms, tau) for each of the {len(kernels)} "
            f"kernels, at least one, got {len(given)}."
        )
    for w, limit in zip(kernels, given):
        check_gate("gated_products", w, limit, x.shape[1])
    platform = platform_of(x, kernels)
    names = requested("gated_products", Skipping, implementation, platform)
    call = Call("gated_products", names, platform, products_in_xla)
    return tuple(y.astype(x.dtype) for y in computed(call, x, tuple(kernels), tuple(given)))


@checked()
def gated_mlp(
    x: Shaped[Array | np.ndarray, "t k"],
    kernels: Sequence[Skipping],
    limits: Sequence[Any],
    *,
    by_neuron: bool = False,
    implementation: Implementation = None,
) -> Float[Array, "t d"]:
    r"""A gated feed-forward network, `(silu(x Wgate) * (x Wup)) Wdown`, behind gates.

    One call for the three products. With `by_neuron` the gate of Wup is one of neurons,
    `|silu(x Wgate)| norms > tau`: of the others neither the weights in Wup nor those in Wdown are
    read (CATS).

    Args:
      x: Tokens.
      kernels: Wgate `(k, f)`, Wup `(k, f)`, or `(f, k)` with `by_neuron`, and Wdown `(f, k)`.
      limits: A gate `(norms, tau)` for the inputs of each, as for `gated_products`; with
        `by_neuron` the second one is `(f,)` norms of the neurons, ones for CATS.
      by_neuron: Whether the second gate is one of neurons.
      implementation: As for `gated_products`.

    Returns:
      `(t, k)` in the dtype of x.

    Raises:
      ValueError: If the shapes do not match.

    Reference:
      Chen et al., WINA, 2025 (arXiv 2505.19427); Lee et al., CATS, 2024 (arXiv 2404.08763).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> x, w = jnp.array([[1.0, 2.0]]), sj.formats.Skipping(jnp.eye(2))
      >>> none = (jnp.ones(2), jnp.float32(-1))
      >>> sj.kernels.gated_mlp(x, [w, w, w], [none] * 3).round(1).tolist()
      [[0.699999988079071, 3.5]]
    """
    x, given = jnp.asarray(x), limits_of("gated_mlp", limits)
    check_input("gated_mlp", x)
    if len(kernels) != 3 or len(given) != 3:
        raise ValueError(
            "gated_mlp: kernels and limits must be those of gate, up and down, got "
            f"{len(kernels)} and {len(given)}."
        )
    k, f = x.shape[1], kernels[0].shape[-1]
    wanted = [(k, f), (f, k) if by_neuron else (k, f), (f, k)]
    if (shapes := [w.shape for w in kernels]) != wanted:
        raise ValueError(f"gated_mlp: kernels of shapes {shapes} must be {wanted}.")
    for w, limit, inputs in zip(kernels, given, (k, f if by_neuron else k, f)):
        check_gate("gated_mlp", w, limit, inputs)
    platform = platform_of(x, kernels)
    names = requested("gated_mlp", Skipping, implementation, platform)
    call = Call("gated_mlp", names, platform, mlp_in_xla, (bool(by_neuron),))
    y: Any = computed(call, x, tuple(kernels), tuple(given))
    return y.astype(x.dtype)


class Call(NamedTuple):
    """A product behind gates: its name, the implementations to try, and its static arguments."""

    what: str
    names: tuple[str, ...]
    platform: str
    reference: Callable[..., Any]
    static: tuple[Any, ...] = ()


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def computed(call: Call, *arrays: Any) -> Any:
    """The product by the first implementation that supports it; derivatives of the reference."""
    product = lambda i: i.product(*arrays, *call.static)  # noqa: E731
    return attempt(call.what, Skipping, call.names, product, call.platform)


@computed.defjvp
def _derivative(call: Call, arrays: Any, tangents: Any) -> Any:
    reference = lambda *arrays: call.reference(*arrays, *call.static)  # noqa: E731
    return computed(call, *arrays), jax.jvp(reference, arrays, tangents)[1]


def products_in_xla(x, kernels, limits) -> tuple[Array, ...]:
    """The reference."""
    return tuple(_dot(limit.masked(x), w.todense()) for w, limit in zip(kernels, limits))


def mlp_in_xla(x, kernels, limits, by_neuron: bool) -> Array:
    """The reference."""
    gate, up, down = (w.todense() for w in kernels)
    a = jax.nn.silu(_dot(limits[0].masked(x), gate))
    if by_neuron:
        h = limits[1].masked(a) * _dot(x, up.T)
    else:
        h = a * _dot(limits[1].masked(x), up)
    return _dot(limits[2].masked(h), down)


def _dot(x: Array, w: Any) -> Array:
    return jnp.matmul(x, w, preferred_element_type=wide_dtype(x, w))


def limits_of(what: str, limits: Sequence[Any]) -> list[Limit]:
    """The gates; raises unless they are pairs."""
    for limit in limits:
        if not isinstance(limit, tuple | list) or len(limit) != 2:
            raise TypeError(
                f"{what}: limits must hold pairs (norms, tau), got a {type(limit).__name__}."
            )
    return [Limit(*limit) for limit in limits]


def check_input(what: str, x: Array) -> None:
    """Raises unless x holds floats."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{what}: x must hold floats, got {x.dtype}.")


def check_gate(what: str, w: Skipping, limit: Limit, inputs: int) -> None:
    """Raises unless a kernel and its gate are of so many inputs."""
    if len(w.shape) != 2 or w.shape[0] != inputs:
        raise ValueError(f"{what}: a kernel of shape {w.shape} must be ({inputs}, outputs).")
    if np.shape(limit.norms) != (inputs,) or np.shape(limit.tau) != ():
        raise ValueError(
            f"{what}: a gate must be norms of shape ({inputs},) and a number tau, got "
            f"{np.shape(limit.norms)} and {np.shape(limit.tau)}."
        )
    check_not_nan(what, norms=limit.norms, tau=limit.tau)  # above which nothing would be
