"""Visual prompts: a learned border or frame around the images of a frozen network."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ..._arguments import check_count, check_key, checked, known, rows_of
from ..._minibatches import minibatches
from ..._progress import check_loop, run_chunks
from ..._steady import steady
from ...recipes import Progress
from ._mapping import check_labels, frequency_mapping, random_mapping

Mapping = Literal["iterative", "frequency", "random"]


@checked()
def prompt_images(
    images: Float[Array, "n h w c"],
    prompt: Float[Array, "R S c"],
    *,
    frame: int | Int[Array, ""] | None = None,
) -> Float[Array, "n R S c"]:
    r"""Surrounds images with a learned border: `pad(images) + sigmoid(delta) * M`.

    M is 1 outside the image and 0 inside; there are `ceil((R - h) / 2)` rows above the image. With
    a frame, images of the network's input size are not shrunk: `images + delta * F`, with F = 1 in
    the outer `frame` rows and columns and 0 inside.

    Args:
      images: Images in [0, 1]; normalize the result for the network.
      prompt: delta, of the size of the network's input.
      frame: Width of the frame, up to half of each side, which covers the image; None pads.

    Returns:
      The prompted images.

    Raises:
      ValueError: If the images are larger than the prompt or have other channels, or with a frame
        differ from it in size, or the frame is not from 1 to half of a side.

    Reference:
      Bahng et al., Exploring Visual Prompts for Adapting Large-Scale Models, 2022 (arXiv
      2203.17274); Chen et al., 2023 (arXiv 2211.11635).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> found = reprogramming.prompt_images(jnp.ones((1, 1, 1, 1)), jnp.zeros((2, 2, 1)))
      >>> found[0, :, :, 0].tolist()
      [[0.5, 0.5], [0.5, 1.0]]
    """
    if frame is not None:
        return images + prompt * _frame(images.shape, prompt.shape, frame)
    rest = [a - b for a, b in zip(prompt.shape[:2], images.shape[1:3])]
    if min(rest) < 0 or prompt.shape[2] != images.shape[3]:
        raise ValueError(
            f"prompt_images: images {images.shape[1:]} do not fit into a prompt {prompt.shape}."
        )
    pads = [(0, 0), *((-(-r // 2), r // 2) for r in rest), (0, 0)]
    inside = jnp.zeros((1, *images.shape[1:]), images.dtype)
    outside = jnp.pad(inside, pads, constant_values=1)
    return jnp.pad(images, pads) + jax.nn.sigmoid(prompt) * outside


def _frame(images: tuple[int, ...], prompt: tuple[int, ...], frame: Any) -> Array:
    """1 in the outer rows and columns of a canvas `(R, S, 1)`, else 0."""
    if images[1:] != prompt:
        raise ValueError(
            f"prompt_images: a frame needs images of the size of the prompt {prompt}, got "
            f"{images[1:]}; resize them, or omit frame= to surround them."
        )
    if known(frame) and not 1 <= frame <= min(prompt[:2]) / 2:
        raise ValueError(
            f"prompt_images: frame={frame} must be from 1 to {min(prompt[:2]) // 2}, half of the "
            f"prompt {prompt}."
        )
    near = [jnp.minimum(jnp.arange(side), jnp.arange(side)[::-1]) for side in prompt[:2]]
    return (jnp.minimum(near[0][:, None], near[1]) < frame)[..., None]


class Prompt(NamedTuple):
    """A learned prompt.

    Args:
      prompt: delta, the learned border.
      mapping: The source class of each target class, from the last epoch of training; `(t, k)` if
        it has several, whose logits are averaged.
      frame: Width of the frame that is added to images of full size; None surrounds them.
    """

    prompt: Float[Array, "R S c"]
    mapping: Int[Array, "t ..."]
    frame: int | Int[Array, ""] | None = None

    def logits(self, network: Callable[[Array], Array], images: Array) -> Float[Array, "n t"]:
        """The logits of the target classes for images without a border."""
        prompted = prompt_images(images, self.prompt, frame=self.frame)
        return _mapped(network(prompted), self.mapping)


def _mapped(logits: Float[Array, "n s"], mapping: Int[Array, "t ..."]) -> Float[Array, "n t"]:
    """The mean logit of the source classes of each target class."""
    chosen = logits[:, mapping]
    return chosen if mapping.ndim == 1 else chosen.mean(-1)


@checked(network="network(x)")
def visual_prompt(
    network: Callable[[Array], Float[Array, "n sources"]],
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    size: tuple[int, int],
    classes: int,
    key: Key[Array, ""],
    mapping: Mapping = "iterative",
    per_class: int = 1,
    frame: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Prompt:
    r"""Reprograms a frozen network: learns a border around the image and a mapping of labels.

    Minimizes the cross-entropy of `network(prompt_images(images, delta))[:, pi]` over delta. The
    mapping pi is "random" (RLM), a frequency mapping under the initial prompt ("frequency", FLM),
    or a frequency mapping recomputed from all samples at the start of every epoch ("iterative",
    ILM).

    Args:
      network: Function of images, at the network's input size, to logits, in evaluation mode; for
        example a lottery ticket.
      images: Images in [0, 1].
      labels: Target classes.
      size: Height and width of the network's input.
      classes: Number of target classes.
      key: A key from `jax.random.key`, for the random mapping and the order of the samples.
      mapping: "iterative", "frequency" or "random".
      per_class: Number of source classes of each target class, whose logits are averaged.
      frame: Width of a frame that is added to images of the network's input size; None surrounds
        smaller images.
      optimizer: An optax transformation; None uses `optax.adam(0.01)`.
      epochs: Total number of epochs.
      batch_size: Samples per step; an incomplete last batch is dropped.
      callback: Called with a `sj.recipes.Progress` after each epoch; `params` is a `Prompt`.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Prompt`.

    Raises:
      ValueError: If there are no samples, a label is not below `classes`, there are fewer than
        `classes * per_class` source classes, the images are as large as the input (or with a frame
        are not), `mapping` is not one of the three names, or `resume` began with other images or
        arguments.
      TypeError: If the images are not floats.

    Reference:
      Misra et al., Reprogramming under Constraints, 2023 (arXiv 2308.14969); Chen et al., 2023
      (arXiv 2211.11635).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> network = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], -1)
      >>> images, labels = jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1), jnp.array([0, 1])
      >>> found = reprogramming.visual_prompt(
      ...     network, images, labels, size=(2, 2), classes=2, key=jax.random.key(0), epochs=2
      ... )
      >>> found.mapping.tolist(), found.prompt.shape
      ([0, 1], (2, 2, 1))
    """
    check_key("key", key)
    check_count("classes", classes)
    check_count("epochs", epochs, 0)
    check_count("batch_size", batch_size)
    n = _check_prompt(network, images, labels, size, classes, mapping, frame)
    arguments = check_loop(
        "visual_prompt", resume, callback, key=key, size=tuple(size), classes=classes,
        mapping=mapping, per_class=per_class, frame=frame, batch_size=batch_size,
        data={"images": images, "labels": labels},
    )  # fmt: skip
    tx = steady(optax.adam(0.01) if optimizer is None else optimizer)
    per_epoch = max(n // min(batch_size, n), 1)
    epoch = jax.jit(partial(_epoch, network, tx, mapping == "iterative", per_class))

    def advance(state, e, _):
        rows = minibatches(n, batch_size, per_epoch, key=jax.random.fold_in(key, e + 1))
        return epoch(*state, images, labels, rows)

    delta = jnp.zeros((*size, images.shape[-1]), images.dtype)
    logits = network(prompt_images(images, delta, frame=frame))
    if mapping == "random":
        own = jax.random.fold_in(key, 0)
        chosen = random_mapping(logits.shape[-1], classes, per_class, key=own)
    else:
        chosen = _by_frequency(logits, labels, classes, per_class)
    begin = Prompt(delta, chosen, frame), tx.init(delta)
    return run_chunks(
        "visual_prompt", begin, advance, epochs, arguments, chunk=1, callback=callback,
        resume=resume, progress=progress,
    )[0]  # fmt: skip


def _by_frequency(logits, labels, classes: int, per_class: int) -> Int[Array, "t ..."]:
    predicted, sources = logits.argmax(-1), logits.shape[-1]
    return frequency_mapping(predicted, labels, sources, classes, per_class=per_class)


def _epoch(network, tx, remap, per_class, prompt, opt_state, images, labels, rows):
    delta, mapping, frame = prompt
    if remap:
        logits = network(prompt_images(images, delta, frame=frame))
        mapping = _by_frequency(logits, labels, mapping.shape[0], per_class)

    def loss(delta, row):
        logits = Prompt(delta, mapping, frame).logits(network, images[row])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[row]).mean()

    def step(carry, row):
        delta, state = carry
        updates, state = tx.update(jax.grad(loss)(delta, row), state, delta)
        return (optax.apply_updates(delta, updates), state), None

    (delta, opt_state), _ = jax.lax.scan(step, (delta, opt_state), rows)
    return Prompt(delta, mapping, frame), opt_state


def _check_prompt(network, images, labels, size, classes, mapping, frame) -> int:
    if mapping not in ("iterative", "frequency", "random"):
        raise ValueError(f"mapping={mapping!r} must be 'iterative', 'frequency' or 'random'.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images {images.shape} are {images.dtype}; give floats in [0, 1], as images / 255."
        )
    n = rows_of("images and labels", {"images": images, "labels": labels})
    check_labels(labels, classes)
    if frame is None and tuple(size) == images.shape[1:3]:
        raise ValueError(
            f"images of size {tuple(size)} leave no border for a prompt; shrink them, or pass "
            "frame=, the width of a frame that is added to them."
        )
    return n
