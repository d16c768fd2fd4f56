"""Penalties as gradients, for network slimming and similar methods."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from .._arguments import check_masks, check_updates, checked, checked_number, named_masks
from .._tree import map_named, named_leaves
from ._proximal import Rules, check_penalty, check_rules, labels_of, matched_leaves


@checked()
def add_penalty(
    penalty: Rules, keep: PyTree | None = None, *, smooth: ArrayLike | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the (sub)gradient of a penalty, optionally only on the entries to be pruned.

    `u + (1 - keep) * grad f(p)`. With `{r"norm.*scale$": sj.prox.l1(5e-4)}` this is network
    slimming; with the channels to keep it is MaskSparsity: entries to be pruned are driven to 0 and
    kept entries are not shrunk. Place it before the optimizer in a chain. A subgradient leaves
    values of about learning rate times strength instead of zeros: `sj.optim.proximal` is the exact
    form. Under Adam the gradient of the penalty is normalised with that of the loss.

    Args:
      penalty: As for `sj.optim.proximal`: a penalty for the leaves named `kernel` or `weight`, or
        regular expressions and penalties.
      keep: Masks by path, True where the penalty is not applied; leaves without a mask are
        penalised completely.
      smooth: The learning rate r, against oscillation around 0: where a step of that length would
        cross 0, `|p| < r |d|` for the (sub)gradient d, it is `|d| p` instead. With `l1` this is the
        "smooth l1" of MaskSparsity, `strength * p` below `r * strength`; `sj.prox.huber` is the
        continuous form. None uses d everywhere.

    Returns:
      A transformation without state.

    Raises:
      ValueError: If no leaf matches, a mask has another shape than its leaf, `smooth` is negative,
        or `update` gets no parameters.

    Reference:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017 (arXiv
      1708.06519); Jiang et al., Pruning-aware Sparse Regularization for Network Pruning, 2022
      (arXiv 2201.06776).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params, keep = {"scale": jnp.array([1.0, -0.5])}, {"scale": jnp.array([True, False])}
      >>> tx = sj.optim.add_penalty({"scale$": sj.prox.l1(0.25)}, keep)
      >>> updates, _ = tx.update({"scale": jnp.zeros(2)}, tx.init(params), params)
      >>> updates["scale"].tolist()
      [0.0, -0.25]
    """
    check_penalty("add_penalty", penalty)
    if smooth is not None:
        smooth = checked_number("smooth", smooth, "sj.optim.add_penalty(penalty, smooth=0.1)")
    by_name = {} if keep is None else named_masks("add_penalty", keep)

    def init(params):
        check_rules("add_penalty", penalty, params)
        if by_name:
            check_masks("add_penalty", params, by_name)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        leaves = named_leaves(params)
        pulls = {}
        for rule, names in matched_leaves(penalty, leaves):
            if labels_of(rule) is not None:
                pulls |= jax.grad(rule.value)({name: leaves[name] for name in names})
            else:
                pulls |= {name: jax.grad(rule.value)(leaves[name]) for name in names}

        def pull(name, u, d, mask):
            if d is None:
                return u
            if smooth is not None:
                p = leaves[name]
                d = jnp.where(jnp.abs(p) < smooth * jnp.abs(d), jnp.abs(d) * p, d)
            return u + (d if mask is None else jnp.where(mask, 0, d)).astype(u.dtype)

        return map_named(pull, updates, pulls, by_name), state

    return optax.GradientTransformationExtraArgs(init, update)
