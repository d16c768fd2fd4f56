"""FLOP counts: a multiply-add counts as two; sparse FLOPs are those of kept weights."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from jaxtyping import PyTree

from .._arguments import checked
from .._masks import count
from .._tree import is_kernel
from ._leaves import Entry, checked_masks, entries
from ._trace import Products, Sizes, program_of, trace_products

Number = int | float
Training = Literal["dense", "static", "set", "rigl", "dense_gradient", "dense_to_sparse"]


@dataclass(frozen=True)
class LeafFlops:
    """FLOPs of the products with one leaf, and the number of positions at which it is used."""

    positions: int | float
    dense: int
    sparse: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass.

    Args:
      leaves: By path, in order of use if an example was traced.
      activations: FLOPs of products between activations (attention scores and values), which
        weight sparsity does not reduce; 0 without an example.
      uncounted: Leaves that only custom kernels (Pallas, FFI) read: pass their positions.
    """

    leaves: dict[str, LeafFlops]
    activations: int = 0
    uncounted: tuple[str, ...] = ()

    @property
    def dense(self) -> int:
        """Products with weights, all weights counted."""
        return sum(leaf.dense for leaf in self.leaves.values())

    @property
    def sparse(self) -> int:
        """Products with weights, kept weights counted."""
        return sum(leaf.sparse for leaf in self.leaves.values())


@checked()
def flops(
    model: PyTree,
    example: Any = None,
    *,
    masks: PyTree = None,
    apply: Callable[..., Any] | None = None,
    positions: Mapping[str, int] | None = None,
) -> Flops:
    r"""FLOPs of the products with the weights of a model, dense and sparse.

    Linear: `2 in out` per token. Convolution: `2 kh kw (in / groups) out` per output position.
    Sparse: `2 kept` per position. Biases, norms and activation functions are not counted.

    With an example the program is traced, not run: shared weights, scans over stacked layers,
    grouped and transposed convolutions are counted as used, a `lax.cond` as its most expensive
    branch, a `while_loop` as one iteration. Without an example, each kernel is used at `positions`
    positions (1 by default).

    Args:
      model: An `nnx.Module`, an Equinox module, or a tree of parameters (arrays or shapes).
      example: Input of the model, an array or a tuple of positional arguments; shapes suffice.
      masks: A tree of boolean masks and None.
      apply: `apply(params, *example)`, if the model cannot be called itself (Linen, functions).
      positions: Tokens or output positions by path of the kernel; overrides the example.

    Returns:
      A `Flops`.

    Raises:
      TypeError: If an example is given but the model cannot be called.
      ValueError: If a mask or a position does not belong to a leaf.

    Reference:
      Liu and Wang, 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.reporting import flops
      >>> model = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> flops(model, jnp.ones((1, 16, 16, 3))).dense == 2 * 3 * 3 * 3 * 8 * 16 * 16
      True
    """
    found = entries(model)
    given = checked_masks(masks, found)
    kept = {name: count(mask) for name, mask in given.items()}
    return flops_of(model, found, kept, given, example, apply, positions)


def flops_of(
    model: PyTree,
    found: Mapping[str, Entry],
    kept: Mapping[str, int],
    masked: Container[str],
    example: Any,
    apply: Callable[..., Any] | None,
    positions: Mapping[str, int] | None,
) -> Flops:
    """`flops` of leaves whose kept entries have been counted; those with a mask are kernels."""
    unknown = [name for name in positions or {} if name not in found]
    if unknown:
        raise ValueError(
            f"positions= names {', '.join(unknown)}, but the leaves are {', '.join(found)}."
        )
    products = None if example is None else _products(model, found, example, apply)
    places = _places(found, masked, products) | {
        n: Fraction(p) for n, p in (positions or {}).items()
    }
    leaves = {
        name: _leaf_flops(found[name].size, kept.get(name, found[name].size), n)
        for name, n in places.items()
    }
    if products is None:
        return Flops(leaves)
    uncounted = sorted(products.opaque - set(products.weights) - set(positions or {}))
    return Flops(leaves, products.activations, tuple(uncounted))


