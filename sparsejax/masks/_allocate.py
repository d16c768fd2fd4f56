"""Allocations: distribute a sparsity over layers at the same total."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from .._arguments import check_number, checked, checked_sparsity
from .._frameworks import kernel_orders
from .._masks import count
from .._topk import topk_masks
from .._tree import expression, is_kernel, map_named, named_leaves, natural_order
from ..patterns import Layout, layout

Allocation = Callable[[PyTree, float], PyTree]


@dataclass(frozen=True)
class Layer:
    """A leaf that an allocation assigns a sparsity to."""

    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the stacked axes."""
        return self.layout.shape[len(self.layout.stacked) :]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.layout.shape)


@checked()
def uniform(params: PyTree, sparsity: float, *, fixed: Mapping[str, float] | None = None) -> PyTree:
    r"""The same sparsity for every layer.

    Args:
      params: A tree of arrays or shapes. Only leaves named `kernel` or `weight` are considered.
      sparsity: Fraction of zeros over all these leaves together.
      fixed: Sparsities of leaves (regular expression: sparsity); the others share the remainder.

    Returns:
      A tree of sparsities; None for all other leaves.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.uniform({"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}, 0.9)
      {'bias': None, 'kernel': 0.9}
    """
    return _allocate(params, sparsity, fixed, lambda layers, s: dict.fromkeys(layers, s))


@checked(last_sparsity="[0, 1]")
def uniform_plus(
    params: PyTree,
    sparsity: float,
    *,
    first: str | None = None,
    last: str | None = None,
    last_sparsity: float = 0.8,
    exact_budget: bool = True,
) -> PyTree:
    r"""Uniform, but the first layer dense and the last at most 80 % sparse.

    The others share the rest of the budget: `d' = (d N - N_first - d_last N_last) / N_others`.

    Args:
      params: A tree of arrays or shapes.
      sparsity: Fraction of zeros over all these leaves together.
      first: Regular expression of the first layer; by default the first name in natural order.
      last: Regular expression of the last layer; by default the last name in natural order.
      last_sparsity: Upper limit of the sparsity of the last layer.
      exact_budget: If False, the formula of the official code, `d' = (d N - N_first - d_last
        N_last) / N`, which keeps fewer entries than requested.

    Returns:
      A tree of sparsities; None for all other leaves.

    Raises:
      ValueError: If the first and last layer alone exceed the budget.

    Reference:
      Gale et al., The State of Sparsity in Deep Neural Networks, 2019 (arXiv 1902.09574).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> layers = {f"l{i}": {"kernel": jnp.ones((10, 10))} for i in range(4)}
      >>> s = sj.masks.uniform_plus(layers, 0.6)
      >>> [round(s[f"l{i}"]["kernel"], 2) for i in range(4)]
      [0.0, 0.9, 0.9, 0.6]
    """

    if not 0 <= last_sparsity <= 1:
        raise ValueError(f"last_sparsity={last_sparsity} must be a fraction of zeros, in [0, 1].")

    def shares(layers, s):
        names = sorted(layers, key=natural_order)
        head = _one("first", names, first, names[0])
        tail = _one("last", names, last, names[-1])
        if len(names) == 1:
            return {head: s}
        others = [n for n in names if n not in (head, tail)]
        total = sum(layer.size for layer in layers.values())
        tail_density = max(1 - s, 1 - last_sparsity)
        rest = (1 - s) * total - layers[head].size - tail_density * layers[tail].size
        over = sum(layers[n].size for n in others) if exact_budget else total
        if rest < 0 or (others and rest > over) or (not others and abs(rest) > 1e-6 * total):
            raise ValueError(
                f"uniform_plus cannot reach sparsity {s}: {head} dense and {tail} at sparsity "
                f"{1 - tail_density:.3g} leave {rest:.0f} entries for the other {len(others)} "
                "layers; pass another sparsity, or use sj.masks.erk."
            )
        inner = 1 - rest / over if others else 0.0
        return {**dict.fromkeys(others, inner), head: 0.0, tail: min(s, last_sparsity)}

    return _allocate(params, sparsity, None, shares)


