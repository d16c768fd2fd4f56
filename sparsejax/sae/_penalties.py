"""Sparsity penalties of sparse autoencoders."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._tree import register
from ._loss import STATIC, Loss
from ._norms import row_norms
from ._numbers import check_not_negative, check_positive
from ._pass import Pass


def ramp(found: Pass, warmup: Any) -> Array:
    """1, or in the first steps the fraction of the warm-up that is over."""
    step = 0 if found.state is None else found.state.step
    return jnp.clip((step + 1) / jnp.maximum(warmup, 1), 0, 1)


@register
@dataclass(frozen=True)
class L1(Loss):
    r"""`strength * mean_n sum_i f_i |w_i|`: the l1 norm of the features.

    For `Gated` the gates `max(pi, 0)` replace the features. Without `decoder_norm` the decoder must
    be constrained (`sj.optim.unit_norm`), or features shrink while its rows grow.

    Args:
      strength: lambda.
      decoder_norm: Whether features are multiplied by the norms of their decoder rows.
      p: Exponent of `|f_i|^p`, above 0.
      warmup: Steps in which the strength rises linearly from 0.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.ReLU(), losses=(sj.sae.L1(0.5),))
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> float(sae.loss(params, jnp.array([[2.0, 1.0]]), sae.state(params))[0])
      1.5
    """

    strength: Any
    decoder_norm: bool = field(default=True, metadata=STATIC)
    p: float = field(default=1.0, metadata=STATIC)
    warmup: Any = 0

    def __post_init__(self):
        check_not_negative("L1", strength=self.strength, warmup=self.warmup)
        check_positive("L1", p=self.p)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The penalty."""
        f = jnp.abs(found.penalized.astype(found.residual.dtype))
        f = f * row_norms(found.params["W_dec"]) if self.decoder_norm else f
        return self.strength * ramp(found, self.warmup) * power(f, self.p)


def power(f: Array, p: Any) -> Array:
    """`mean_n sum_i f_i^p`, whose gradient at 0 is 0."""
    if isinstance(p, float | int) and p == 1:
        return jnp.mean(jnp.sum(f, axis=-1))
    positive = f > 0
    return jnp.mean(jnp.sum(jnp.where(positive, jnp.where(positive, f, 1.0) ** p, 0), axis=-1))


class Annealing(NamedTuple):
    """The coefficient of `AnnealedP`, and its last losses at this and at the next exponent."""

    coefficient: Array
    now: Array
    next: Array


@register
@dataclass(frozen=True)
class AnnealedP(Loss):
    r"""`coefficient * mean_n sum_i f_i^p` with an exponent p that falls from 1 to `end`.

    p changes `changes` times, at equal distances from step `begin` up to `steps`. Each time the
    coefficient is multiplied by the mean loss at the old p over that at the new one in the last
    `window` steps, so that the penalty is continuous.

    Args:
      strength: The first coefficient.
      steps: The step at which p reaches `end`.
      begin: The last step with p = 1.
      end: The last p.
      changes: Number of changes.
      window: Number of steps that are averaged.

    Reference:
      Karvonen et al., Measuring Progress in Dictionary Learning for Language Model
      Interpretability with Board Game Models, 2024 (arXiv 2408.00113).

    Example:
      >>> import sparsejax as sj
      >>> loss = sj.sae.AnnealedP(0.1, steps=100, end=0.5, changes=5)
      >>> [round(float(loss.exponent(t)), 1) for t in (0, 20, 100)]
      [1.0, 0.9, 0.5]
    """

    strength: Any
    steps: Any
    begin: Any = 0
    end: Any = 0.2
    changes: int = field(default=10, metadata=STATIC)
    window: int = field(default=10, metadata=STATIC)

    def __post_init__(self):
        check_not_negative("AnnealedP", strength=self.strength, begin=self.begin)
        check_positive("AnnealedP", steps=self.steps, end=self.end)
        for name in ("changes", "window"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"AnnealedP: {name} must be an integer of at least 1.")

    def exponent(self, step: Any) -> Array:
        """p at a step."""
        return 1 + (self.end - 1) * self._level(step) / self.changes

    def _level(self, step: Any) -> Array:
        """The number of changes up to a step."""
        done = (jnp.asarray(step) - self.begin) * self.changes // (self.steps - self.begin)
        return jnp.clip(done, 0, self.changes).astype(jnp.int32)

    def init(self) -> PyTree:
        """The strength, and empty windows."""
        empty = jnp.full(self.window, jnp.nan)
        return Annealing(jnp.asarray(self.strength, jnp.float32), empty, empty)

    def __call__(self, found: Pass, own: Annealing) -> Array:
        """The penalty."""
        return own.coefficient * power(self._sizes(found), self.exponent(found.state.step))

    def update(self, found: Pass, own: Annealing) -> Annealing:
        """The windows, and the coefficient of the next step."""
        step, f = found.state.step, self._sizes(found)
        level = self._level(step)
        after = 1 + (self.end - 1) * jnp.minimum(level + 1, self.changes) / self.changes
        now = jnp.roll(own.now, 1).at[0].set(power(f, self.exponent(step)))
        following = jnp.roll(own.next, 1).at[0].set(power(f, after))
        ratio = jnp.nanmean(now) / jnp.nanmean(following)
        changes = (self._level(step + 1) > level) & jnp.isfinite(ratio)
        coefficient = jnp.where(changes, own.coefficient * ratio, own.coefficient)
        # Losses at exponents of the past say nothing about the next ones.
        kept = jnp.where(changes, jnp.nan, jnp.stack([now, following]))
        return Annealing(coefficient, kept[0], kept[1])

    def _sizes(self, found: Pass) -> Array:
        return jnp.abs(found.penalized.astype(found.residual.dtype))


