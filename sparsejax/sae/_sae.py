"""The sparse autoencoder: an activation, losses and a constraint over plain parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from .._arguments import checked
from .._tree import is_array, register
from ._activation import Activation, Context
from ._codes import Dense, Sparse
from ._init import geometric_median, unit_rows
from ._loss import Loss, Reconstruction
from ._normalize import UNITS, Units
from ._norms import row_norms
from ._pass import Pass
from ._products import sampled

Params = dict[str, Array]
Weights = Mapping[str, Shaped[Array | np.ndarray, "..."]]
Samples = Shaped[Array | np.ndarray, "*n d"]
STATIC: dict[str, Any] = dict(static=True)
# Latents per active one from which a few decoder rows are read faster than all.
_SPARSE = 16


class State(NamedTuple):
    """The values that training keeps in addition to the parameters.

    Attributes:
      step: Number of finished steps.
      silent: `(h,)`, for each latent the number of steps since it was last active.
      threshold: The running threshold of `BatchTopK`, 0 for other activations.
      losses: The states of the losses that have one.
      loss: The loss of the last step.
    """

    step: Int[Array, ""]
    silent: Int[Array, " h"]
    threshold: Float[Array, ""]
    losses: PyTree
    loss: Float[Array, ""]


@register
@dataclass(frozen=True)
class SAE:
    r"""A sparse autoencoder: `f = act((x - b_dec) W_enc + b_enc)` and `xhat = f W_dec + b_dec`.

    A frozen value without weights: parameters are a dict of arrays under the names of SAELens,
    `W_enc (d, h)`, `W_dec (h, d)`, `b_dec (d,)` and those of the activation. All methods are pure;
    numbers (k, strengths, bandwidths) are data, so that jit, vmap and scan run over them.

    Args:
      activation: For example `TopK(32)`, `ReLU()` or `JumpReLU()`.
      losses: Losses in addition to the reconstruction, for example `(AuxK(),)`.
      constraint: Wraps the optimizer of `train`, for example `sj.optim.unit_norm`, which keeps
        decoder rows at norm 1; None for none.
      reconstruction: The loss of the reconstruction; `Nested` for a Matryoshka autoencoder.
      normalize: Normalisation of each sample; losses are on the normalised scale and outputs on the
        original one. "constant_norm_rescale" has norm sqrt(d), "layer_norm" mean 0 and standard
        deviation 1; "expected_average_only_in" has no effect: see `expected_scale`. Of a
        transcoder only the inputs are normalised, as in SAELens.
      center: Whether b_dec is subtracted from the input; None does so unless it is a transcoder.
      transcoder: Whether it maps the input of a module to its output, which is then the `target` of
        batches: `splice` and `ablate` read the input of the module.
      rescale: Whether z is multiplied by the norm of its decoder row, and f divided by it in
        decoding, so that norms are irrelevant to the selection of top-k latents.
      sparse: Whether decoding, and all gradients, read only the active latents of each token; None
        does so if the activation has a `capacity` and it is at most h / 16. On a mesh with sharded
        latents pass False, which gathers no weights.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(2), losses=(sj.sae.AuxK(),))
      >>> params = sae.init(4, 16, key=jax.random.key(0))
      >>> f = sae.encode(params, jnp.ones((3, 4)))
      >>> f.shape, int((f != 0).sum(-1).max()), sae(params, jnp.ones((3, 4))).shape
      ((3, 16), 2, (3, 4))
    """

    activation: Activation
    losses: tuple[Loss, ...] = ()
    constraint: Callable[[Any], optax.GradientTransformation] | None = field(
        default=None, metadata=STATIC
    )
    reconstruction: Loss = field(default_factory=Reconstruction)
    normalize: Literal[
        "none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"
    ] = field(default="none", metadata=STATIC)
    center: bool | None = field(default=None, metadata=STATIC)
    transcoder: bool = field(default=False, metadata=STATIC)
    rescale: bool = field(default=False, metadata=STATIC)
    sparse: bool | None = field(default=None, metadata=STATIC)

    def __post_init__(self):
        if self.center is None:
            object.__setattr__(self, "center", not self.transcoder)
        if self.center and self.transcoder:
            raise ValueError(
                "SAE: b_dec is not subtracted from the input of a transcoder, got center=True."
            )
        if self.normalize not in UNITS:
            raise ValueError(
                f"SAE: normalize must be one of {', '.join(UNITS)}, got {self.normalize!r}."
            )
        if self.constraint is not None and not callable(self.constraint):
            raise TypeError(
                f"SAE: constraint must be a function of an optimizer, got {self.constraint!r}; "
                "sj.optim.unit_norm for example."
            )

    @checked(width="[1, inf)", latents="[1, inf)", decoder_norm="(0, inf)", output="[1, inf)")
    def init(
        self,
        width: int,
        latents: int,
        *,
        key: Key[Array, ""],
        samples: Shaped[Array | np.ndarray, "n d"] | None = None,
        decoder_norm: float = 1.0,
        output: int | None = None,
        skip: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> Params:
        r"""Initial parameters: decoder rows of random direction, and the encoder its transpose.

        Args:
          width: d, the width of the input.
          latents: h.
          key: A key made by `jax.random.key`.
          samples: A batch, of whose normalised samples b_dec becomes the geometric median, for a
            transcoder one of targets; None for 0.
          decoder_norm: The norm of the decoder rows: 1, or 0.1 as in SAELens.
          output: The width of the target of a transcoder; None for d.
          skip: Whether to add W_skip `(output, d)`, at 0: the linear path of a skip transcoder.
          dtype: The dtype of all but the thresholds of `JumpReLU`.

        Raises:
          ValueError: If a size is not positive, the activation keeps more latents than there are,
            samples have another width, or `output` or `skip` is given without
            `SAE(..., transcoder=True)`.
          TypeError: If the activation is none, or the losses are not a tuple of losses.
        """
        out = width if output is None else output
        self._check_parts(latents)
        self._check_transcoder(width, out, skip)
        first, second = jax.random.split(key)
        W_dec = unit_rows(first, latents, out, decoder_norm, dtype)
        bias = jnp.zeros(out, dtype)
        if samples is not None:
            samples = jnp.asarray(samples)
            if samples.shape[1] != out:
                raise ValueError(
                    f"SAE.init: samples must be of what is reconstructed, of width {out}, got "
                    f"shape {samples.shape}."
                )
            bias = geometric_median(self.output_units(samples).inside(samples)).astype(dtype)
        params = {"W_dec": W_dec, "b_dec": bias, **self.activation.params(latents, dtype)}
        if not self.activation.tied:
            other = unit_rows(second, latents, width, decoder_norm, dtype)
            params["W_enc"] = (other if self.transcoder else W_dec).T
        return params | ({"W_skip": jnp.zeros((out, width), dtype)} if skip else {})

    def _check_parts(self, latents: int) -> None:
        # Not at construction: trees such as in_axes of vmap hold other things in these places.
        if not isinstance(self.activation, Activation):
            raise TypeError(
                f"SAE: activation must be one such as sj.sae.TopK(32), got {self.activation!r}."
            )
        if not (isinstance(self.losses, tuple) and all(isinstance(x, Loss) for x in self.losses)):
            raise TypeError(
                "SAE: losses must be a tuple of losses such as (sj.sae.AuxK(),), got "
                f"{self.losses!r}."
            )
        if (self.activation.capacity or 0) > latents:
            raise ValueError(
                f"SAE.init: {self.activation} keeps more than the {latents} latents; give more "
                "latents or a smaller k."
            )

    def _check_transcoder(self, width: int, out: int, skip: bool) -> None:
        if (out != width or skip) and not self.transcoder:
            raise ValueError(
                f"SAE.init: output={out} and skip={skip} make a transcoder of inputs of width "
                f"{width}; pass SAE(..., transcoder=True)."
            )

    def state(self, params: Weights) -> State:
        """The state before training."""
        zero, latents = jnp.zeros(()), params["W_dec"].shape[0]
        own = tuple(loss.init() for loss in (self.reconstruction, *self.losses))
        step, silent = jnp.zeros((), jnp.int32), jnp.zeros(latents, jnp.int32)
        return State(step, silent, zero, own, zero)

    @checked()
    def encode(
        self, params: Weights, x: Samples, grad: Samples | None = None
    ) -> Float[Array, "*n h"]:
        """The features of samples.

        Args:
          params: The parameters.
          x: Samples along any leading axes.
          grad: The gradient of the model's loss in x, for `GradientTopK`.

        Raises:
          ValueError: If the width of x is not that of the parameters, or the activation needs
            gradients and none are given.
        """
        return self.run(params, x, grad).dense().reshape(*x.shape[:-1], len(params["W_dec"]))

    @checked()
    def codes(
        self, params: Weights, x: Samples, grad: Samples | None = None
    ) -> tuple[Int[Array, "*n k"], Float[Array, "*n k"]]:
        """The features of samples as `(indices, values)`, for activations with a `capacity`.

        Unused positions have the value 0; `decode(indices, values, W_dec)` combines them.

        Raises:
          ValueError: If the activation has no capacity, or as `encode`.
        """
        if self.activation.capacity is None:
            raise ValueError(
                f"SAE.codes: activation must have a capacity, got {self.activation}; give most=, "
                "or use SAE.encode."
            )
        found = replace(self, sparse=True).run(params, x, grad).codes
        indices, values = found.pairs()
        shape = *x.shape[:-1], indices.shape[-1]
        return indices.reshape(shape), values.reshape(shape)

    @checked()
    def decode(
        self, params: Weights, features: Shaped[Array | np.ndarray, "*n h"]
    ) -> Float[Array, "*n d"]:
        """`f W_dec + b_dec` of features, on the normalised scale."""
        check_names(params)
        if features.shape[-1:] != params["W_dec"].shape[:1]:
            raise ValueError(
                f"SAE.decode: features must have the {params['W_dec'].shape[0]} latents of the "
                f"parameters, got shape {features.shape}."
            )
        return jnp.asarray(features) @ self.rows(params) + params["b_dec"]

    @checked()
    def __call__(
        self, params: Weights, x: Samples, grad: Samples | None = None
    ) -> Float[Array, "*n d_out"]:
        """The reconstruction of samples; arguments as for `encode`."""
        found = self.run(params, x, grad)
        out = found.units.outside(found.reconstruction)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def loss(self, params: Params, batch: Any, state: State) -> tuple[Array, State]:
        """The sum of all losses of a batch, and the state after it.

        Args:
          params: The parameters.
          batch: Samples `(n, d)`, or a dict of them with `x`, and `grad` for `GradientTopK` or
            `target` for a transcoder.
          state: The state, at first `sae.state(params)`.
        """
        given = batch if isinstance(batch, Mapping) else {"x": batch}
        if not is_array(given.get("x")) or not given["x"].ndim:
            raise ValueError("SAE.loss: batch must be an array (n, d), or a dict with one as x.")
        found = self.run(params, given["x"], given.get("grad"), given.get("target"), state)
        terms = (self.reconstruction, *self.losses)
        losses = [term(found, own) for term, own in zip(terms, state.losses)]
        total = jnp.asarray(sum(losses), jnp.float32)
        after = State(
            state.step + 1,
            jnp.where(found.codes.fired(), 0, state.silent + 1),
            self.activation.threshold(state.threshold, found.codes, state),
            tuple(term.update(found, own) for term, own in zip(terms, state.losses)),
            total,
        )
        return total, lax.stop_gradient(after)

    def inference(self, params: Params, state: State) -> tuple["SAE", Params]:
        """The autoencoder and parameters to use after training.

        Those of `BatchTopK` have a fixed threshold, `JumpReLU`; others are unchanged.
        """
        activation, params = self.activation.inference(dict(params), state)
        return replace(self, activation=activation), params

    def units(self, x: Array) -> Units:
        """The units in which samples are normalised."""
        return UNITS[self.normalize](x)

    def output_units(self, x: Array) -> Units:
        """The units of the reconstructions of samples."""
        return Units() if self.transcoder else self.units(x)

    def rows(self, params: Mapping[str, Any]) -> Array:
        """The decoder rows by which features are multiplied."""
        if not self.rescale:
            return params["W_dec"]
        return params["W_dec"] / self._norms(params)[:, None].astype(params["W_dec"].dtype)

    def _norms(self, params: Weights) -> Array:
        norms = row_norms(params["W_dec"])
        return jnp.where(norms > 0, norms, 1)

    def preactivations(self, params: Weights, centred: Array) -> Array:
        """z of centred samples."""
        encoder = params["W_enc"] if "W_enc" in params else params["W_dec"].T
        z = centred @ encoder + params.get("b_enc", jnp.zeros((), centred.dtype))
        return z * self._norms(params).astype(z.dtype) if self.rescale else z

    def preactivations_at(self, params: Weights, centred: Array, index: Array) -> Array:
        """z at some indices of each token, with gradients in those columns only."""
        encoder = params["W_enc"].T if "W_enc" in params else params["W_dec"]
        z = sampled(index, centred, encoder)
        z = z + params["b_enc"][index] if "b_enc" in params else z
        return z * self._norms(params)[index].astype(z.dtype) if self.rescale else z

    def run(
        self, params: Weights, x: Any, grad: Any = None, target: Any = None,
        state: State | None = None,
    ) -> Pass:  # fmt: skip
        """One pass over samples, which are flattened to rows."""
        params = {name: jnp.asarray(p) for name, p in params.items()}
        self._check(params, x, grad, target)
        x = jnp.asarray(x).reshape(-1, x.shape[-1])
        units = self.units(x)
        inside = units.inside(x)
        centred = inside - params["b_dec"] if self.center else inside
        if grad is not None:
            grad = units.gradient_inside(jnp.asarray(grad).reshape(x.shape))
        outputs = self.output_units(x)
        if target is None:
            target = None if self.transcoder else inside
        else:
            target = outputs.inside(jnp.asarray(target).reshape(len(x), params["W_dec"].shape[1]))
        context = Context(centred, params, grad, state)
        codes = self._codes(params, context)
        out = codes.decoded(self.rows(params)) + params["b_dec"]
        out = out + x @ params["W_skip"].T if "W_skip" in params else out
        return Pass(self, context, codes, out, target, outputs)

    def _codes(self, params: Weights, context: Context) -> Dense | Sparse:
        capacity, latents = self.activation.capacity, params["W_dec"].shape[0]
        few = capacity is not None and capacity * _SPARSE <= latents
        if capacity is None or not (few if self.sparse is None else self.sparse):
            return Dense(self.activation(self.preactivations(params, context.x), context))
        fixed, x = lax.stop_gradient((dict(params), context.x))
        at = lambda index: self.preactivations_at(params, context.x, index)  # noqa: E731
        z = self.preactivations(fixed, x)
        return Sparse(*self.activation.codes(z, context, at), latents)

    def _check(self, params: Weights, x: Any, grad: Any, target: Any) -> None:
        check_names(params)
        encoder = params["W_enc"] if "W_enc" in params else params["W_dec"].T
        other = encoder.shape[0] != params["W_dec"].shape[1]
        if (other or "W_skip" in params) and not self.transcoder:
            raise ValueError(
                "SAE: the parameters are those of a transcoder, with "
                f"{'another width of outputs' if other else 'W_skip'}: use SAE(..., "
                "transcoder=True)."
            )
        if x.shape[-1] != encoder.shape[0]:
            raise ValueError(
                f"SAE: x must have the width {encoder.shape[0]} of the parameters, got shape "
                f"{x.shape}."
            )
        wanted = {"grad": x.shape, "target": (*x.shape[:-1], params["W_dec"].shape[1])}
        for name, given in {"grad": grad, "target": target}.items():
            if given is not None and jnp.shape(given) != wanted[name]:
                raise ValueError(
                    f"SAE: {name} must have shape {wanted[name]} for x of shape {x.shape}, got "
                    f"{jnp.shape(given)}."
                )


def check_names(params: Weights, *names: str) -> None:
    """Raises unless the parameters hold those names, by default a decoder."""
    names = names or ("W_dec", "b_dec")
    if missing := [name for name in names if name not in params]:
        raise ValueError(
            f"SAE: params must hold {' and '.join(names)}, as from sae.init(...); "
            f"{' and '.join(missing)} missing among {', '.join(params) or 'none'}."
        )
