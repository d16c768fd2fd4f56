"""LoRA on the linear layers of NNX models, Equinox models and trees of parameters."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ..._arguments import checked
from ..._frameworks import OUT_IN, kernel_orders
from ..._tree import expression, is_array, is_kernel, map_named, register
from ...formats import LowRank, Matrix, Sum, Transposed
from ...nn import LinearLayer, linear_layer
from ...patterns import layout


@register
@dataclass(frozen=True, eq=False, repr=False)
class Adapter(LowRank):
    r"""A low-rank matrix with a constant factor, `W = scale A B`.

    Args:
      a: `(stacked..., K, r)`.
      b: `(stacked..., r, N)`.
      scale: alpha / r of LoRA.

    Reference:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv 2106.09685).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> w = lora_limits.Adapter(jnp.ones((4, 1)), jnp.arange(3.0)[None], 0.5)
      >>> (jnp.ones(4) @ w).tolist()
      [0.0, 2.0, 4.0]
    """

    scale: float = field(default=1.0, metadata=dict(static=True))

    def for_product(self) -> LowRank:
        """The factors, with `scale` in the first."""
        return LowRank(self.a * self.scale, self.b)

    def todense(self) -> Float[Array, "... k n"]:
        """`scale A B`, summed in at least float32."""
        return self.for_product().todense()


class LoRAKernel(nnx.Module):
    """A frozen kernel with an adapter; `kernel[...]` is their `sj.formats.Sum`.

    The factors are `nnx.LoRAParam`: `nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)` trains them only.
    The frozen kernel remains the variable of the layer, tied to others as before, and gets no
    gradient through the layer.

    Args:
      frozen: The kernel of the layer, a variable or a `sj.nn.SparseKernel`.
      adapter: The adapter of its matrix.
      layer: How the layer contracts the kernel.
      replaced: Attributes of the layer and their values before.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from sparsejax.contrib import lora_limits
      >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> lora_limits.add_lora(layer, 2, key=jax.random.key(0)).kernel[...]
      Sum(dense + rank 2, shape=(4, 3), dtype=float32)
    """

    def __init__(
        self,
        frozen: Any,
        adapter: Adapter,
        layer: LinearLayer,
        replaced: tuple[tuple[str, Any], ...] = (),
    ):
        self.frozen = frozen
        self.a, self.b = nnx.LoRAParam(adapter.a), nnx.LoRAParam(adapter.b)
        self.scale, self.axes = adapter.scale, (layer.ndim, layer.contraction)
        self.replaced = nnx.static(replaced)

    def __getitem__(self, key: Any) -> Sum:
        if key is not ...:
            raise IndexError(f"a LoRAKernel must be read as a whole, kernel[...], got {key}.")
        return Sum(_matrix(self.frozen[...], *self.axes), self.adapter)

    @property
    def adapter(self) -> Adapter:
        """The trained part."""
        return Adapter(self.a[...], self.b[...], self.scale)

    def moved(self, w: Array, sign: float) -> Array:
        """A kernel plus or minus the adapter, in its dtype."""
        at = _layout(w.shape, *self.axes)
        delta = at.from_matrix(self.adapter.todense())
        return (w + sign * delta).astype(w.dtype)


def _layout(shape: tuple[int, ...], ndim: int, contraction: tuple[int, ...]) -> Any:
    stacked = len(shape) - ndim
    return layout(shape, tuple(stacked + axis for axis in contraction), stacked)


def _matrix(w: Any, ndim: int, contraction: tuple[int, ...]) -> Any:
    return w if isinstance(w, Matrix) else _layout(w.shape, ndim, contraction).to_matrix(w)


@checked(rank="[1, inf)", alpha="(0, inf)")
def add_lora(
    model: PyTree,
    rank: int,
    *,
    where: str = "",
    alpha: float | None = None,
    dtype: DTypeLike | None = None,
    key: Array,
) -> Any:
    r"""A copy of a model whose linear kernels have adapters, `W + (alpha / r) A B`.

    A has independent normal entries of variance 1 / K and B is zero, so that the function is that
    of the model. NNX kernels compressed by `sj.compress` get adapters too; layers that
    `sj.compress` cannot compress, such as convolutions, do not. Only the adapters are
    trained:

    - NNX: `nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)`, with gradients by
      `nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))`.
    - Trees and Equinox: `optax.partition({True: tx, False: optax.set_to_zero()},
      sj.formats.trainable(params))`, for any optimizer. Linen modules run with the tree inside
      `flax.linen.intercept_methods(sj.nn.linen_compressed)`.

    Args:
      model: An NNX module, an Equinox module, or a tree with matrices `(in, out)` named `kernel`
        or `weight`; it is not changed.
      rank: r.
      where: Regular expression over the paths of kernels, r"(query|value)/kernel$" (`re.search`).
      alpha: Factor of the adapters over 1 / r; None for r.
      dtype: Dtype of the factors; None for that of the kernel.
      key: Key of the factors A.

    Returns:
      A model of the same class, or a tree.

    Raises:
      ValueError: If no linear kernel matches, a kernel has adapters, or a leaf of a tree that is
        not a matrix matches.

    Reference:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv 2106.09685).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
      >>> adapted = lora_limits.add_lora(params, 2, alpha=4.0, key=jax.random.key(0))
      >>> adapted["kernel"], (jnp.ones(4) @ adapted["kernel"]).tolist()
      (Sum(dense + rank 2, shape=(4, 3), dtype=float32), [4.0, 4.0, 4.0])
    """
    rank = int(rank)
    scale = 1.0 if alpha is None else float(alpha) / rank

    def make(name: str, w: Any) -> Adapter:
        *stacked, rows, columns = w.shape
        kind, own = dtype or w.dtype, jax.random.fold_in(key, _number(name))
        if not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(
                f"add_lora: the factors of {name} {w.shape} would be {kind}, in which nothing is "
                "learned; dtype=jnp.float32 for example."
            )
        a = jax.random.normal(own, (*stacked, rows, rank), jnp.float32) / rows**0.5
        return Adapter(a.astype(kind), jnp.zeros((*stacked, rank, columns), kind), scale)

    adapted, names = _added(model, expression("add_lora: where", where).search, make)
    if not names:
        raise ValueError(
            f"add_lora: where={where!r} must match a linear kernel without an adapter, got none; "
            "where='' matches all, and merge_lora(model) merges adapters."
        )
    return adapted


def _number(name: str) -> int:
    """A number of a path, the same in every process."""
    return functools.reduce(lambda total, c: (total * 257 + ord(c)) % (2**31 - 1), name, 0)


@functools.singledispatch
def _added(model: Any, matches: Callable[[str], Any], make: Any) -> tuple[Any, list[str]]:
    """The model with adapters and the names of the kernels; trees and Equinox models."""
    orders, names = kernel_orders(model), []

    def one(name: str, w: Any) -> Any:
        if not is_array(w) or not is_kernel(name, w) or not matches(name):
            return w
        if w.ndim != 2:
            raise ValueError(
                f"add_lora: {name} of shape {w.shape} must be a matrix (in, out); exclude it by "
                "where=, or pass an NNX module, whose layers know their axes."
            )
        names.append(name)
        if orders.get(name) == OUT_IN:
            return Transposed(Sum(w.T, make(name, w.T)))
        return Sum(w, make(name, w))

    return map_named(one, model), names


@_added.register
def _(model: nnx.Module, matches: Callable[[str], Any], make: Any) -> tuple[Any, list[str]]:
    model, names = nnx.clone(model), []
    for path, module in nnx.iter_modules(model):
        layer = linear_layer(module)
        name = "/".join(map(str, (*path, layer.path))) if layer else ""
        if layer is None or not matches(name):
            continue
        kernel = getattr(module, layer.path)
        if isinstance(kernel, LoRAKernel):
            raise ValueError(f"add_lora: {name} has an adapter; merge_lora(model) merges it.")
        w = _matrix(kernel[...], layer.ndim, layer.contraction)
        if isinstance(kernel[...], Matrix) or layer.install is not None:
            install_adapter(module, layer, kernel, make(name, w))
            names.append(name)
    return model, names


def install_adapter(module: Any, layer: LinearLayer, kernel: Any, adapter: Adapter) -> None:
    """Puts a `LoRAKernel` in place of the kernel of a layer."""
    before = dict(vars(module))
    if layer.install is None:  # compressed: the product is installed
        setattr(module, layer.path, LoRAKernel(kernel, adapter, layer))
        return
    layer.install(kernel)
    changed = tuple((n, x) for n, x in before.items() if vars(module)[n] is not x)
    setattr(module, layer.path, LoRAKernel(kernel, adapter, layer, changed))
