"""Dashboards of latents as HTML: top activating examples with token colours, densities."""

import heapq
import html
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import checked
from ._intervene import checked_latents
from ._sae import SAE, Weights

Example = tuple[float, int, list[str], np.ndarray]  # largest feature, number, tokens, features

# Only transparent greys and one colour: readable on light and dark pages. All rules are within the
# page's own element, so that they change nothing else of a notebook.
_STYLE = """
.sj-latents { color-scheme: light dark; margin: 2rem auto; padding: 0 1rem; max-width: 60rem;
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.sj-latents section { border: 1px solid rgba(128,128,128,.3); border-radius: 8px;
  padding: .6rem .9rem; margin: 0 0 1rem; }
.sj-latents h2 { font-size: 15px; margin: 0 0 .4rem; }
.sj-latents small { font-weight: 400; opacity: .7; }
.sj-latents p { margin: .2rem 0; white-space: pre-wrap;
  font: 13px/1.7 ui-monospace, Menlo, monospace; }
.sj-latents b { opacity: .7; font-weight: 400; margin-right: .8rem; }
.sj-latents span { border-radius: 3px; }
.sj-latents svg { display: block; width: 100%; height: 7rem; }
.sj-latents figure { margin: 0 0 1rem; }
.sj-latents figcaption { opacity: .7; font-size: 12px; }
"""


@checked(examples="[1, inf)", window="[1, inf)")
def dashboard(
    sae: SAE,
    params: Weights,
    batches: Iterable[Any],
    latents: Sequence[int],
    *,
    examples: int = 8,
    window: int = 12,
) -> str:
    """A page in HTML of some latents: the texts in which they are most active, token by token.

    The colour of a token is the feature over the largest one of the latent. A histogram shows the
    densities of all latents, and where those of the page lie is in their headings.

    Args:
      sae: The autoencoder.
      params: Its parameters.
      batches: Pairs `(tokens, x)`: for each sequence the list of its tokens as text, and
        activations `(sequences, length, d)`; tokens of padding are left off the lists.
      latents: Indices of latents.
      examples: Sequences per latent, those with the largest features.
      window: Tokens shown on each side of the largest feature.

    Returns:
      The page; write it to a file that ends in .html.

    Raises:
      ValueError: If there is no batch, a list of tokens is longer than its activations, features
        are NaN, or an index is out of range.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> batches = [([["a", " <b>"]], jnp.array([[[1.0, 0.0], [0.0, 2.0]]]))]
      >>> page = sj.sae.dashboard(sae, params, batches, [1])
      >>> "&lt;b&gt;" in page, "Latent 1" in page
      (True, True)
    """
    index = checked_latents("dashboard: latents", latents, params)
    best: list[list[Example]] = [[] for _ in index]
    counts, tokens, number = np.zeros(params["W_dec"].shape[0], int), 0, itertools.count()
    for batch, (texts, x) in enumerate(map(_pair, batches)):
        x = jnp.asarray(x)
        if len(texts) != len(x) or any(len(t) > x.shape[1] for t in texts):
            raise ValueError(
                f"dashboard: batches must hold a list of at most {x.shape[1]} tokens for each of "
                f"{len(x)} sequences."
            )
        if not len(x):
            continue
        real = np.arange(x.shape[1]) < np.array([len(t) for t in texts])[:, None]
        found, active = _features(sae, dict(params), x, index, real)
        if np.isnan(found).any():
            raise ValueError(
                f"dashboard: features of batch {batch} are NaN; check its activations of shape "
                f"{x.shape}, and params."
            )
        counts, tokens = counts + np.asarray(active, np.int64), tokens + int(real.sum())
        for text, features in zip(texts, np.asarray(found, np.float32)):
            _keep(best, text, features[: len(text)], examples, number)
    if not tokens:
        raise ValueError("dashboard: batches must have at least one token, got none.")
    density = counts / tokens
    parts = [_latent(i, float(density[i]), kept, window) for i, kept in zip(index.tolist(), best)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Latents</title>'
        f'</head><body><div class="sj-latents"><style>{_STYLE}</style>'
        f"{_histogram(density)}{''.join(parts)}</div></body></html>\n"
    )


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or np.ndim(batch[1]) != 3:
        raise ValueError(
            "dashboard: batches must hold pairs of tokens and activations (sequences, length, d)."
        )
    return batch[0], batch[1]


@jax.jit
def _features(sae: SAE, params: Any, x: Any, index: Any, real: Any) -> tuple[Any, Any]:
    """The features of some latents `(sequences, length, l)`; active tokens of each latent."""
    found = sae.run(params, x)
    codes = found.codes.where(real.ravel())
    return codes.at(index).reshape(*x.shape[:2], -1), codes.counts()[1]


def _keep(
    best: list[list[Example]], text: list[str], features: np.ndarray, examples: int, number: Any
) -> None:
    """Adds a sequence to those of each latent, and drops the one of the smallest feature."""
    if not len(text):
        return
    for kept, f in zip(best, features.T):
        if (largest := float(np.abs(f).max())) > 0:
            heapq.heappush(kept, (largest, -next(number), list(text), f))
            if len(kept) > examples:
                heapq.heappop(kept)


def _latent(latent: int, density: float, kept: list[Example], window: int) -> str:
    shown = sorted(kept, key=lambda x: x[:2], reverse=True)
    top = shown[0][0] if shown else 1.0
    lines = "".join(_line(text, f, top, window) for _, _, text, f in shown)
    return (
        f"<section><h2>Latent {latent} <small>active in {density:.3%} of tokens, largest feature "
        f"{top if shown else 0:.3g}</small></h2>{lines or 'No token activates it.'}</section>"
    )


def _line(text: list[str], f: np.ndarray, top: float, window: int) -> str:
    at = int(np.abs(f).argmax())
    first, last = max(at - window, 0), at + window + 1
    spans = "".join(
        f'<span style="background:rgba(217,130,43,{abs(value) / top:.2f})" '
        f'title="{value:.3g}">{html.escape(token)}</span>'
        for token, value in zip(text[first:last], f[first:last])
    )
    return f"<p><b>{f[at]:.3g}</b>{spans}</p>"


def _histogram(density: np.ndarray, bins: int = 40) -> str:
    """The densities of all latents on a logarithmic axis, as SVG."""
    live = density[density > 0]
    counts, edges = np.histogram(np.log10(live), bins) if len(live) else (np.zeros(bins), [0, 0])
    tallest = max(int(np.max(counts)), 1)
    bars = "".join(
        f'<rect x="{i}" y="{100 - 100 * n / tallest:.1f}" width="0.9" '
        f'height="{100 * n / tallest:.1f}" fill="#2a78b5"/>'
        for i, n in enumerate(counts)
    )
    return (
        f'<figure><svg viewBox="0 0 {bins} 100" preserveAspectRatio="none">{bars}</svg>'
        f"<figcaption>Densities of {len(density)} latents, log10 from {edges[0]:.2f} to "
        f"{edges[-1]:.2f}; {len(density) - len(live)} are dead.</figcaption></figure>"
    )
