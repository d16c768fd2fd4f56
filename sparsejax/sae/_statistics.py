"""Statistics of an autoencoder over a stream of batches."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._arguments import checked
from .._tree import is_array
from ._norms import row_norms
from ._sae import SAE, Weights


class Statistics(NamedTuple):
    """Statistics over tokens, from `statistics`; those of a sample are means over tokens.

    Attributes:
      tokens: Number of tokens n.
      l0: Active latents of a token.
      l1: Sum of the sizes of the features of a token.
      mse: `|x - xhat|^2`, the sum over features.
      cosine: Cosine of x and xhat; 0 where one of them is 0.
      norm_ratio: `|xhat| / |x|` over tokens with x other than 0.
      explained_variance: `1 - sum Var(x - xhat) / sum Var(x)`.
      relative_bias: `E |xhat|^2 / E <x, xhat>`, 1 for an unbiased reconstruction.
      density: `(h,)`, the share of tokens in which a latent is active.
      consistency: `(h,)`, the number of active tokens over that of prompts in which a latent is
        active; NaN for dead latents, and without prompts.
    """

    tokens: int
    l0: float
    l1: float
    mse: float
    cosine: float
    norm_ratio: float
    explained_variance: float
    relative_bias: float
    density: np.ndarray
    consistency: np.ndarray

    @property
    def dead(self) -> float:
        """The share of latents that are never active."""
        return float(np.mean(self.density == 0))

    def histogram(self, bins: int = 50) -> tuple[np.ndarray, np.ndarray]:
        """Counts and edges of log10 of the densities; dead latents are left out."""
        return np.histogram(np.log10(self.density[self.density > 0]), bins)


@checked()
def statistics(sae: SAE, params: Weights, batches: Iterable[Any]) -> Statistics:
    """Statistics of an autoencoder, one batch in memory at a time.

    Memory is that of one batch and of h counts: an array `(h, h)` is never formed, and with sparse
    codes none `(n, h)` is kept.

    Args:
      sae: The autoencoder.
      params: Its parameters.
      batches: Arrays `(n, d)`, or `(prompts, length, d)` for the consistency; or dicts of them with
        `x`, and `grad` or `target`.

    Raises:
      ValueError: If there is no batch, or one has another width.

    Reference:
      Variances are about the mean: the formula of SAELens 6.18 squares the mean of x^2.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> found = sj.sae.statistics(sae, params, [jnp.array([[1.0, 0.0], [2.0, 0.0]])])
      >>> found.l0, found.explained_variance, found.density.tolist(), found.dead
      (1.0, 1.0, [1.0, 0.0], 0.5)
    """
    total: dict[str, Any] | None = None
    for batch in batches:
        given = batch if isinstance(batch, Mapping) else {"x": batch}
        if not is_array(given.get("x")) or given["x"].ndim < 2:
            raise ValueError(
                "statistics: batches must hold arrays (n, d), or dicts with one as x; [x] for one."
            )
        if not np.prod(given["x"].shape[:-1]):
            continue
        found = {k: np.asarray(v, np.float64) for k, v in _sums(sae, dict(params), given).items()}
        total = found if total is None else _merged(total, found)
    if total is None:
        raise ValueError("statistics: batches must have at least one sample, got none.")
    return _statistics(total)


@jax.jit
def _sums(sae: SAE, params: Any, given: Mapping[str, Any]) -> dict[str, Array]:
    x = given["x"]
    found = sae.run(params, x, given.get("grad"), given.get("target"))
    target = found.units.outside(found.target).astype(jnp.float32)
    guess = found.units.outside(found.reconstruction).astype(jnp.float32)
    error = target - guess
    by_token, by_latent = found.codes.counts()
    inner = jnp.sum(target * guess, axis=-1)
    sizes, guessed = row_norms(target), row_norms(guess)
    both, some = sizes * guessed, sizes != 0
    prompts = x.shape[0] if x.ndim == 3 else 0
    none = jnp.zeros_like(by_latent)
    within, held = (found.codes.prompts_of(prompts), by_latent) if prompts else (none, none)
    sums = {
        "tokens": jnp.asarray(len(target)), "l0": by_token.sum(), "l1": found.codes.total().sum(),
        "mse": jnp.square(error).sum(), "inner": inner.sum(), "square": jnp.square(guess).sum(),
        "cosine": jnp.where(both == 0, 0, inner / jnp.where(both == 0, 1, both)).sum(),
        "ratio": jnp.where(some, guessed / jnp.where(some, sizes, 1), 0).sum(),
        "some": some.sum(), "latents": by_latent, "prompts": within,
        "held": held,
    }  # fmt: skip
    for name, y in {"x": target, "error": error}.items():
        mean = jnp.mean(y, axis=0)
        sums |= {f"mean {name}": mean, f"spread {name}": jnp.square(y - mean).sum(0)}
    return sums


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Sums of both; means and spreads about them by the formula of Chan et al."""
    found = {k: a[k] + b[k] for k in a}
    share = b["tokens"] / found["tokens"]
    for name in ("x", "error"):
        shift = b[f"mean {name}"] - a[f"mean {name}"]
        found[f"mean {name}"] = a[f"mean {name}"] + share * shift
        found[f"spread {name}"] += shift**2 * a["tokens"] * share
    return found


def _statistics(t: dict[str, Any]) -> Statistics:
    n = float(t["tokens"])
    spread = t["spread x"].sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return Statistics(
            int(n), float(t["l0"] / n), float(t["l1"] / n), float(t["mse"] / n),
            float(t["cosine"] / n), float(t["ratio"] / t["some"]),
            float(1 - t["spread error"].sum() / spread), float(t["square"] / t["inner"]),
            t["latents"] / n, np.where(t["prompts"] > 0, t["held"] / t["prompts"], np.nan),
        )  # fmt: skip
