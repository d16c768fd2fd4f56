"""Features of a batch, all of them or a few of each token, with the same methods."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._products import combined


class Dense(NamedTuple):
    """All features, `(n, h)`."""

    features: Array

    def decoded(self, W_dec: Array) -> Array:
        """`f W_dec`."""
        return self.features @ W_dec

    def decoded_part(self, W_dec: Array, first: int, last: int) -> Array:
        """The part of the latents `first` up to `last`."""
        return self.features[:, first:last] @ W_dec[first:last]

    def fired(self) -> Array:
        """Which latents are active in any token."""
        return (self.features != 0).any(0)

    def dense(self) -> Array:
        """All features."""
        return self.features

    def counts(self) -> tuple[Array, Array]:
        """The number of active latents of each token, and of active tokens of each latent."""
        active = self.features != 0
        return active.sum(-1), active.sum(0)

    def prompts_of(self, prompts: int) -> Array:
        """The number of prompts, of equal lengths, in which each latent is active."""
        return (self.features != 0).reshape(prompts, -1, self.features.shape[-1]).any(1).sum(0)

    def total(self) -> Array:
        """The l1 norm of each token."""
        return jnp.abs(self.features).sum(-1)

    def at(self, latents: Array) -> Array:
        """The features of some latents, `(n, l)`."""
        return self.features[:, latents]

    def pairs(self) -> tuple[Array, Array]:
        """All indices of each token, and the features."""
        every = jnp.arange(self.features.shape[-1], dtype=jnp.int32)
        return jnp.broadcast_to(every, self.features.shape), self.features

    def where(self, tokens: Array) -> "Dense":
        """The features of some tokens, 0 for the others."""
        return Dense(jnp.where(tokens[:, None], self.features, 0))


class Sparse(NamedTuple):
    """The features at some indices of each token, `(n, k)`, of `latents`."""

    indices: Array
    values: Array
    latents: int

    def decoded(self, W_dec: Array) -> Array:
        """`f W_dec` from k rows a token."""
        return combined(self.indices, self.values, W_dec)

    def decoded_part(self, W_dec: Array, first: int, last: int) -> Array:
        """The part of the latents `first` up to `last`."""
        inside = (self.indices >= first) & (self.indices < last)
        return combined(self.indices, jnp.where(inside, self.values, 0), W_dec)

    def fired(self) -> Array:
        """Which latents are active in any token."""
        none = jnp.zeros(self.latents, bool)
        return none.at[self.indices].max(self.values != 0)

    def dense(self) -> Array:
        """All features, zeros in between."""
        rows = jnp.arange(len(self.indices))[:, None]
        zeros = jnp.zeros((len(self.indices), self.latents), self.values.dtype)
        return zeros.at[rows, self.indices].add(self.values)

    def counts(self) -> tuple[Array, Array]:
        """The number of active latents of each token, and of active tokens of each latent."""
        # Matching pursuit may select a latent twice: its copies are neighbours once sorted.
        order = jnp.sort(jnp.where(self.values != 0, self.indices, self.latents), axis=-1)
        again = jnp.pad(order[:, 1:] == order[:, :-1], ((0, 0), (1, 0)))
        active = (order < self.latents) & ~again
        by_latent = jnp.zeros(self.latents, jnp.int32).at[order].add(active, mode="drop")
        return active.sum(-1), by_latent

    def prompts_of(self, prompts: int) -> Array:
        """The number of prompts, of equal lengths, in which each latent is active."""
        rows = jnp.arange(len(self.indices))[:, None] // (len(self.indices) // prompts)
        none = jnp.zeros((prompts, self.latents), bool)
        return none.at[rows, self.indices].max(self.values != 0).sum(0)

    def total(self) -> Array:
        """The l1 norm of each token."""
        return jnp.abs(self.values).sum(-1)

    def at(self, latents: Array) -> Array:
        """The features of some latents, `(n, l)`."""
        same = self.indices[:, :, None] == latents
        return jnp.sum(jnp.where(same, self.values[:, :, None], 0), axis=1)

    def pairs(self) -> tuple[Array, Array]:
        """Indices of each token, and features."""
        return self.indices, self.values

    def where(self, tokens: Array) -> "Sparse":
        """The features of some tokens, 0 for the others."""
        return self._replace(values=jnp.where(tokens[:, None], self.values, 0))
