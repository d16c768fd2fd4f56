"""Averages of parameters: uniform and greedy soups."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._arguments import as_number, checked, known, returned_params
from .._arrays import wide_dtype
from .._sharding import on_host
from .._tree import named_leaves


@checked()
def uniform_soup(
    trees: Sequence[PyTree],
    weights: Sequence[float] | None = None,
    *,
    allow_union: bool = False,
) -> PyTree:
    r"""The average `sum_i lambda_i theta_i`, accumulated in at least float32, in the given order.

    Members that share their masks give an average with the same exact zeros. Integers and booleans
    (counters) are those of the first member.

    Args:
      trees: Parameters of the members, all of one structure.
      weights: lambda, one number per member; None means `1 / m`.
      allow_union: Whether members of different masks are averaged, which is less sparse than each.

    Returns:
      A tree like the first, in its dtypes.

    Raises:
      ValueError: If `trees` is empty, shapes differ, the number of weights is not that of members,
        a weight is not finite, or (unless traced) their masks differ: a matrix has fewer zeros in
        common than each member has, by a hundredth of its entries.

    Reference:
      Wortsman et al., Model Soups, 2022 (arXiv 2203.05482); Zimmer et al., Sparse Model Soups, 2023
      (arXiv 2306.16788).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.recipes.uniform_soup([jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])]).tolist()
      [2.0, 0.0]
    """
    trees = list(trees)
    if not trees:
        raise ValueError("uniform_soup: trees must have at least one member, got none.")
    for i, tree in enumerate(trees[1:], 1):
        returned_params(f"member {i}", trees[0], tree, finite=False)
    weights = [1 / len(trees)] * len(trees) if weights is None else list(weights)
    if len(weights) != len(trees):
        raise ValueError(f"uniform_soup: {len(trees)} members and {len(weights)} weights.")
    for weight in weights:
        if known(weight) and not np.isfinite(weight).all():
            raise ValueError(f"uniform_soup: weights must be finite, got {weights}.")
    if not allow_union:
        _check_one_mask(trees)

    def average(first, *rest):
        if not jnp.issubdtype(jnp.result_type(first), jnp.inexact):
            return first
        wide = wide_dtype(first)
        total = jnp.zeros(jnp.shape(first), wide)
        for weight, x in zip(weights, (first, *rest)):
            total = total + weight * jnp.asarray(x).astype(wide)
        return total.astype(jnp.result_type(first))

    return trees[0] if len(trees) == 1 and weights[0] == 1 else jax.tree.map(average, *trees)


def _check_alike(what: str, trees: Sequence[PyTree]) -> None:
    """Raises unless all members have the same leaves in the same shapes."""
    shapes = [{name: jnp.shape(x) for name, x in named_leaves(tree).items()} for tree in trees]
    for i, found in enumerate(shapes):
        if found != shapes[0]:
            raise ValueError(f"{what}: trees[{i}] {found} must be like trees[0] {shapes[0]}.")


def _check_one_mask(trees: Sequence[PyTree]) -> None:
    members = [named_leaves(tree) for tree in trees]
    for name, first in members[0].items():
        leaves = [member[name] for member in members]
        if first is None or jnp.ndim(first) < 2 or not known(*leaves):
            continue
        with jax.ensure_compile_time_eval():  # known members, also inside jit
            zeros = [jnp.asarray(x) == 0 for x in leaves]
            fewest = min(int(jnp.sum(z)) for z in zeros)
            common = int(jnp.sum(functools.reduce(jnp.logical_and, zeros)))
        if fewest - common > first.size / 100:
            raise ValueError(
                f"uniform_soup: members have different masks: each has {fewest} zeros or more of "
                f"{first.size} in {name or 'the array'}, all together {common}. Average members of "
                "one mask, or accept the union: uniform_soup(trees, allow_union=True)."
            )


@checked(score="score(params)")
def greedy_soup(
    trees: Sequence[PyTree], score: Callable[[PyTree], Any], *, allow_union: bool = False
) -> tuple[PyTree, tuple[int, ...]]:
    r"""The greedy soup: adds members by score while the score of the average does not fall.

    A member is added if `score(average with it) >= score(current average)`. Score on held-out data.

    Args:
      trees: Parameters of the members, all of one structure.
      score: `score(params) -> number`, larger is better; a NaN score ranks last and is never added.
      allow_union: As in `uniform_soup`.

    Returns:
      The average, and the indices of its members, the best first.

    Raises:
      ValueError: If `trees` is empty, shapes differ, or all scores are NaN.
      TypeError: If `score` is not a function from parameters to a number.

    Reference:
      Wortsman et al., Model Soups, 2022 (arXiv 2203.05482).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> members = [jnp.array(0.0), jnp.array(2.0), jnp.array(9.0)]
      >>> soup, chosen = sj.recipes.greedy_soup(members, lambda p: -abs(p - 1.0))
      >>> float(soup), chosen
      (1.0, (0, 1))
    """
    trees = list(trees)
    if not trees:
        raise ValueError("greedy_soup: trees must have at least one member, got none.")
    _check_alike("greedy_soup", trees)
    if not allow_union:
        _check_one_mask(trees)
    number = lambda tree: as_number("score", score(tree))  # noqa: E731
    found = np.array([number(tree) for tree in trees])
    if np.isnan(found).all():
        raise ValueError("greedy_soup: score returned NaN for every member; nothing can be ranked.")
    scores = np.nan_to_num(found, nan=-np.inf)
    order = [int(i) for i in np.argsort(-scores, kind="stable")]
    chosen, soup, best = [order[0]], trees[order[0]], scores[order[0]]
    for i in order[1:]:
        trial = uniform_soup([trees[j] for j in [*chosen, i]], allow_union=allow_union)
        if (found := number(trial)) >= best:
            chosen, soup, best = [*chosen, i], trial, found
    return soup, tuple(chosen)


@checked()
def soup_geometry(trees: Sequence[PyTree]) -> dict[str, float]:
    r"""Distances of the members: pairwise distances, angles, and distances to their average.

    `|theta_i - theta_j|_2` and `arccos(<theta_i, theta_j> / (|theta_i| |theta_j|))` in degrees over
    all floating leaves together.

    Args:
      trees: Parameters of at least two members.

    Returns:
      `distance_min`, `distance_mean` and `distance_max` over the pairs; the same three of `angle`,
      and of `centre`, the distance to the average.

    Raises:
      ValueError: If there are fewer than two members.

    Reference:
      Zimmer et al., Sparse Model Soups, 2023 (arXiv 2306.16788).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> found = sj.recipes.soup_geometry([jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])])
      >>> round(found["angle_mean"]), round(found["distance_max"], 3)
      (90, 1.414)
    """
    if len(trees) < 2:
        raise ValueError(f"soup_geometry needs two members or more, got {len(trees)}.")
    _check_alike("soup_geometry", trees)
    flat = np.stack([_flat(tree) for tree in trees])
    centre = np.linalg.norm(flat - flat.mean(0), axis=1)
    i, j = np.triu_indices(len(trees), 1)
    distance = np.linalg.norm(flat[i] - flat[j], axis=1)
    length = np.maximum(np.linalg.norm(flat, axis=1), 1e-30)
    cosine = np.sum(flat[i] * flat[j], axis=1) / (length[i] * length[j])
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    found = {"distance": distance, "angle": angle, "centre": centre}
    kinds = {"min": np.min, "mean": np.mean, "max": np.max}
    return {f"{name}_{kind}": float(f(x)) for name, x in found.items() for kind, f in kinds.items()}


def _flat(tree: PyTree) -> np.ndarray:
    floats = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)  # noqa: E731
    leaves = [x for x in named_leaves(tree).values() if floats(x)]
    return np.concatenate([on_host(x).astype(np.float64).ravel() for x in leaves])
