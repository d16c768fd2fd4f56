"""Placement of the latents of an autoencoder over the devices of a mesh."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from .._arguments import checked
from .._tree import is_array


@checked()
def specs(params: Mapping[str, Any], axis: str) -> dict[str, P]:
    """The specs that shard the latents of an autoencoder over one axis of a mesh.

    Encoder columns, decoder rows and parameters of latents are split, b_dec and W_skip are on every
    device. Results equal those on one device: top-k counts are all-reduced, with `sparse=False` no
    weights are gathered.

    Args:
      params: The parameters, or their shapes.
      axis: The name of the axis.

    Example:
      >>> import jax, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(2), sparse=False)
      >>> params = sae.init(4, 8, key=jax.random.key(0))
      >>> tuple(sj.sae.specs(params, "x")["W_enc"])
      (None, 'x')
    """
    for name, p in params.items():
        if not is_array(p):
            raise TypeError(f"specs: params must hold arrays, got {p!r:.80} as {name}.")
    split = {"W_enc": P(None, axis), "W_dec": P(axis, None), "b_dec": P(), "W_skip": P()}
    return {name: split.get(name, P(axis)) for name in params}
