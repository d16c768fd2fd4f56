"""A trained NNX model with compressed kernels in place of its dense ones."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, PyTree, Shaped

from .._tree import named_leaves, pure
from ..formats import SparseArray
from ..formats._compress import compress_leaf
from ..kernels import matmul
from ..masks import Plan, apply_masks, magnitude
from ..masks._plan import check_plan
from ..patterns import NM, Block, Stages
from ..patterns._layout import MatrixView, matrix_view
from ._linear import SparseKernel, promote

Module = TypeVar("Module", bound=nnx.Module)


def compress(model: Module, plan: Plan, masks: PyTree | None = None) -> Module:
    """A runnable copy of the model whose planned kernels are compressed.

    N:M and block kernels of `nnx.Linear`, `nnx.LinearGeneral` (hence of attention and recurrent
    cells) and `nnx.Einsum`, stacked by `nnx.vmap` or not, become a `SparseKernel`, and the layer
    multiplies with `sj.kernels.matmul`; their values stay trainable. So do those of layers that say
    with an attribute `takes_compressed` which axes of their kernel they contract, and multiply by
    functions that take both kinds (`sj.models` has one). Every other planned leaf stays
    dense with zeros: other patterns, convolutions and embeddings, kernels tied to something else
    than the kernel of such a layer (tied kernels stay tied), layers with batch axes, a
    `dot_general` or a `__call__` of their own, and patterns that do not run along the axes that the
    layer contracts.

    Args:
      model: An NNX module; it is not changed.
      plan: What to compress, from `sj.plan`.
      masks: Tree of masks such as `sj.get_masks(optimizer.opt_state)`; None keeps the largest
        magnitudes, which are the weights that are not zero yet if the model was pruned.

    Returns:
      A module of the same class, equal to the masked model up to rounding.

    Raises:
      ValueError: If a mask does not fit its leaf or its pattern.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
      >>> fast = sj.nn.compress(model, sj.plan(model, sj.NM(2, 4)))
      >>> fast.kernel[...], fast(jnp.ones((3, 8))).shape
      (NMArray(2:4, shape=(8, 4), dtype=float32), (3, 4))
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"nn.compress takes an NNX module, got a {type(model).__name__}; for a tree of "
            "parameters use sj.compress(params, plan)."
        )
    advice = "for masks alone, nn.compress(model, plan, masks) with the plan they were made by"
    check_plan("nn.compress", plan, advice)
    _check_dense(model, plan)
    params = pure(model)
    if masks is None:
        masks = plan.masks(magnitude(params))
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
    nnx.update(model, apply_masks(params, masks))
    found = named_leaves(masks)
    patterns = {leaf.name: _final(leaf.pattern) for leaf in plan.leaves if leaf.name in found}
    for names, layers in _tied_layers(model):
        name = next((name for name in names if name in patterns), None)
        if name is not None:
            _replace_kernel(layers, patterns[name], found[name], name)
    return model


def _check_dense(model: nnx.Module, plan: Plan) -> None:
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path))
        if isinstance(module, SparseKernel) and name in plan:
            raise ValueError(
                f"nn.compress: {name} is already compressed; give the dense model, once: "
                "sj.nn.compress(model, plan, masks)."
            )


def _final(pattern: Any) -> Any:
    return pattern.patterns[-1] if isinstance(pattern, Stages) else pattern


def _tied_layers(model: nnx.Module) -> Iterator[tuple[list[str], list[Any]]]:
    """The names of each kernel and the modules that hold it, several where it is tied."""
    holders: dict[int, list[tuple[str, Any]]] = {}
    for path, module in nnx.iter_modules(model):
        for attribute, value in vars(module).items():
            if isinstance(value, nnx.Variable):
                name = "/".join(map(str, (*path, attribute)))
                holders.setdefault(id(value), []).append((name, module))
    for held in holders.values():
        names, modules = zip(*held)
        # A kernel tied to something else, an embedding for example, stays dense.
        if all(name.rpartition("/")[2] == "kernel" for name in names):
            yield list(names), list(modules)


def _replace_kernel(layers: list[Any], pattern: Any, mask: Any, name: str) -> None:
    if not isinstance(pattern, NM | Block) or (isinstance(pattern, NM) and pattern.n == 0):
        return
    kernel = layers[0].kernel[...]
    view = matrix_view(kernel.shape, pattern.axis, pattern.stacked)
    operations = [_operation(layer, view) for layer in layers]
    if any(operation is None for operation in operations):
        return
    array = compress_leaf(kernel, pattern, mask, name)
    assert isinstance(array, SparseArray)
    shared = SparseKernel(array)
    for layer, operation in zip(layers, operations):
        layer.kernel = shared
        if hasattr(layer, "takes_compressed"):
            continue
        layer.promote_dtype = promote
        setattr(layer, "einsum_op" if isinstance(layer, nnx.Einsum) else "dot_general", operation)