@register
@dataclass(frozen=True)
class L0(Loss):
    r"""`strength * mean_n sum_i 1[z_i > theta_i]` for `JumpReLU`, or its smooth form.

    "step" has the straight-through gradient of the threshold, "tanh" is
    `sum_i tanh(4 f_i |w_i|)`. Under Adam the strength of the step form acts below about 0.1
    only and saturates above; `TargetL0` sets the number of active latents itself.

    Args:
      strength: lambda.
      kind: "step" or "tanh".
      warmup: Steps in which the strength rises linearly from 0.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.JumpReLU(), losses=(sj.sae.L0(0.5),))
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2),
      ...           "threshold": jnp.full(2, 0.5)}
      >>> float(sae.loss(params, jnp.array([[2.0, 1.0]]), sae.state(params))[0])
      1.0
    """

    strength: Any
    kind: Literal["step", "tanh"] = field(default="step", metadata=STATIC)
    warmup: Any = 0

    def __post_init__(self):
        check_not_negative("L0", strength=self.strength, warmup=self.warmup)
        if self.kind not in ("step", "tanh"):
            raise ValueError(f'L0: kind must be "step" or "tanh", got {self.kind!r}.')

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The penalty."""
        wide = found.residual.dtype
        if self.kind == "step":
            active = found.firing.astype(wide)
        else:
            norms = row_norms(found.params["W_dec"])
            active = jnp.tanh(4 * found.features.astype(wide) * norms)
        return self.strength * ramp(found, self.warmup) * jnp.mean(jnp.sum(active, axis=-1))


@register
@dataclass(frozen=True)
class TargetL0(Loss):
    r"""`strength * (L0 / target - 1)^2`: the mean number of active latents follows a target.

    L0 is `mean_n sum_i 1[z_i > theta_i]` with the straight-through gradient of `JumpReLU`. The
    default sparsity loss for it: its knob is the number of active latents, which follows closely
    with `JumpReLU(input_gradient=True)`.

    Args:
      target: Active latents per token.
      strength: Its weight.
      warmup: Steps in which the strength rises linearly from 0.

    Reference:
      Rajamanoharan et al., 2024 (arXiv 2407.14435).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.JumpReLU(), losses=(sj.sae.TargetL0(1.0),))
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2),
      ...           "threshold": jnp.full(2, 0.5)}
      >>> float(sae.loss(params, jnp.array([[2.0, 1.0]]), sae.state(params))[0])
      1.0
    """

    target: Any
    strength: Any = 1.0
    warmup: Any = 0

    def __post_init__(self):
        check_positive("TargetL0", target=self.target)
        check_not_negative("TargetL0", strength=self.strength, warmup=self.warmup)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The penalty."""
        active = jnp.mean(jnp.sum(found.firing.astype(found.residual.dtype), axis=-1))
        weight = self.strength * ramp(found, self.warmup)
        return weight * jnp.square(active / self.target - 1)


@register
@dataclass(frozen=True)
class PreActivation(Loss):
    r"""`strength * mean_n sum_{i dead} max(theta_i - z_i, 0) |w_i|`: revives dead latents.

    Args:
      strength: Its weight.
      dead_after: Steps without activity after which a latent is dead.

    Reference:
      Conerly et al., Dictionary Learning Optimization Techniques, Transformer Circuits, 2025.

    Example:
      >>> import sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.JumpReLU(), losses=(sj.sae.PreActivation(dead_after=100),))
    """

    strength: Any = 3e-6
    dead_after: Any = 1000

    def __post_init__(self):
        check_not_negative("PreActivation", strength=self.strength, dead_after=self.dead_after)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The penalty."""
        if "threshold" not in found.params:
            raise ValueError("PreActivation: params must hold threshold; use JumpReLU.")
        dead = found.state.silent >= self.dead_after
        wide = found.residual.dtype
        below = jax.nn.relu(found.params["threshold"] - found.z.astype(wide))
        norms = row_norms(found.params["W_dec"])
        return self.strength * jnp.mean(jnp.sum(jnp.where(dead, below * norms, 0), axis=-1))
