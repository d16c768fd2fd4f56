"""Error-minimising noise: a surrogate network and the noise descend the same loss in turn."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._arguments import check_params, checked, known, rows_of
from ..._progress import check_loop, run_chunks, structure
from ..._steady import steady
from ...recipes import Progress
from ._step import check_unit_range, masked_step, top_pixel_mask

Logits = Callable[[PyTree, Array], Float[Array, "n classes"]]


class Unlearnable(NamedTuple):
    """Noise, and the network that it was made with.

    Args:
      noise: The noise of each image, or of each class.
      params: The parameters of the surrogate network.
      errors: Error of the surrogate on the noisy images after each round, a fraction.
    """

    noise: Float[Array, "m h w c"]
    params: PyTree
    errors: Float[Array, " rounds"]


class _State(NamedTuple):
    noise: Array
    params: PyTree
    opt_state: Any
    errors: tuple[Array, ...]


@checked(logits="logits(params, x)", eps="[0, inf)", step="[0, inf)", ratio="[0, 1]",
         inner_steps="[0, inf)", weight_steps="[0, inf)", batch_size="[1, inf)",
         rounds="[0, inf)", min_rounds="[0, inf)", stop="[0, 1]")  # fmt: skip
def unlearnable_noise(
    params: PyTree,
    logits: Logits,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    eps: float = 8 / 255,
    step: float | None = None,
    ratio: float = 0.1,
    mask: Literal["step", "fixed"] = "step",
    where: Bool[Array, "m h w 1"] | None = None,
    classwise: bool = False,
    attack: Literal["min-min", "min-max"] = "min-min",
    optimizer: optax.GradientTransformation | None = None,
    inner_steps: int = 20,
    weight_steps: int = 10,
    batch_size: int = 128,
    rounds: int = 100,
    min_rounds: int = 5,
    stop: float | None = None,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Unlearnable:
    r"""Makes images unlearnable by error-minimising noise on few pixels of each (SALM).

    `min_w 1/n sum_i min_{|d_i| <= eps} CE(f_w(x_i + d_i), y_i)`, by rounds: the surrogate takes
    `weight_steps` minibatch steps on the noisy images, in a fixed order, then the noise takes
    `inner_steps` steps of `masked_step`, each on the `ceil(ratio h w)` pixels of largest gradient.
    The noise starts at 0.

    Args:
      params: Parameters of the surrogate: a tree of arrays.
      logits: Function `(params, x)` of the surrogate, the same in training and evaluation, such as
        a network with group norms.
      images: Images in [0, 1].
      labels: Their classes.
      eps: Largest noise of an entry, in units of the images.
      step: Length of a step of the noise; None means `eps / 10`.
      ratio: Fraction of the pixels of an image that a step moves; 1 moves all (min-min noise).
      mask: "step" selects the pixels at each step, whose union exceeds `ratio`; "fixed" once in a
        round, from its first gradient.
      where: Pixels that may move, instead of those of largest gradient.
      classwise: Whether all images of a class share one noise, moved by their mean gradient.
      attack: "min-min" descends the loss, "min-max" ascends it (adversarial noise).
      optimizer: Of the surrogate; None means SGD with rate 0.1, momentum 0.9 and decay 5e-4.
      inner_steps: Steps of the noise in a round.
      weight_steps: Steps of the surrogate in a round.
      batch_size: Images per step of the surrogate, and per call of `logits`.
      rounds: Maximum number of rounds.
      min_rounds: Least number of rounds; an early surrogate may fit noise that protects nothing.
      stop: Error of the surrogate on the noisy images at which to stop, a fraction; None means
        0.01, or 0.1 with `classwise`.
      callback: Called with a `sj.recipes.Progress` after each round; `params` is the noise.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      `Unlearnable(noise, params, errors)`; `release(images, noise)` are the images to publish, with
      `noise[labels]` if it is classwise.

    Raises:
      ValueError: If there are no images, they are not in [0, 1], a label is not a class of the
        logits, `where` does not fit, or `resume` began with other arguments.
      TypeError: If `logits` cannot be called as `logits(params, x)`.

    Reference:
      Sun et al., Medical Unlearnable Examples: Securing Medical Data from Unauthorized Training via
      Sparsity-Aware Local Masking, 2024 (arXiv 2403.10573).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import unlearnable
      >>> images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.array([0, 1, 0, 1])
      >>> logits = lambda w, x: x.reshape(len(x), -1) @ w
      >>> found = unlearnable.unlearnable_noise(
      ...     0.1 * jax.random.normal(jax.random.key(0), (4, 2)), logits, images, labels,
      ...     eps=0.1, ratio=0.25, rounds=1)
      >>> bool(jnp.abs(found.noise).max() <= 0.1)
      True
    """
    check_params("unlearnable_noise", params)
    classes = _check(params, logits, images, labels)
    shape = (classes if classwise else len(images), *images.shape[1:3], 1)
    if where is not None and where.shape != shape:
        raise ValueError(
            f"unlearnable_noise: where has shape {where.shape} and must have {shape}, one mask for "
            "each noise."
        )
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    step = eps / 10 if step is None else step
    stop = (0.1 if classwise else 0.01) if stop is None else stop
    if optimizer is None:
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))
    arguments = check_loop(
        "unlearnable_noise", resume, callback, eps=eps, step=step, ratio=ratio, mask=mask,
        classwise=classwise, attack=attack, inner_steps=inner_steps, weight_steps=weight_steps,
        batch_size=batch_size, min_rounds=min_rounds, stop=stop,
        data={"params": params, "images": images, "labels": labels, "where": where,
              "optimizer": structure(optimizer, params)},
    )  # fmt: skip
    tx = steady(optimizer)
    owner = labels if classwise else jnp.arange(len(images))
    train = _trainer(logits, tx, images, labels, owner, weight_steps, batch_size)
    grads_of = _gradients(logits, images, labels, owner, shape[0], batch_size)
    move = _mover(grads_of, None if classwise else images, eps, step, ratio, mask, where, attack,
                  inner_steps)  # fmt: skip

    @jax.jit
    def one_round(noise, params, opt_state, at):
        params, opt_state = train(noise, params, opt_state, at)
        noise = move(noise, params)
        _, wrong = grads_of(noise, params)
        return noise, params, opt_state, jnp.mean(wrong)

    def advance(state, first, last):
        for at in range(first, last):
            noise, params, opt_state, error = one_round(
                state.noise, state.params, state.opt_state, at
            )
            state = _State(noise, params, opt_state, (*state.errors, error))
        return state

    def finished(state):
        return len(state.errors) >= min_rounds and bool(state.errors and state.errors[-1] <= stop)

    params = jax.tree.map(jnp.asarray, params)
    begin = _State(jnp.zeros((*shape[:3], images.shape[3]), images.dtype), params,
                   tx.init(params), ())  # fmt: skip
    state = run_chunks(
        "unlearnable_noise", begin, advance, rounds, arguments, chunk=1, callback=callback,
        resume=resume, progress=progress, inputs=(images, labels), finished=finished,
    )  # fmt: skip
    return Unlearnable(state.noise, state.params, jnp.asarray(state.errors))


def _noisy(images: Array, noise: Array) -> Array:
    return jnp.clip(images + noise, 0, 1)


def _losses(logits: Logits, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """The cross-entropies of images, and whether each is classified wrongly."""
    found = logits(params, x)
    wrong = found.argmax(-1) != y
    return optax.softmax_cross_entropy_with_integer_labels(found, y), wrong


def _trainer(logits, tx, images, labels, owner, steps, batch_size):
    """Steps of the surrogate that keep their place in the data between rounds."""
    n, size = len(images), min(batch_size, len(images))

    def train(noise, params, opt_state, at):
        def step(carry, t):
            params, opt_state = carry
            rows = (t * size + jnp.arange(size)) % n
            x = _noisy(images[rows], noise[owner[rows]])
            grads = jax.grad(lambda p: _losses(logits, p, x, labels[rows])[0].mean())(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), at * steps + jnp.arange(steps))[0]

    return train


def _gradients(logits, images, labels, owner, count, batch_size):
    """The gradient of each noise, and the errors of all images, a batch at a time."""

    def one_batch(params, x, y):
        def loss(x):
            losses, wrong = _losses(logits, params, x, y)
            return losses.sum(), wrong

        return jax.grad(loss, has_aux=True)(x)

    def grads_of(noise, params):
        def of_image(inputs):
            grads, wrong = one_batch(params, inputs[0][None], inputs[1][None])
            return grads[0], wrong[0]

        # With respect to the clipped images: a clip has no gradient where it holds.
        x = _noisy(images, noise[owner])
        grads, wrong = jax.lax.map(of_image, (x, labels), batch_size=min(batch_size, len(images)))
        return jax.ops.segment_sum(grads, owner, count), wrong

    return grads_of


def _mover(grads_of, images, eps, step, ratio, mask, where, attack, steps):
    """Steps of the noise with the surrogate fixed."""
    sign = 1 if attack == "min-min" else -1

    def move(noise, params):
        def one(noise, _):
            grads = sign * grads_of(noise, params)[0]
            new = masked_step(noise, grads, images, eps=eps, step=step, ratio=ratio, mask=chosen)
            return new, None

        chosen = where
        if where is None and mask == "fixed":
            chosen = top_pixel_mask(grads_of(noise, params)[0], ratio)
        return jax.lax.scan(one, noise, None, steps)[0]

    return move


def _check(params, logits, images, labels) -> int:
    """The number of classes; raises unless images and labels fit."""
    rows_of("images and labels", {"images": images, "labels": labels})
    check_unit_range("unlearnable_noise", images)
    classes = jax.eval_shape(logits, params, images[:1]).shape[-1]
    if not known(images, labels):
        return classes
    if int(np.min(labels)) < 0 or int(np.max(labels)) >= classes:
        raise ValueError(
            f"unlearnable_noise: labels must be classes 0 to {classes - 1} of the logits, got "
            f"{int(np.min(labels))} to {int(np.max(labels))}."
        )
    return classes
