"""Sparse subspace variational inference as dynamic sparse training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from ..._arguments import check_scheduled_fraction, check_updates, checked
from ..._steady import reset_moments
from ..._tree import is_gap, map_named, named_leaves
from ...masks import Plan, magnitude
from ...optim import drop_and_grow, every_until, get_masks
from ._kernel import inverse_softplus
from ._scores import snr


@checked(end="[0, inf)", every="[1, inf)", new_sigma="(0, inf)", criterion="criterion(mu, sigma)")
def ssvi(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    key: Key[Array, ""],
    end: int,
    every: int = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
    criterion: Callable[[Array, Array], Array] = snr,
    new_sigma: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparse subspace variational inference: the support of Gaussian weights moves in training.

    `sj.optim.drop_and_grow` on the means: at every `every`-th step t < `end`, of the n live weights
    of a layer the `floor(f_t n)` of lowest `criterion(mu, sigma)` are removed and as many are added
    at the largest `|dL / dmu|`, `f_t = drop_fraction / 2 (1 + cos(pi t / end))`. The deviations
    follow the masks of the means: an added weight starts at mean 0, with the mean deviation of the
    weights of its layer that survive, and with its moments reset. The sparsity is constant.

    Args:
      optimizer: The optimizer of all parameters; `optax.masked` can exempt some from decay.
      plan: The sparse means, from `sj.plan(params, {r"mu$": sj.Unstructured(0.95)})`.
      key: Key of the random initial masks.
      end: Step from which the masks are fixed, usually `int(0.75 * steps)`.
      every: Steps between two changes of the masks.
      drop_fraction: Fraction removed at step 0, decayed by a cosine; or a schedule.
      criterion: Function `(mu, sigma)` that returns scores, the lowest of which are removed: `snr`,
        which ranks as `snr_abs`, `e_abs`, `e_exp_abs` or another one.
      new_sigma: Deviation of added weights; None means the mean of the survivors.

    Returns:
      A transformation whose state has masks (`sj.get_masks`) of the means; pass them to
      `set_masks` before each evaluation of the loss, as `train_ssvi` does.

    Raises:
      ValueError: If a planned leaf is not the `mu` of a pair (mu, rho), a number is out of range or
        `update` gets no parameters.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> import jax, optax, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> params = nnx.state(bayes.BayesLinear(8, 8, rngs=nnx.Rngs(0)), nnx.Param)
      >>> plan = sj.plan(params, {r"mu$": sj.Unstructured(0.75)})
      >>> tx = bayes.ssvi(optax.adam(1e-3), plan, key=jax.random.key(0), end=750)
      >>> int(sj.get_masks(tx.init(params))["kernel"]["mu"].sum())
      16
    """
    Plan.require("ssvi", plan)
    check_scheduled_fraction("ssvi", "drop_fraction", drop_fraction)
    pairs = {leaf.name: _partner(leaf.name) for leaf in plan.leaves}
    sparse = any(leaf.zeros for leaf in plan.leaves)
    when = every_until(every, end) if sparse else lambda count: count < 0
    if not callable(drop_fraction):
        drop_fraction = optax.cosine_decay_schedule(drop_fraction, max(end, 1))

    def scores(params: PyTree, grads: PyTree, key: Any) -> dict[str, Array]:
        leaves = named_leaves(params)
        return {
            mu: criterion(leaves[mu], jax.nn.softplus(leaves[rho])) for mu, rho in pairs.items()
        }

    inner: Any = drop_and_grow(
        optimizer, plan, key=key, when=when, fraction=drop_fraction, drop=scores,
        grow=lambda params, grads, key: magnitude(grads),
    )  # fmt: skip

    def init(params):
        _check_pairs(pairs, named_leaves(params))
        return inner.init(params)

    def update(updates, state, params=None, **extra):
        check_updates(updates, params)
        moves, new = inner.update(updates, state, params, **extra)
        old, now = (named_leaves(get_masks(s)) for s in (state, new))
        leaves = named_leaves(params)
        present = {rho: mu for mu, rho in pairs.items() if mu in now and rho in leaves}
        moves = map_named(
            lambda name, move: (
                move
                if name not in present
                else _followed(
                    move, leaves[name], old[present[name]], now[present[name]], new_sigma
                )
            ),
            moves,
        )
        grown = map_named(
            lambda name, _: now[present[name]] & ~old[present[name]] if name in present else None,
            updates,
        )
        moments = jax.lax.cond(
            when(state.count),
            lambda: reset_moments(optimizer, new.inner, grown),
            lambda: new.inner,
        )
        return moves, new._replace(inner=moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _followed(move: Array, rho: Array, old: Array, now: Array, new_sigma: ArrayLike | None):
    """The update of rho: unchanged off the mask, and a new deviation for added weights."""
    if is_gap(move):
        return move
    if new_sigma is None:
        survivors = old & now
        # Without survivors, the mean of the weights that were removed.
        mean_of = jnp.where(jnp.any(survivors), survivors, old)
        new_sigma = jnp.mean(jax.nn.softplus(rho), where=mean_of)
    start = inverse_softplus(jnp.asarray(new_sigma, rho.dtype)) - rho
    return jnp.where(now & ~old, start, jnp.where(now, move, 0)).astype(move.dtype)


def _partner(name: str) -> str:
    """The path of the rho that belongs to a mu."""
    head, _, last = name.rpartition("/")
    if last != "mu":
        raise ValueError(
            f"ssvi: plan holds {name or 'an array'} and must hold means of Gaussian weights only: "
            'sj.plan(params, {r"mu$": sj.Unstructured(0.95)}).'
        )
    return f"{head}/rho" if head else "rho"


def _check_pairs(pairs: dict[str, str], leaves: dict[str, Any]) -> None:
    for mu, rho in pairs.items():
        if mu in leaves and (rho not in leaves or leaves[mu].shape != leaves[rho].shape):
            raise ValueError(
                f"ssvi: {mu} {leaves[mu].shape} needs its deviations {rho} of the same shape in "
                "the parameters; build the model from bayes.BayesLinear."
            )