@checked()
def erdos_renyi(
    params: PyTree, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> PyTree:
    r"""Erdos-Renyi: density proportional to `(n_in + n_out) / (n_in n_out)`, at most 1.

    For a convolution only the two channel axes are used.

    Args:
      params: A tree of arrays or shapes.
      sparsity: Fraction of zeros over all these leaves together.
      fixed: Sparsities of leaves (regular expression: sparsity); the others share the remainder.

    Returns:
      A tree of sparsities; None for all other leaves.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Reference:
      Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity, 2018 (arXiv 1707.04780).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> layers = {"a": {"kernel": jnp.ones((100, 100))}, "b": {"kernel": jnp.ones((100, 10))}}
      >>> s = sj.masks.erdos_renyi(layers, 0.8)
      >>> round(s["a"]["kernel"], 3), round(s["b"]["kernel"], 3)
      (0.858, 0.219)
    """
    score = _dimensions(lambda layer: layer.layout.channels, power=1.0)
    return _allocate(params, sparsity, fixed, lambda layers, s: _scaled(layers, s, score))


@checked(power="(-inf, inf)")
def erk(
    params: PyTree,
    sparsity: float,
    *,
    fixed: Mapping[str, float] | None = None,
    power: float = 1.0,
) -> PyTree:
    r"""Erdos-Renyi kernel: density proportional to `(sum(shape) / prod(shape)) ** power`.

    Layers that would exceed density 1 become dense and the others share the remainder, so the total
    is exact. `fixed={"head/kernel$": 0.0}` is ERK+ (a dense classifier).

    Args:
      params: A tree of arrays or shapes.
      sparsity: Fraction of zeros over all these leaves together.
      fixed: Sparsities of leaves (regular expression: sparsity); the others share the remainder.
      power: Exponent of the score.

    Returns:
      A tree of sparsities; None for all other leaves.

    Raises:
      ValueError: If the sparsity is outside [0, 1], or the power gives no finite score.

    Reference:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019 (arXiv 1911.11134).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> widths = [784, 300, 100, 10]
      >>> lenet = {f"l{i}": {"kernel": jnp.ones(s)} for i, s in enumerate(zip(widths, widths[1:]))}
      >>> [round(s["kernel"], 4) for s in sj.masks.erk(lenet, 0.9).values()]
      [0.9204, 0.7698, 0.0]
    """
    check_number("power", power, "1.0")
    score = _dimensions(lambda layer: layer.shape, power)
    return _allocate(params, sparsity, fixed, lambda layers, s: _scaled(layers, s, score))


@checked()
def from_scores(scores: PyTree) -> Allocation:
    r"""The layer ratios of a global top-k of given scores; the positions are not used.

    With `saliency` these are the SNIP ratios, with `grasp` the GraSP ratios, with `magnitude`
    those of global magnitude pruning.

    Args:
      scores: A tree of scores with the structure of the parameters; the largest are kept.

    Returns:
      An allocation, a function of (params, sparsity).

    Reference:
      Liu et al., 2022 (arXiv 2202.02643).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": 2 * jnp.ones((2, 2))}}
      >>> allocate = sj.masks.from_scores(sj.masks.magnitude(params))
      >>> allocate(params, 0.5)
      {'a': {'kernel': 1.0}, 'b': {'kernel': 0.0}}
    """
    by_name = named_leaves(scores)

    def allocate(params, sparsity):
        def shares(layers, s):
            missing = [name for name in layers if name not in by_name]
            if missing:
                raise ValueError(f"from_scores has no score for {', '.join(missing)}.")
            total = sum(layer.size for layer in layers.values())
            masks = topk_masks([by_name[name] for name in layers], total - round(total * s))
            return {name: 1 - count(m) / m.size for name, m in zip(layers, masks)}

        return _allocate(params, sparsity, None, shares)

    return allocate


@checked()
def joint(params: PyTree, sparsity: float) -> PyTree:
    r"""One selection over all layers together, repeated at every mask update.

    With `sj.plan(..., allocate=sj.masks.joint)` the plan compares the scores of all its
    leaves with each other, those of stacked slices too. Called directly, it returns the layer
    ratios of global magnitude pruning.

    Args:
      params: A tree of arrays.
      sparsity: Fraction of zeros over all these leaves together.

    Returns:
      A tree of sparsities; None for all other leaves.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": 2 * jnp.ones((2, 2))}}
      >>> sj.masks.joint(params, 0.75)
      {'a': {'kernel': 1.0}, 'b': {'kernel': 0.5}}
    """
    return from_scores(jax.tree.map(abs, params))(params, sparsity)


def _allocate(params: PyTree, sparsity: float, fixed: Mapping[str, float] | None, shares) -> PyTree:
    """Applies `shares(layers, sparsity)` to the selected leaves that are not fixed."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity} must be the fraction of zeros, in [0, 1].")
    layers = _layers(params)
    if not layers:
        raise ValueError("allocation: the tree must have a leaf named kernel or weight, got none.")
    given = {}
    for rule, value in (fixed or {}).items():
        named = [name for name in layers if expression("the rule", rule).search(name)]
        if not named:
            raise ValueError(f"fixed={{{rule!r}: {value}}} matches none of {', '.join(layers)}.")
        checked_sparsity(f"fixed of {rule!r}", value)
        given |= {name: value for name in named if name not in given}
    free = {name: layer for name, layer in layers.items() if name not in given}
    rest = _rest(layers, given, sparsity)
    sparsities = {**given, **(shares(free, rest) if free else {})}
    return map_named(lambda name, leaf: sparsities.get(name), params)


def _rest(layers: Mapping[str, Layer], given: Mapping[str, float], sparsity: float) -> float:
    """The sparsity of the leaves that are not fixed, for the requested total."""
    if not given:
        return sparsity
    total = sum(layer.size for layer in layers.values())
    fixed = sum(layers[name].size for name in given)
    zeros = sparsity * total - sum(value * layers[name].size for name, value in given.items())
    rest = total - fixed
    if not -1e-9 * total <= zeros <= rest + 1e-9 * total:
        raise ValueError(
            f"a sparsity of {sparsity} in all leaves is not possible with fixed={dict(given)}: "
            f"the others would need {zeros:.0f} zeros of {rest} entries."
        )
    return min(max(zeros / rest, 0.0), 1.0) if rest else sparsity


def _layers(params: PyTree) -> dict[str, Layer]:
    """The layers selected by a plan, or the kernels of a tree."""
    leaves = named_leaves(params)
    chosen = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Layer)}
    if chosen:
        return chosen
    orders = kernel_orders(params)
    return {
        name: Layer(layout(tuple(leaf.shape), order=orders.get(name)))
        for name, leaf in leaves.items()
        if is_kernel(name, leaf)
    }


def _dimensions(select, power: float):
    def score(layer: Layer) -> float:
        sizes = np.asarray(select(layer), np.float64)
        with np.errstate(over="ignore", under="ignore"):
            found = float((sizes.sum() / sizes.prod()) ** power)
        if not 0 < found < math.inf:
            raise ValueError(
                f"power={power!r} must give densities: a layer of shape {layer.shape} gets the "
                f"score {found}; power=1.0 is usual."
            )
        return found

    return score


def _scaled(layers: Mapping[str, Layer], sparsity: float, score) -> dict[str, float]:
    """Densities `epsilon * score`, clipped to 1, whose total is exact.

    All layers at the maximum are clipped together; otherwise the result would depend on their
    order.
    """
    scores = {name: score(layer) for name, layer in layers.items()}
    kept = (1 - sparsity) * sum(layer.size for layer in layers.values())
    dense: set[str] = set()
    epsilon = 0.0
    while free := {name for name in layers if name not in dense}:
        budget = kept - sum(layers[name].size for name in dense)
        epsilon = budget / sum(scores[name] * layers[name].size for name in free)
        top = max(scores[name] for name in free)
        if epsilon * top <= 1:
            break
        dense |= {name for name in free if scores[name] == top}
    return {name: 0.0 if name in dense else 1 - epsilon * scores[name] for name in layers}


def _one(argument: str, names: list[str], rule: str | None, default: str) -> str:
    if rule is None:
        return default
    found = [name for name in names if expression("the rule", rule).search(name)]
    if len(found) != 1:
        raise ValueError(f"{argument}={rule!r} must match one layer, got {found or 'none'}.")
    return found[0]