def _products(model, found: Mapping[str, Entry], example, apply) -> Products:
    compressed = {name: e.stored for name, e in found.items() if e.compressed}
    sizes = Sizes({name: e.size for name, e in found.items()}, compressed)
    return trace_products(program_of(model, apply, example), sizes)


def _places(
    found: Mapping[str, Entry], masked: Container[str], products: Products | None
) -> dict[str, Fraction]:
    """The number of positions at which each kernel is used, in order of use if known."""
    kernels = [
        name
        for name, e in found.items()
        if is_kernel(name, e) or (name in masked and len(e.shape) >= 2)
    ]
    if products is None:
        return {name: Fraction(1) for name in kernels}
    used = {name: Fraction(n, 2 * found[name].size) for name, n in products.weights.items()}
    return used | {name: Fraction(0) for name in kernels if name not in used}


def _leaf_flops(size: int, kept: int, positions: Fraction) -> LeafFlops:
    places = int(positions) if positions.denominator == 1 else float(positions)
    return LeafFlops(places, round(2 * size * positions), round(2 * kept * positions))


@checked(
    dense="[0, inf)", sparse="[0, inf)", steps="[0, inf)", every="[1, inf)", scoring="[0, inf)"
)
def training_flops(
    kind: Training,
    dense: Number,
    sparse: Number | Sequence[Number],
    *,
    steps: int = 1,
    every: int | None = None,
    schedule: Callable[[int], Any] | None = None,
    scoring: Number = 0,
) -> Number:
    r"""Theoretical FLOPs of training: three forward passes per step, of non-zero weights.

    With the forward FLOPs `f_D` dense and `f_S` sparse, a step costs

    - "dense": `3 f_D`; "static" and "set": `3 f_S`;
    - "rigl", which needs a dense gradient every T steps: `(3 f_S T + 2 f_S + f_D) / (T + 1)`;
    - "dense_gradient" at each step (SNFS, straight-through): `2 f_S + f_D`;
    - "dense_to_sparse": `3 (f_D - c_t (f_D - f_S))`, c_t the fraction reached, summed over steps.

    Iterative pruning costs the sum over all its rounds: pass the sparse FLOPs of each round.

    Args:
      kind: One of the above.
      dense: Forward FLOPs of the dense network, per step.
      sparse: Forward FLOPs of the sparse network; or one number for each round.
      steps: Number of steps (of each round); 1 returns the cost of one step.
      every: Steps between two updates of RigL.
      schedule: Fraction of the target sparsity at a step, an optax schedule.
      scoring: Dense forward-and-backward passes spent on scores (SNIP: 1), each `3 f_D`.

    Returns:
      FLOPs, or a ratio if `dense` is 1.

    Raises:
      ValueError: If the kind is unknown or lacks `every` or `schedule`.

    Reference:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019 (arXiv 1911.11134).

    Example:
      >>> from sparsejax.reporting import training_flops
      >>> round(training_flops("rigl", 1.0, 0.1, every=100) / training_flops("dense", 1.0, 0.1), 4)
      0.103
    """
    rounds = sparse if isinstance(sparse, Sequence) else [sparse]
    one = [_steps_flops(kind, dense, f, steps, every, schedule) for f in rounds]
    return sum(one) + 3 * dense * scoring


def _steps_flops(kind, dense, sparse, steps, every, schedule):
    if kind == "dense":
        return 3 * dense * steps
    if kind in ("static", "set"):
        return 3 * sparse * steps
    if kind == "dense_gradient":
        return (2 * sparse + dense) * steps
    if kind == "rigl":
        if every is None:
            raise ValueError('training_flops("rigl") needs every=, the steps between updates.')
        return (3 * sparse * every + 2 * sparse + dense) / (every + 1) * steps
    if kind == "dense_to_sparse":
        if schedule is None:
            raise ValueError(
                'training_flops("dense_to_sparse") needs schedule=, the optax schedule of the '
                "fraction of the target that is reached, and steps=."
            )
        reached = sum(float(schedule(step)) for step in range(steps))
        return 3 * (dense * steps - reached * (dense - sparse))
    raise ValueError(
        f'kind={kind!r} must be "dense", "static", "set", "rigl", "dense_gradient" or '
        '"dense_to_sparse".'
    )
