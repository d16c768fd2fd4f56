"""Geometry of dictionaries: coherence, recovery, norms; quasi-orthogonality of codes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from .._arguments import checked
from ._norms import normalized, row_norms
from ._sae import Weights, check_names

Matrix = Shaped[Array | np.ndarray, "h d"]


@checked(block="[1, inf)")
def coherence(W_dec: Matrix, *, block: int = 1024) -> Float[Array, ""]:
    r"""`max_{i != j} |<w_i, w_j>| / (|w_i| |w_j|)` over decoder rows; 0 for a zero row.

    Args:
      W_dec: At least two rows.
      block: Rows compared with all others at a time: memory is `block * h`, never `h * h`.

    Raises:
      ValueError: If there are fewer than two rows.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> round(float(sj.sae.coherence(jnp.array([[1.0, 0.0], [3.0, 4.0]]))), 3)
      0.6
    """
    if W_dec.shape[0] < 2:
        raise ValueError(f"coherence: W_dec must have two rows or more, got shape {W_dec.shape}.")
    return jnp.max(_largest(jnp.asarray(W_dec), jnp.asarray(W_dec), min(block, len(W_dec)), True))


@partial(jax.jit, static_argnums=(2, 3))
def _largest(rows: Array, others: Array, block: int, signless: bool) -> Array:
    """The largest cosine of each row with the others; with itself left out if `signless`."""
    rows, others = normalized(rows), normalized(others)
    count = -(-len(rows) // block)
    padded = jnp.pad(rows, ((0, count * block - len(rows)), (0, 0)))

    def of(i):
        part = lax.dynamic_slice_in_dim(padded, i * block, block)
        cosine = part @ others.T
        if not signless:
            return jnp.max(cosine, axis=-1)
        itself = jnp.arange(len(others)) == (i * block + jnp.arange(block))[:, None]
        return jnp.max(jnp.where(itself, 0, jnp.abs(cosine)), axis=-1)

    return lax.map(of, jnp.arange(count)).ravel()[: len(rows)]


@checked(block="[1, inf)")
def recovery(
    W_dec: Matrix, truth: Shaped[Array | np.ndarray, "m d"], *, block: int = 1024
) -> Float[Array, " m"]:
    r"""The largest cosine of each true feature with a decoder row: dictionary recovery.

    `recovery(...).mean()` is the mean max cosine similarity, `(recovery(...) > 0.9).mean()` the
    share of recovered features.

    Args:
      W_dec: The learned dictionary.
      truth: The true features, or the rows of another dictionary.
      block: As for `coherence`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.recovery(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])).tolist()
      [1.0, 0.0]
    """
    if not len(truth):
        raise ValueError(f"recovery: truth must have one row or more, got shape {truth.shape}.")
    return _largest(jnp.asarray(truth), jnp.asarray(W_dec), min(block, len(truth)), False)


@checked()
def weight_statistics(params: Weights) -> dict[str, Array]:
    """Numbers of each latent: norms of its encoder and decoder, their cosine, its biases.

    Args:
      params: The parameters.

    Returns:
      `encoder_norm`, `decoder_norm`, `cosine` (of an autoencoder with an encoder as wide as its
      decoder), and `b_enc`, `b_gate`, `b_mag`, `threshold` if present, each `(h,)`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"W_enc": jnp.eye(2), "W_dec": 2 * jnp.eye(2), "b_enc": jnp.zeros(2)}
      >>> {k: v.tolist() for k, v in sj.sae.weight_statistics(params).items()}["cosine"]
      [1.0, 1.0]
    """
    check_names(params, "W_dec")
    decoder = jnp.asarray(params["W_dec"])
    encoder = jnp.asarray(params["W_enc"]).T if "W_enc" in params else decoder
    found = {"decoder_norm": row_norms(decoder), "encoder_norm": row_norms(encoder)}
    if encoder.shape == decoder.shape:
        found["cosine"] = jnp.sum(normalized(encoder) * normalized(decoder), axis=-1)
    names = ("b_enc", "b_gate", "b_mag", "threshold")
    return found | {name: jnp.asarray(params[name]) for name in names if name in params}


class ZF(NamedTuple):
    """The norms of inputs and of their codes, for the plot of Z against F."""

    z_norm: Array
    f_norm: Array


@checked()
def zf(
    z: Shaped[Array | np.ndarray, "n d"],
    f: Shaped[Array | np.ndarray, "n h"],
    params: Weights,
) -> ZF:
    r"""`|z|` and `|f~|` with `f~ = (f_i |w_i|, |b_dec|)`: points below the diagonal under-activate.

    If decoder rows are nearly orthogonal, the two norms are nearly equal: `zf_bounds`.

    Args:
      z: Inputs of the autoencoder.
      f: Their features.
      params: With `W_dec`, and `b_dec` if it is not 0.

    Reference:
      Lee et al., 2025 (arXiv 2503.24277).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> found = sj.sae.zf(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 0.0]]), params)
      >>> found.z_norm.tolist(), found.f_norm.tolist()
      ([5.0], [3.0])
    """
    check_names(params, "W_dec")
    if f.shape[1] != len(params["W_dec"]):
        raise ValueError(
            f"zf: f must have the {len(params['W_dec'])} latents of W_dec, got shape {f.shape}."
        )
    scaled = jnp.asarray(f).astype(jnp.float32) * row_norms(jnp.asarray(params["W_dec"]))
    bias = jnp.asarray(params.get("b_dec", jnp.zeros(1)))
    square = jnp.sum(jnp.square(scaled), axis=-1) + jnp.sum(jnp.square(bias.astype(jnp.float32)))
    return ZF(row_norms(jnp.asarray(z)), jnp.sqrt(square))


@checked()
def eps_lbo(
    z: Shaped[Array | np.ndarray, "n d"],
    f: Shaped[Array | np.ndarray, "n h"],
    params: Weights,
) -> Float[Array, " n"]:
    r"""The least coherence that explains the gap of norms, `||z|^2 - |f~|^2| / ((h - 1) |f~|^2)`.

    Args:
      z: Inputs of the autoencoder.
      f: Their features.
      params: As for `zf`.

    Returns:
      One number for each input; infinite where no latent is active: leave these out of medians.

    Reference:
      Lee et al., 2025 (arXiv 2503.24277).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> sj.sae.eps_lbo(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0]]), params).tolist()
      [3.0]
    """
    norms, latents = zf(z, f, params), params["W_dec"].shape[0]
    square = jnp.square(norms.f_norm)
    gap = jnp.abs(jnp.square(norms.z_norm) - square)
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, gap / (max(latents - 1, 1) * safe), jnp.inf)


@checked(latents="[1, inf)", eps="[0, inf)")
def zf_bounds(eps: ArrayLike, latents: int) -> tuple[Array, Array]:
    r"""Bounds of `|f~| / |z|` for coherence eps: `(1 + s)^{-1/2}`, `(1 - s)^{-1/2}`.

    With `s = eps (h - 1)`; they hold for codes that reproduce z exactly.

    Args:
      eps: The coherence.
      latents: h; with a decoder bias other than 0 there are h + 1 vectors.

    Returns:
      The lower bound, and the upper one, infinite where `s >= 1`.

    Reference:
      Lee et al., 2025 (arXiv 2503.24277).

    Example:
      >>> import sparsejax as sj
      >>> [round(float(x), 3) for x in sj.sae.zf_bounds(0.01, 51)]
      [0.816, 1.414]
    """
    s = jnp.asarray(eps, jnp.float32) * (latents - 1)
    upper = jnp.where(s < 1, 1 / jnp.sqrt(jnp.where(s < 1, 1 - s, 1)), jnp.inf)
    return 1 / jnp.sqrt(1 + s), upper


@checked(latents="[1, inf)", bits="(0, inf)", l0="[0, inf)")
def description_length(l0: ArrayLike, latents: int, *, bits: float = 7.0) -> Float[Array, ""]:
    r"""Bits of a code: `l0 (bits + log2 h)`, a value and an index for each active latent.

    Args:
      l0: Active latents per token.
      latents: h.
      bits: Bits of a value.

    Example:
      >>> import sparsejax as sj
      >>> float(sj.sae.description_length(10, 1024))
      170.0
    """
    return jnp.asarray(l0, jnp.float32) * (bits + np.log2(latents))
