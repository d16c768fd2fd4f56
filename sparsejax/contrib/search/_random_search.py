"""Random search over sub-networks before training, a baseline for sparse architecture search."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ..._arguments import check_count, check_key, check_one, checked, known
from ..._progress import Progress, check_loop, check_progress, run_chunks
from ...masks import apply_masks


class SearchResult(NamedTuple):
    """The masks of the candidate with the smallest loss, its index, and all losses."""

    masks: PyTree
    index: Int[Array, ""]
    losses: Float[Array, " candidates"]


@checked(loss="loss(params, masks)", sample="sample(key)")
def random_search(
    params: PyTree,
    loss: Callable[[PyTree, PyTree], Any],
    sample: Callable[[Key[Array, ""]], PyTree],
    *,
    key: Key[Array, ""],
    candidates: int = 100,
    batch_size: int | None = None,
    chunk: int = 100,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> SearchResult:
    r"""Selects the best of many random sub-networks before training: `argmin_i loss(m_i theta)`.

    Forward passes only, with the given parameters; train the winner from these parameters, not from
    new ones. A baseline: after training, the winner is about as good as a single random mask. Pure:
    works under jit, and under vmap over trials.

    Args:
      params: Parameters at initialization.
      loss: Function (masked params, masks) to a scalar on a fixed set of samples. It may also train
        a few steps under the masks and return the loss after them. NaN ranks last.
      sample: Function of a key to masks: `lambda key: sj.nn.surgery.mask_channels(params, graph,
        search.random_nodes(graph, 0.5, key=key))` draws nodes, `lambda key:
        plan.masks(sj.masks.random(params, key=key))` draws weights.
      key: A key from `jax.random.key`.
      candidates: Number of candidates N.
      batch_size: Number of candidates evaluated in parallel; None evaluates them one by one.
      chunk: Number of candidates between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `SearchResult`; the first candidate wins ties.

    Raises:
      TypeError: If a callable does not accept these arguments, or `loss` does not return one
        number.
      ValueError: If `candidates` is less than 1, `resume` began with other arguments, or (outside
        of jit) all losses are NaN.

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
      ...     lambda key: plan.masks(sj.masks.random(params, key=key)),
      ...     key=jax.random.key(0), candidates=50,
      ... )
      >>> found.masks["kernel"].ravel().tolist(), float(found.losses.min())
      ([False, False, False, True], -4.0)
    """
    check_count("candidates", candidates)
    check_key("key", key)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    keys = jax.random.split(key, candidates)
    first = None if callback is None and resume is None else sample(keys[0])
    arguments = check_loop(
        "random_search", resume, callback, key=key, candidates=candidates, batch_size=batch_size,
        chunk=chunk, data={"params": params, "masks": first},
    )  # fmt: skip

    def score(key):
        masks = sample(key)
        return check_one("loss", loss(apply_masks(params, masks), masks))

    def advance(losses, first, last):
        size = batch_size and min(batch_size, last - first)  # a scan of no batch fails without jit
        now = jax.lax.map(score, keys[first:last], batch_size=size)
        return jnp.concatenate([losses, now])

    begin = jnp.zeros(0, jax.eval_shape(score, key).dtype)
    losses = run_chunks(
        "random_search", begin, advance, candidates, arguments, inputs=(key, params), chunk=chunk,
        callback=callback, resume=resume, progress=progress, view=lambda _: params,
    )  # fmt: skip
    if known(losses) and bool(jnp.all(jnp.isnan(losses))):
        raise ValueError(
            f"random_search: the losses of all {candidates} candidates are NaN; check "
            "loss(masked_params, masks)."
        )
    index = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    # Drawing the winner again from its key avoids storing the masks of all candidates.
    return SearchResult(sample(keys[index]), index, losses)


class SearchComparison(NamedTuple):
    """Searched against random masks at one sparsity, over paired trials.

    The last three are the paired t-test of searched against random masks, in the last entry of each
    trial's score.

    Args:
      sparsity: Sparsity of the masks.
      losses: Losses before training, of all candidates of each trial.
      searched: Scores returned by `train` with the searched mask, one per trial.
      random: Scores with a new random mask.
      dense: Scores without a mask.
      difference: Mean difference, searched minus random.
      statistic: Student's t of the difference.
      p_value: Its two-sided p-value.
    """

    sparsity: float
    losses: Float[Array, "trials candidates"]
    searched: Float[Array, "trials ..."]
    random: Float[Array, "trials ..."]
    dense: Float[Array, "trials ..."]
    difference: float
    statistic: float
    p_value: float


@checked(
    start="start(key)", sample="sample(key, params, sparsity)", train="train(params, masks, key)"
)
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
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> tuple[SearchComparison, ...]:
    r"""Compares searched masks with random masks and the dense network in paired trials.

    In each trial the three networks share the initial parameters and the order of the data; the
    random mask is not one of the candidates. The trials are vmapped, so all callables must be pure.

    Args:
      start: Function of a key to the parameters of a trial.
      sample: Function (key, params, sparsity) to masks.
      loss: As in `random_search`.
      train: Function (params, masks, key) to a score, or an array of scores such as one per epoch;
        masks is None for the dense network.
      key: A key from `jax.random.key`.
      sparsities: Sparsities to compare at.
      trials: Number of trials, at least 2.
      candidates: Number of candidates N of each search.
      callback: Called with a `sj.recipes.Progress` after each sparsity.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `SearchComparison` for each sparsity.

    Raises:
      TypeError: If a callable does not accept these arguments.
      ValueError: If there are fewer than two trials, or `resume` began with other arguments.

    Reference:
      Farahani, 2024 (arXiv 2403.08265).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> rows = search.compare_random_search(
      ...     lambda key: {"kernel": jax.random.normal(key, (8, 8))},
      ...     lambda key, params, s: sj.plan(params, sj.Unstructured(s)).masks(
      ...         sj.masks.random(params, key=key)),
      ...     lambda params, masks: -jnp.abs(params["kernel"]).sum(),
      ...     lambda params, masks, key: jnp.abs(params["kernel"]).sum(),  # no training at all
      ...     key=jax.random.key(0), sparsities=[0.5], trials=4, candidates=20,
      ... )
      >>> rows[0].difference > 0, rows[0].losses.shape
      (True, (4, 20))
    """
    check_count("trials", trials, 2)
    check_key("key", key)
    check_count("candidates", candidates)
    keys = jax.random.split(key, trials)
    dense = jax.jit(jax.vmap(lambda key: _dense(start, train, key)))(keys)
    arguments = check_progress(
        "compare_random_search", resume, callback, key=key, trials=trials, candidates=candidates,
        sparsities=tuple(map(float, sparsities)), data={"dense": dense},
    )  # fmt: skip

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
        test = _paired_test(*(x.reshape(trials, -1)[:, -1] for x in (searched, random)))
        return SearchComparison(sparsity, losses, searched, random, dense, *test)

    def advance(rows, first, last):
        return *rows, *map(compare, sparsities[first:last])

    return run_chunks(
        "compare_random_search", (), advance, len(sparsities), arguments, chunk=1,
        callback=callback, resume=resume, progress=progress, view=lambda rows: None,
    )  # fmt: skip


def _paired_test(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Mean difference, Student's t and two-sided p-value of paired results."""
    from scipy.stats import ttest_rel  # a dependency of jax; slow to load

    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    apart = x - y
    mean = float(apart.mean())
    if np.ptp(apart) == 0:  # without variance t is 0 or infinite, where SciPy warns
        return mean, 0.0 if mean == 0 else math.copysign(math.inf, mean), float(mean == 0)
    found: Any = ttest_rel(x, y)
    return mean, float(found.statistic), float(found.pvalue)


def _dense(start, train, key):
    k_start, _, _, k_train = jax.random.split(key, 4)
    return jnp.asarray(train(start(k_start), None, k_train))
