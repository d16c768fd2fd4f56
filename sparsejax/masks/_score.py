"""Scores: the importance of entries. The largest are kept."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from .._arguments import check_key, check_not_nan, checked
from .._arrays import wide_dtype
from .._sharding import drawn_like
from .._tree import is_array, map_named, named_leaves
from ._plan import Plan
from ._planned_leaf import PlannedLeaf


@checked()
def magnitude(params: PyTree) -> PyTree:
    r"""Magnitude, `|w|`: the default score.

    Args:
      params: A tree of arrays.

    Returns:
      The tree of absolute values; non-numeric leaves (a key, a flag) are returned unchanged.

    Reference:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015
      (arXiv 1506.02626).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.magnitude({"kernel": jnp.array([-2.0, 1.0])})["kernel"].tolist()
      [2.0, 1.0]
    """
    number = lambda w: is_array(w) and jnp.issubdtype(w.dtype, jnp.number)  # noqa: E731
    return jax.tree.map(lambda w: jnp.abs(w) if number(w) else w, params)


@checked()
def random(
    params: PyTree, plan: Plan | None = None, *, key: Key[Array, ""], exact: bool = True
) -> PyTree:
    r"""Independent uniform scores, for uniformly random masks; or, with a plan, the masks.

    The key is folded with the name of each leaf, so adding a layer does not change the other masks.
    Masks have the counts of the plan; with `exact=False` every unit of a leaf is kept by itself
    with probability `1 - zeros / units` (Bernoulli), so that only the expected count is that.

    Args:
      params: A tree of arrays (or of shapes with a dtype).
      plan: The leaves and their sparsities; None returns scores.
      key: A key made by `jax.random.key`.
      exact: Whether masks have exact counts.

    Returns:
      A tree of float32 scores in [0, 1); with a plan `plan.masks` of them, or Bernoulli masks, with
      None for the leaves that are not planned.

    Raises:
      ValueError: If `exact=False` has no plan, or a pattern that fixes the counts of its units, as
        N:M does.

    Reference:
      Liu et al., The Unreasonable Effectiveness of Random Pruning, 2022 (arXiv 2202.02643).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.random({"kernel": jnp.ones((2, 3))}, key=jax.random.key(0))["kernel"].shape
      (2, 3)
      >>> params = {"kernel": jnp.ones((100, 100))}
      >>> plan = sj.plan(params, sj.Unstructured(0.9))
      >>> masks = sj.masks.random(params, plan, key=jax.random.key(0), exact=False)
      >>> 900 < int(masks["kernel"].sum()) < 1100
      True
    """

    check_key("key", key)
    if plan is None and not exact:
        raise ValueError(
            "masks.random: exact=False needs the plan whose masks are drawn: "
            "sj.masks.random(params, plan, key=key, exact=False)."
        )
    own = lambda name: jax.random.fold_in(key, zlib.crc32(name.encode()))  # noqa: E731
    if not exact:
        planned = {leaf.name: leaf for leaf in plan.leaves}  # pyright: ignore
        return map_named(
            lambda name, w: _bernoulli(planned[name], w, own(name)) if name in planned else None,
            params,
        )

    def uniform(name, leaf):
        draw = lambda key: jax.random.uniform(key, jnp.shape(leaf), jnp.float32)  # noqa: E731
        return drawn_like(jnp.asarray(leaf), draw, own(name))

    scores = map_named(uniform, params)
    return scores if plan is None else plan.masks(scores)


def _bernoulli(leaf: PlannedLeaf, w: Any, key: Array) -> Array:
    """A mask whose units are kept independently, by integers: floats end at 2**-24."""
    pattern, layout, zeros, units = leaf.pattern, leaf.layout, leaf.zeros, leaf.units
    fixed = pattern.balanced or pattern.slices(layout) != layout.slices
    if not pattern.pooled or fixed:
        raise ValueError(
            f"masks.random: exact=False draws the units of a leaf independently, but {pattern!r} "
            f"of {leaf.name} fixes how many are kept together; omit exact=False."
        )
    if tuple(w.shape) != leaf.shape:
        raise ValueError(f"masks.random: {leaf.name} {w.shape} was planned as {leaf.shape}.")
    shape = jax.eval_shape(lambda: pattern.pool(jnp.zeros(leaf.shape), layout)).shape

    def draw(key):
        kept = jax.random.bits(key, shape, jnp.uint32) >= jnp.uint32((zeros << 32) // units)
        return pattern.expand(kept, layout)

    if zeros >= units:
        return jnp.zeros(leaf.shape, bool)
    return drawn_like(w, draw, key)


@checked()
def saliency(params: PyTree, grads: PyTree) -> PyTree:
    r"""Connection sensitivity, `|w g|`: the score of SNIP and of first-order Taylor pruning.

    Args:
      params: A tree of arrays.
      grads: Gradients of the loss at `params`, of the same structure.

    Returns:
      The tree of scores.

    Reference:
      Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018
      (arXiv 1810.02340).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.saliency(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])).tolist()
      [3.0, 1.0]
    """
    _check_same_shapes("saliency", params, grads)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)


@checked()
def movement(params: PyTree, grads: PyTree) -> PyTree:
    r"""Movement, `-w g`: high where a step of gradient descent moves a weight away from zero.

    Movement pruning adds these up over training.

    Args:
      params: A tree of arrays.
      grads: Gradients of the loss, of the same structure.

    Returns:
      The tree of scores.

    Reference:
      Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020 (arXiv 2005.07683).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.movement(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])).tolist()
      [-3.0, 1.0]
    """
    _check_same_shapes("movement", params, grads)
    return jax.tree.map(lambda w, g: -w * g, params, grads)


@checked(loss_fn="loss_fn(params)")
def grasp(params: PyTree, loss_fn: Callable[[PyTree], Array]) -> PyTree:
    r"""Gradient signal preservation, `w (H g)`: the largest are kept.

    `H` is the Hessian and `g` the gradient of the loss; `H g` is one forward-over-reverse product.
    The paper removes the largest of `-w (H g)`, which is equivalent. It divides the logits by a
    temperature of 200: do so in `loss_fn`.

    Args:
      params: A tree of arrays.
      loss_fn: Function of `params` alone, to a scalar.

    Returns:
      The tree of scores.

    Reference:
      Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020
      (arXiv 2002.07376).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.grasp(jnp.array([1.0, 2.0]), lambda w: (w**4).sum()).tolist()
      [48.0, 3072.0]
    """
    loss_of, floats = _of_floats(loss_fn, params)
    gradient = jax.grad(loss_of)
    _, product = jax.jvp(gradient, (floats,), (gradient(floats),))
    return map_named(lambda name, w: w * product[name] if name in product else w, params)


@checked(output_fn="output_fn(params)")
def synflow(params: PyTree, output_fn: Callable[[PyTree], Array]) -> PyTree:
    r"""Synaptic flow, `|w dR/dw|` with `R = sum(output_fn(|params|))`: needs no data.

    A single round at a high sparsity empties whole layers; use `sj.masks.iterative` (100 rounds).

    Args:
      params: A tree of arrays.
      output_fn: The network as a function of `params` alone, on an input of ones, with its norms
        at unit statistics. Deep networks overflow float32: pass parameters in float64, or kernels
        divided by their largest entry, which scales all scores alike (without biases).

    Returns:
      The tree of scores.

    Reference:
      Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic
      flow, 2020 (arXiv 2006.05467).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0, 0.5])}
      >>> scores = sj.masks.synflow(params, lambda p: p["a"] * p["b"])
      >>> scores["a"].tolist(), scores["b"].tolist()
      ([3.0, 1.0], [3.0, 1.0])
    """
    total, positive = _of_floats(lambda p: jnp.sum(output_fn(p)), magnitude(params))
    flow = jax.grad(total)(positive)
    return map_named(lambda name, w: jnp.abs(w * flow[name]) if name in flow else w, params)


@checked()
def fisher(params: PyTree, second_moments: PyTree) -> PyTree:
    r"""Diagonal Fisher information times the weight, `w^2 nu`, with Adam's second moment.

    Args:
      params: A tree of arrays.
      second_moments: `optax.tree.get(opt_state, "nu")`, of the same structure.

    Returns:
      The tree of scores.

    Reference:
      LeCun, Denker and Solla, Optimal Brain Damage, 1989, with the Fisher diagonal for the Hessian.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.fisher(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])).tolist()
      [3.0, 2.0]
    """
    _check_same_shapes("fisher", params, second_moments)
    return jax.tree.map(lambda w, nu: w * w * nu, params, second_moments)


@checked(tol="[0, inf)")
def update_mask(before: PyTree, after: PyTree, tol: ArrayLike = 0.0) -> PyTree:
    r"""The masks of the entries that differ, `|after - before| > tolerance`: a sub-network.

    Args:
      before: A tree of arrays.
      after: The same tree later; the difference is formed in at least float32.
      tol: 0 for exact inequality; NaN differs from everything. Integers, booleans and
        keys are only compared for equality.

    Returns:
      The tree of masks, for `sj.optim.subset` for example.

    Raises:
      ValueError: If the trees have different leaves or shapes, or the tolerance is NaN.

    Reference:
      Mukherjee et al., 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.update_mask(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.5])).tolist()
      [False, True]
    """
    check_not_nan("update_mask", tol=tol)
    old, new = named_leaves(before), named_leaves(after)
    if list(old) != list(new):
        other = sorted(set(old) ^ set(new))
        raise ValueError(f"update_mask(before, after): only one tree has {', '.join(other)}.")

    def differ(name, x, y):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"update_mask: {name or 'the array'} has shape {jnp.shape(x)} before "
                f"and {jnp.shape(y)} after."
            )
        x, y = jnp.asarray(x), jnp.asarray(y)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x != y
        x, y = (z.astype(wide_dtype(z)) for z in (x, y))
        return ~((x == y) | (jnp.abs(y - x) <= tol))

    return map_named(differ, before, new)


def _of_floats(f: Callable[[PyTree], Array], params: PyTree):
    """f as a function of the floating leaves by name, and these; other leaves are constant."""
    floats = {
        name: w
        for name, w in named_leaves(params).items()
        if jnp.issubdtype(jnp.result_type(w), jnp.inexact)
    }
    return lambda by_name: f(map_named(lambda name, w: by_name.get(name, w), params)), floats


def _check_same_shapes(score: str, params: PyTree, grads: PyTree) -> None:
    """Raises if shapes differ: broadcasting would silently give scores of the wrong shape."""
    of_params, of_grads = named_leaves(params), named_leaves(grads)
    for name, leaf in of_params.items():
        other = of_grads.get(name)
        if other is None or jnp.shape(other) != jnp.shape(leaf):
            got = "nothing" if other is None else f"shape {jnp.shape(other)}"
            raise ValueError(
                f"{score}(params, grads): {name or 'params'} has shape {jnp.shape(leaf)} and its "
                f"gradient {got}; pass jax.grad(loss)(params)."
            )
