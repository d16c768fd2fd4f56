"""Proximal steps: a penalty chained after an optimizer, with exact zeros."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from .._arguments import check_updates, checked
from .._arrays import common_dtype, wide_dtype
from .._steady import steady
from .._tree import expression, is_kernel, map_named, named_leaves
from ..prox import Penalty
from ._pruning import at_step, next_step

# None leaves the leaves that match the rule unchanged.
Rules = Penalty | Mapping[str, Penalty | None]


class ProximalState(NamedTuple):
    """State of `proximal`: the step."""

    count: Int[Array, ""]


@checked(learning_rate="[0, inf)")
def proximal(
    penalty: Rules, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""A proximal step after a gradient step: new parameters `prox(p + u, learning_rate)`.

    Minimises loss + penalty if the preceding transformation is `optax.sgd(learning_rate)` with the
    same rate (see `proximal_sgd`). Zeros are exact. In a chain of transformations, this should
    be the last one.

    Args:
      penalty: A penalty for the leaves named `kernel` or `weight`; or regular expressions and
        penalties, the first rule that matches the path of a leaf applies, other leaves are
        unchanged. A penalty with groups across leaves (a dict of labels by path) is applied to them
        jointly.
      learning_rate: The step of the proximal operator: a number or an optax schedule.

    Returns:
      A transformation whose state has `count`.

    Raises:
      ValueError: If no leaf matches, or `update` gets no parameters.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[1.0, 0.25]])}
      >>> tx = optax.chain(optax.sgd(1.0), sj.optim.proximal(sj.prox.l1(0.5), 1.0))
      >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 2))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.5, 0.0]]
    """

    check_penalty("proximal", penalty)

    def init(params):
        check_rules("proximal", penalty, params)
        return ProximalState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        step = at_step(learning_rate, state.count)
        moved = proximal_updates(penalty, updates, params, lambda name: step)
        return moved, ProximalState(next_step(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


@checked(learning_rate="[0, inf)", momentum="[0, 1]")
def proximal_sgd(
    learning_rate: optax.ScalarOrSchedule,
    penalty: Rules,
    momentum: float | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Proximal stochastic gradient descent: `optax.sgd` and `proximal` with one learning rate.

    Args:
      learning_rate: Step size of both: a number or an optax schedule.
      penalty: As for `proximal`.
      momentum: Momentum of the gradient, applied before the proximal step.
      nesterov: Whether to use Nesterov momentum.

    Returns:
      A transformation.

    Reference:
      Beck and Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009 (deterministic
      form).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> tx = sj.optim.proximal_sgd(0.1, sj.prox.l1(1.0), momentum=0.9)
      >>> params = {"kernel": jnp.array([[1.0, 0.05]])}
      >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 2))}, tx.init(params), params)
      >>> [round(float(w), 3) for w in optax.apply_updates(params, updates)["kernel"][0]]
      [0.9, 0.0]
    """
    descent = steady(optax.sgd(learning_rate, momentum, nesterov))
    return optax.chain(descent, proximal(penalty, learning_rate))


class ProximalAdamState(NamedTuple):
    """State of `proximal_adam`: the step and the state of Adam."""

    count: Int[Array, ""]
    adam: optax.OptState


@checked(learning_rate="[0, inf)", b1="[0, 1)", b2="[0, 1)", eps="[0, inf)")
def proximal_adam(
    learning_rate: optax.ScalarOrSchedule,
    penalty: Rules,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with the proximal step in Adam's own metric.

    Adam moves entry i by `learning_rate / (sqrt(nu_i) + eps)` times a gradient, so the proximal
    step has the same length: `x_i = prox(p_i + u_i, learning_rate / (sqrt(nu_i) + eps))`. Only then
    is the weight of the penalty relative to the loss equal in every entry. A uniform step length
    (`optax.chain(optax.adam(...), proximal(...))`) minimises something else.

    Args:
      learning_rate: A number or an optax schedule.
      penalty: As for `proximal`, but elementwise: in a diagonal metric no other penalty has a
        closed proximal operator.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.

    Returns:
      A transformation, to be used alone or last in a chain.

    Raises:
      ValueError: If a penalty is not elementwise, no leaf matches, or `update` gets no parameters.

    Reference:
      Yun et al., Adaptive Proximal Gradient Methods for Structured Neural Networks, 2021.

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> tx = sj.optim.proximal_adam(0.1, sj.prox.l1(0.5))
      >>> params = {"kernel": jnp.array([[1.0, 0.12]])}
      >>> updates, _ = tx.update({"kernel": jnp.ones((1, 2))}, tx.init(params), params)
      >>> [round(float(w), 3) for w in optax.apply_updates(params, updates)["kernel"][0]]
      [0.85, 0.0]
    """
    check_penalty("proximal_adam", penalty)
    rules = [penalty] if isinstance(penalty, Penalty) else list(penalty.values())
    for rule in rules:
        if rule is not None and not rule.elementwise:
            raise ValueError(
                f"proximal_adam needs elementwise penalties (elementwise = True) and "
                f"{type(rule).__name__} is not; use sj.optim.proximal_sgd, or "
                "optax.chain(optax.adam(...), sj.optim.proximal(...)) if a uniform step length is "
                "intended."
            )
    adam = steady(optax.scale_by_adam(b1, b2, eps))  # pyright: ignore[reportArgumentType]

    def init(params):
        check_rules("proximal_adam", penalty, params)
        return ProximalAdamState(jnp.zeros((), jnp.int32), adam.init(params))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        rate = at_step(learning_rate, state.count)
        directions, inner = adam.update(updates, state.adam, params)
        steps = jax.tree.map(lambda d: (-rate * d).astype(d.dtype), directions)
        unbiased = optax.tree.bias_correction(inner.nu, b2, inner.count)  # pyright: ignore
        lengths = {
            name: rate / (jnp.sqrt(nu.astype(wide_dtype(nu))) + eps)
            for name, nu in named_leaves(unbiased).items()
        }
        moved = proximal_updates(penalty, steps, params, lengths.__getitem__)
        return moved, ProximalAdamState(next_step(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def proximal_updates(penalty: Rules, updates: PyTree, params: PyTree, step_of) -> PyTree:
    """Updates that lead to `prox(p + u, step)`; exactly `-p` where that is 0."""
    leaves, moves = named_leaves(params), named_leaves(updates)
    points = {name: leaves[name] + u for name, u in moves.items() if u is not None}
    targets = {}
    for rule, names in matched_leaves(penalty, points):
        if labels_of(rule) is not None:
            joint = {name: points[name] for name in names}
            targets |= rule.prox(joint, step_of(names[0]))
        else:
            targets |= {name: rule.prox(points[name], step_of(name)) for name in names}

    def update(name, u):
        if name not in targets:
            return u
        p, x = leaves[name], targets[name]
        # Not rounded to a narrower update dtype: p + u must equal x, and be 0 where x is 0.
        return jnp.where(x == 0, -p, x - p).astype(common_dtype(u, p))

    return map_named(update, updates)


def matched_leaves(penalty: Rules, leaves: Mapping[str, Array]) -> list[tuple[Penalty, list[str]]]:
    """Each penalty with its leaves: the first rule that matches a path applies."""
    if isinstance(penalty, Penalty):
        labels = labels_of(penalty)
        meant = [
            n for n, x in leaves.items() if (is_kernel(n, x) if labels is None else n in labels)
        ]
        return [(penalty, meant)] if meant else []
    rules = {rule: expression("penalty: the rule", rule) for rule in penalty}
    first = {name: next((r for r in rules if rules[r].search(name)), None) for name in leaves}
    found = [(rule, [name for name in leaves if first[name] == rule]) for rule in penalty]
    return [(p, names) for rule, names in found if names and (p := penalty[rule]) is not None]


def labels_of(penalty: Any) -> Mapping[str, Any] | None:
    """The labels by path of a penalty with groups across leaves, also inside a combinator."""
    groups = getattr(penalty, "partition", None)
    if groups is not None and groups.spans_leaves:
        return named_leaves(groups.labels)
    parts = vars(penalty).values() if isinstance(penalty, Penalty) else ()
    return next((found for part in parts if (found := labels_of(part)) is not None), None)


def check_penalty(what: str, penalty: Any) -> None:
    """Raises TypeError unless `penalty` is a penalty or a dict from rules to penalties."""
    rules = penalty.values() if isinstance(penalty, Mapping) else [penalty]
    for rule in rules:
        if not (isinstance(rule, Penalty) or (rule is None and isinstance(penalty, Mapping))):
            raise TypeError(
                f"{what}: {rule!r} is not a penalty; pass sj.prox.l1(1e-4), or a dict of regular "
                'expressions and penalties, {r"kernel$": sj.prox.l1(1e-4)}.'
            )


def check_rules(what: str, penalty: Rules, params: PyTree) -> None:
    """Raises if no leaf matches."""
    leaves = named_leaves(params)
    # optax's sharding tools pass a tree without leaves to get the structure of a state.
    if leaves and not matched_leaves(penalty, leaves):
        rules = "leaves named kernel or weight" if isinstance(penalty, Penalty) else list(penalty)
        raise ValueError(
            f"{what}: {rules} match no parameter; the parameters are {', '.join(leaves)}."
        )
