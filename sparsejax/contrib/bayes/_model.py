"""Models that contain Gaussian weights: their divergence, draws, predictions and masks."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from ..._arguments import checked, named_masks
from ..._tree import check_known
from ._kernel import GaussianKernel


@checked()
def kl(model: nnx.Module) -> Float[Array, ""]:
    r"""Divergence of the posterior from the prior: the sum of `KL(q || p)` over all live weights.

    Args:
      model: A module with `GaussianKernel`s, such as `BayesLinear`.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: If the model has no Gaussian weights.

    Reference:
      Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, 2024
      (arXiv 2402.11025).

    Example:
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesLinear(4, 2, sigma=1.0, kernel_init=nnx.initializers.zeros,
      ...                           rngs=nnx.Rngs(0))
      >>> abs(float(bayes.kl(layer))) < 1e-6
      True
    """
    return jnp.sum(jnp.stack([kernel.kl() for kernel in kernels_of(model).values()]))


@checked()
def draw(model: nnx.Module, *, key: Key[Array, ""]) -> nnx.Module:
    """Draws a network from the posterior: a copy whose mean weights are a sample.

    Args:
      model: A module with weights of class `GaussianKernel`; it is unchanged.
      key: A key from `jax.random.key`.

    Returns:
      A module; called without a key, it computes with the drawn weights.

    Raises:
      ValueError: If the model has no Gaussian weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesLinear(4, 2, rngs=nnx.Rngs(0))
      >>> bayes.draw(layer, key=jax.random.key(0))(jnp.ones((3, 4))).shape
      (3, 2)
    """
    model = nnx.clone(model)
    for i, kernel in enumerate(kernels_of(model).values()):
        kernel.mu.set_value(kernel.sample(jax.random.fold_in(key, i)))
    return model


@checked(samples="[1, inf)")
def predict(
    model: nnx.Module, x: Float[Array, "n ..."], *, samples: int = 16, key: Key[Array, ""]
) -> Float[Array, "n classes"]:
    r"""Predictive probabilities: the mean of `softmax(f(x, W))` over draws W from the posterior.

    Args:
      model: A module, called as `model(x)`, that returns logits.
      x: Inputs.
      samples: Number of draws.
      key: A key from `jax.random.key`.

    Returns:
      Probabilities, for example for `sj.metrics.expected_calibration_error`.

    Raises:
      ValueError: If the model has no Gaussian weights, or `samples` is less than 1.

    Reference:
      Li et al., 2024 (arXiv 2402.11025).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesLinear(4, 2, rngs=nnx.Rngs(0))
      >>> p = bayes.predict(layer, jnp.ones((3, 4)), key=jax.random.key(0))
      >>> jnp.allclose(p.sum(-1), 1).item()
      True
    """
    graph, state = nnx.split(model)
    return _predict(graph, samples, state, x, key)


@partial(jax.jit, static_argnums=(0, 1))
def _predict(graph, samples: int, state, x, key):
    def probabilities(key):
        return jax.nn.softmax(draw(nnx.merge(graph, state), key=key)(x), -1)

    # One draw at a time: the memory of a forward pass does not grow with the samples.
    return jnp.mean(jax.lax.map(probabilities, jax.random.split(key, samples)), 0)


@checked()
def set_masks(model: nnx.Module, masks: PyTree) -> nnx.Module:
    """A copy of a model whose Gaussian weights exist on given masks.

    Args:
      model: A module with weights of class `GaussianKernel`; it is unchanged.
      masks: A tree of masks of the means, looked up by path (`fc/kernel/mu`), such as
        `sj.get_masks(opt_state)`. Kernels without one keep their mask.

    Returns:
      A module; its means are 0 off the masks.

    Raises:
      ValueError: If a mask has another shape than its means, or belongs to none.
      TypeError: If a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import bayes
      >>> layer = bayes.BayesLinear(2, 2, rngs=nnx.Rngs(0))
      >>> sparse = bayes.set_masks(layer, {"kernel": {"mu": jnp.eye(2, dtype=bool)}})
      >>> int((sparse.kernel.std() > 0).sum())
      2
    """
    model = nnx.clone(model)
    by_name = named_masks("set_masks", masks)
    kernels = {f"{path}mu": kernel for path, kernel in kernels_of(model).items()}
    check_known(list(by_name), kernels, "set_masks")
    for name, mask in by_name.items():
        kernel = kernels[name]
        if mask.shape != kernel.mu.shape:
            raise ValueError(
                f"set_masks: {name} has shape {kernel.mu.shape} and its mask {mask.shape}; masks "
                "must be made for this model."
            )
        kernel.mask.set_value(mask)
        kernel.mu.set_value(kernel.mean())  # not jnp.where, whose gradient would not be dense
    return model


def kernels_of(model: nnx.Module) -> dict[str, GaussianKernel]:
    """The Gaussian weights by the path of their parameters, `fc/kernel/`."""
    found = {
        "".join(f"{part}/" for part in path): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, GaussianKernel)
    }
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has no Gaussian weights; build it from "
            "bayes.BayesLinear or bayes.BayesConv."
        )
    return found