@dataclass(frozen=True)
class _DotGeneral:
    """Stands for `lax.dot_general` with a compressed kernel on the right."""

    features: tuple[int, ...]

    def __call__(
        self,
        x: Shaped[Array, "..."],
        kernel: SparseArray,
        dimensions: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> Shaped[Array, "..."]:
        _check_sharding(out_sharding)
        axes = tuple(dimensions[0][0])
        others = tuple(a for a in range(x.ndim) if a not in axes)
        flat = x.transpose(others + axes).reshape(*(x.shape[a] for a in others), -1)
        y = matmul(flat, kernel, precision=precision, out_dtype=preferred_element_type)
        return y.reshape(*y.shape[:-1], *self.features)


@dataclass(frozen=True)
class _EinsumOp:
    """Stands for `jnp.einsum` with a compressed kernel on the right."""

    equation: str
    shape: tuple[int, ...]

    def __call__(
        self,
        equation: str,
        x: Shaped[Array, "..."],
        kernel: SparseArray,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> Shaped[Array, "..."]:
        _check_sharding(out_sharding)
        if equation != self.equation:
            raise NotImplementedError(
                f"this kernel was compressed for {self.equation!r} and cannot do {equation!r}."
            )
        left, right, out = _letters(equation)
        axes = tuple(left.index(c) for c in right if c not in out)
        features = tuple(size for c, size in zip(right, self.shape) if c in out)
        dot = _DotGeneral(features)
        y = dot(x, kernel, ((axes, ()), ((), ())), precision, preferred_element_type)
        made = [c for c in left if c in out] + [c for c in right if c in out]
        return y.transpose([made.index(c) for c in out])


def _operation(layer: Any, view: MatrixView) -> Callable[..., Any] | None:
    """What the layer is to multiply with; None if it would not contract what the pattern says."""
    if _is_stock(layer, nnx.Linear, "dot_general", "promote_dtype"):
        ndim, contracted, operation = 2, (0,), _DotGeneral((layer.out_features,))
    elif _is_stock(layer, nnx.LinearGeneral, "dot_general", "dot_general_cls", "promote_dtype"):
        if layer.batch_axis:
            return None
        ndim = len(layer.in_features) + len(layer.out_features)
        contracted = tuple(range(len(layer.in_features)))
        operation = _DotGeneral(tuple(layer.out_features))
    elif _is_stock(layer, nnx.Einsum, "einsum_op", "promote_dtype") and _is_linear(layer):
        _, right, out = _letters(layer.einsum_str)
        ndim, contracted = len(right), tuple(i for i, c in enumerate(right) if c not in out)
        operation = _EinsumOp(layer.einsum_str, tuple(layer.kernel_shape))
    elif hasattr(layer, "takes_compressed"):
        ndim, contracted, operation = (
            len(layer.takes_compressed) + 1,
            layer.takes_compressed,
            matmul,
        )
    else:
        return None
    stacked = len(view.shape) - ndim  # the axes that nnx.vmap has added
    seen = tuple(axis - stacked for axis in view.contraction)
    return operation if len(view.stacked) == stacked and seen == contracted else None


def _is_stock(layer: Any, kind: type, *injected: str) -> bool:
    defaults = inspect.signature(kind.__init__).parameters
    return (
        isinstance(layer, kind)
        and type(layer).__call__ is kind.__call__
        and all(getattr(layer, name) is defaults[name].default for name in injected)
    )


def _is_linear(layer: nnx.Einsum) -> bool:
    """Whether the equation is a matrix product: no batch axes, nothing summed on one side only."""
    if layer.einsum_str is None or "." in layer.einsum_str:
        return False
    left, right, out = _letters(layer.einsum_str)
    if any(len(set(term)) < len(term) for term in (left, right, out)):
        return False
    summed = set(left) & set(right)
    return bool(summed) and set(out) == set(left) ^ set(right)


def _letters(equation: str) -> tuple[str, str, str]:
    terms, out = equation.replace(" ", "").split("->")
    left, right = terms.split(",")
    return left, right, out


def _check_sharding(out_sharding: Any) -> None:
    if out_sharding is not None:
        raise NotImplementedError(
            f"out_sharding={out_sharding} is not supported by a compressed kernel; use "
            "jax.lax.with_sharding_constraint on the result."
        )
