"""Random search over sub-networks before training: the neutral baseline."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ..._arguments import check_count, check_key
from ...masks import apply_masks
from ...recipes._check import check_callable
from ._paired import PairedTest, paired_t_test


class SearchResult(NamedTuple):
    """The masks of the candidate with the least loss, its number, and the losses of all."""

    masks: PyTree
    index: Int[Array, ""]
    losses: Float[Array, " candidates"]


def random_search(
    params: PyTree,
    loss: Callable[[PyTree, PyTree], Any],
    sample: Callable[[Key[Array, ""]], PyTree],
    *,
    key: Key[Array, ""],
    candidates: int = 100,
    batch_size: int | None = None,
) -> SearchResult:
    r"""The best-placed of many random sub-networks before training: `argmin_i loss(m_i theta)`.

    Forward passes only, with the given parameters; the winner is trained from them, not from new
    ones. A baseline, not a method to win with: the winner trains about as well as any one random
    mask. Pure: jit it, vmap it over trials.

    Args:
      params: Parameters at initialisation.
      loss: Function (masked params, masks) to a scalar on one fixed set of samples; the loss after
        some steps of training under the masks, for a longer look. NaN ranks last.
      sample: Function of a key to masks: `lambda key: sj.nn.surgery.edges_from_nodes(params,
        sj.nn.surgery.node_masks(key, widths, 0.5))` draws nodes, `lambda key:
        plan.masks(sj.masks.random(params, key))` draws weights.
      key: A key made by `jax.random.key`.
      candidates: N, how many are drawn.
      batch_size: How many are looked at together; None looks at one after the other.

    Returns:
      A `SearchResult`; the first of equal losses.

    Raises:
      TypeError: If a callable cannot be called so.
      ValueError: If there are no candidates.

    Reference:
      Farahani, Random Search as a Baseline for Sparse Neural Network Architecture Search, 2024
      (arXiv 2403.08265).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.0], [4.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> found = search.random_search(
      ...     params,
      ...     lambda p, masks: -p["kernel"].sum(),
      ...     lambda key: plan.masks(sj.masks.random(params, key)),
      ...     key=jax.random.key(0), candidates=50,
      ... )
      >>> found.masks["kernel"].ravel().tolist(), float(found.losses.min())
      ([False, False, False, True], -4.0)
    """
    check_callable("loss", loss, "params", "masks")
    check_callable("sample", sample, "key")
    check_count("candidates", candidates)
    check_key("key", key)
    keys = jax.random.split(key, candidates)

    def score(key):
        masks = sample(key)
        return jnp.asarray(loss(apply_masks(params, masks), masks))

    losses = jax.lax.map(score, keys, batch_size=batch_size)
    index = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    # Drawn again from its key: the masks of the others are never held.
    return SearchResult(sample(keys[index]), index, losses)


class SearchComparison(NamedTuple):
    """Searched against random masks at one sparsity, over paired trials.

    Args:
      sparsity: Of the masks.
      losses: Before training, of all candidates of each trial.
      searched: What `train` returned with the searched mask, trial by trial.
      random: The same with one fresh random mask.
      dense: The same without a mask.
      final: The paired t-test of searched against random, in the last entries of what `train`
        returned.
    """

    sparsity: float
    losses: Float[Array, "trials candidates"]
    searched: Float[Array, "trials ..."]
    random: Float[Array, "trials ..."]
    dense: Float[Array, "trials ..."]
    final: PairedTest


def compare_random_search(
    start: Callable[[Key[Array, ""]], PyTree],
    sample: Callable[..., PyTree],
    loss: Callable[[PyTree, PyTree], Any],
    train: Callable[..., Any],
    *,
    key: Key[Array, ""],
    sparsities: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    trials: int = 10,
    candidates: int = 100,
) -> tuple[SearchComparison, ...]:
    r"""Does searching for a sub-network before training pay? Searched, random and dense, paired.

    In each trial the three have the same first parameters and the same order of the data; the
    random mask is not one of the candidates. The trials are vmapped, so all callables must be
    pure.

    Args:
      start: Function of a key to the parameters of a trial.
      sample: Function (key, params, sparsity) to masks.
      loss: As in `random_search`.
      train: Function (params, masks, key) to a score, or an array of scores such as one an epoch;
        masks is None for the dense parent.
      key: A key made by `jax.random.key`.
      sparsities: The sweep.
      trials: T, at least 2.
      candidates: N of each search.

    Returns:
      A `SearchComparison` for each sparsity.

    Raises:
      TypeError: If a callable cannot be called so.
      ValueError: If there are fewer than two trials.

    Reference:
      Farahani, 2024 (arXiv 2403.08265).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> rows = search.compare_random_search(
      ...     lambda key: {"kernel": jax.random.normal(key, (8, 8))},
      ...     lambda key, params, s: sj.plan(params, sj.Unstructured(s)).masks(
      ...         sj.masks.random(params, key)),
      ...     lambda params, masks: -jnp.abs(params["kernel"]).sum(),
      ...     lambda params, masks, key: jnp.abs(params["kernel"]).sum(),  # no training at all
      ...     key=jax.random.key(0), sparsities=[0.5], trials=4, candidates=20,
      ... )
      >>> bool(rows[0].final.difference > 0), rows[0].losses.shape
      (True, (4, 20))
    """
    check_callable("start", start, "key")
    check_callable("sample", sample, "key", "params", "sparsity")
    check_callable("train", train, "params", "masks", "key")
    check_count("trials", trials, 2)
    check_key("key", key)
    keys = jax.random.split(key, trials)
    dense = jax.jit(jax.vmap(lambda key: _dense(start, train, key)))(keys)

    def compare(sparsity):
        def trial(key):
            k_start, k_search, k_random, k_train = jax.random.split(key, 4)
            params = start(k_start)
            draw = lambda key: sample(key, params, sparsity)  # noqa: E731
            found = random_search(params, loss, draw, key=k_search, candidates=candidates)
            runs = [
                jnp.asarray(train(apply_masks(params, masks), masks, k_train))
                for masks in (found.masks, draw(k_random))
            ]
            return found.losses, *runs

        losses, searched, random = jax.jit(jax.vmap(trial))(keys)
        final = paired_t_test(*(x.reshape(trials, -1)[:, -1] for x in (searched, random)))
        return SearchComparison(sparsity, losses, searched, random, dense, final)

    return tuple(map(compare, sparsities))


def _dense(start, train, key):
    k_start, _, _, k_train = jax.random.split(key, 4)
    return jnp.asarray(train(start(k_start), None, k_train))
