"""ReMoE: an l1 loss of ReLU routers that balances experts, with a factor that meets a sparsity."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ._locality import AdaptiveFactor, FactorState


@checked(used="(0, inf)")
def balanced_l1(active: Shaped[Array | np.ndarray, "t e"], used: float | int) -> Float[Array, ""]:
    r"""The l1 norm of router outputs, weighted by how often each expert is used.

    `E / (k T^2) sum_e (sum_t A_te) |{t : A_te > 0}|`: for k active experts of each token and an
    equal load the weights are 1, and the loss is the mean over tokens of `sum_e A_te`.

    Args:
      active: `Routed.active` of T tokens, of `ReLURouter(norm="none")`.
      used: k, the number of experts that a token should use.

    Returns:
      The loss; gradients flow through `A` and not through the counts.

    Raises:
      ValueError: If there are no tokens.

    Reference:
      Wang et al., ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing, 2024 (arXiv
      2412.14711).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import activation_sparsity
      >>> float(activation_sparsity.balanced_l1(jnp.array([[2.0, 0.0], [0.0, 2.0]]), 1))
      2.0
    """
    active = jnp.asarray(active).astype(jnp.float32)
    tokens, experts = active.shape
    if not tokens:
        raise ValueError("balanced_l1: active must hold at least one token.")
    load = jnp.sum(active > 0, axis=0).astype(jnp.float32)
    return experts / (used * tokens**2) * jnp.sum(jnp.sum(active, axis=0) * load)


@checked(sparsity="[0, 1]", initial="(0, inf)", growth="(1, inf)")
def target_factor(sparsity: float, initial: float = 1e-8, growth: float = 1.2) -> AdaptiveFactor:
    r"""The factor of a loss that grows while a sparsity is below its target, and falls above it.

    After each step the factor is multiplied by `growth` if the measured sparsity is below the
    target, divided by it if above.

    Args:
      sparsity: The target, the fraction of experts that a token does not use, `1 - k / E`.
      initial: The first factor.
      growth: Above 1.

    Returns:
      An `AdaptiveFactor` whose `update(state, measured)` takes the sparsity of the step, and
      returns the factor of the step.

    Reference:
      Wang et al., ReMoE, 2024 (arXiv 2412.14711).

    Example:
      >>> from sparsejax.contrib import activation_sparsity
      >>> factor = activation_sparsity.target_factor(0.75, 1.0, 2.0)
      >>> state, values = factor.init(), []
      >>> for measured in (0.5, 0.5, 0.9, 0.75):
      ...     value, state = factor.update(state, measured)
      ...     values.append(float(value))
      >>> values
      [1.0, 2.0, 4.0, 2.0]
    """

    def init() -> FactorState:
        zero = jnp.zeros((), jnp.float32)
        return FactorState(jnp.zeros((), jnp.int32), zero, zero, zero + initial, zero + 1)

    def update(state, measured):
        moved = state.base * jnp.power(growth, jnp.sign(sparsity - measured))
        return state.base, state._replace(step=state.step + 1, base=moved.astype(jnp.float32))

    return AdaptiveFactor(init, update)
