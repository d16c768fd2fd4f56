"""Reprogramming of frozen networks: visual prompts, label mappings, linear probes."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ..._arguments import check_callable, check_count, check_key, known, rows_of
from ..._progress import check_loop, run_chunks
from ...recipes import Progress, minibatches, train_masked

Mapping = Literal["iterative", "frequency", "random"]


def random_mapping(sources: int, targets: int, *, key: Key[Array, ""]) -> Int[Array, " t"]:
    """Random label mapping (RLM): a random source class for each target class, all distinct.

    Reference:
      Elsayed et al., Adversarial Reprogramming of Neural Networks, 2019 (arXiv 1806.11146).
    """
    check_key("key", key)
    _check_classes(sources, targets)
    return jax.random.permutation(key, sources)[:targets]


def frequency_mapping(
    predicted: Int[Array, " n"], labels: Int[Array, " n"], sources: int, targets: int
) -> Int[Array, " t"]:
    r"""Frequency label mapping (FLM): greedy matching of predicted and true classes by frequency.

    `T[s, t]` counts the samples of class t that the network classifies as s. The largest entry
    assigns s to t and removes row s and column t; then the next largest, until every target class
    has a source class. The first entry in row-major order wins ties.

    Args:
      predicted: Source class predicted for each sample.
      labels: Target class of each sample.
      sources: Number of classes of the network.
      targets: Number of classes of the task.

    Returns:
      The source class of each target class, all distinct.

    Raises:
      ValueError: If there are more target than source classes, the shapes differ, or (unless
        traced) a class is out of range.

    Reference:
      Chen et al., Understanding and Improving Visual Prompting: A Label-Mapping Perspective, 2023
      (arXiv 2211.11635).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> predicted, labels = jnp.array([2, 2, 2, 1]), jnp.array([0, 0, 1, 1])
      >>> reprogramming.frequency_mapping(predicted, labels, 3, 2).tolist()
      [2, 1]
    """
    _check_classes(sources, targets)
    if jnp.ndim(predicted) != 1 or jnp.shape(predicted) != jnp.shape(labels):
        raise ValueError(
            f"frequency_mapping: predicted {jnp.shape(predicted)} and labels {jnp.shape(labels)} "
            "must be one class a sample, of the same shape (n,)."
        )
    _check_labels(predicted, sources, "predicted", "sources")
    _check_labels(labels, targets, "labels", "targets")
    table = jnp.zeros((sources, targets), jnp.int32).at[predicted, labels].add(1)

    def pick(_, carry):
        table, mapping = carry
        s, t = jnp.divmod(jnp.argmax(table), targets)
        return table.at[s, :].set(-1).at[:, t].set(-1), mapping.at[t].set(s)

    start = (table, jnp.zeros(targets, jnp.int32))
    return jax.lax.fori_loop(0, targets, pick, start)[1]


def prompt_images(
    images: Float[Array, "n h w c"], prompt: Float[Array, "R S c"]
) -> Float[Array, "n R S c"]:
    r"""Surrounds images with a learned border: `pad(images) + sigmoid(delta) * M`.

    M is 1 outside the image and 0 inside; there are `ceil((R - h) / 2)` rows above the image.

    Args:
      images: Images in [0, 1]; normalize the result for the network.
      prompt: delta, of the size of the network's input.

    Returns:
      The prompted images.

    Raises:
      ValueError: If the images are larger than the prompt or have other channels.

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
    rest = [a - b for a, b in zip(prompt.shape[:2], images.shape[1:3])]
    if min(rest) < 0 or prompt.shape[2] != images.shape[3]:
        raise ValueError(
            f"prompt_images: images {images.shape[1:]} do not fit into a prompt {prompt.shape}."
        )
    pads = [(0, 0), *((-(-r // 2), r // 2) for r in rest), (0, 0)]
    inside = jnp.zeros((1, *images.shape[1:]), images.dtype)
    outside = jnp.pad(inside, pads, constant_values=1)
    return jnp.pad(images, pads) + jax.nn.sigmoid(prompt) * outside


class Prompt(NamedTuple):
    """A learned prompt.

    Args:
      prompt: delta, the learned border.
      mapping: The source class of each target class, from the last epoch of training.
    """

    prompt: Float[Array, "R S c"]
    mapping: Int[Array, " t"]

    def logits(self, network: Callable[[Array], Array], images: Array) -> Float[Array, "n t"]:
        """The logits of the target classes for images without a border."""
        return network(prompt_images(images, self.prompt))[:, self.mapping]


def visual_prompt(
    network: Callable[[Array], Float[Array, "n sources"]],
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    size: tuple[int, int],
    classes: int,
    key: Key[Array, ""],
    mapping: Mapping = "iterative",
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
      optimizer: An optax transformation; None uses `optax.adam(0.01)`.
      epochs: Total number of epochs.
      batch_size: Samples per step; an incomplete last batch is dropped.
      callback: Called with a `sj.recipes.Progress` after each epoch; `params` is a `Prompt`.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Prompt`.

    Raises:
      ValueError: If there are no samples, a label is not below `classes`, there are more target
        than source classes, the images are as large as the input, `mapping` is not one of the
        three names, or `resume` began with other images or arguments.
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
    n = _check_prompt(network, images, labels, size, classes, mapping)
    arguments = check_loop(
        "visual_prompt", resume, callback, key=key, size=tuple(size), classes=classes,
        mapping=mapping, batch_size=batch_size, data={"images": images, "labels": labels},
    )  # fmt: skip
    tx = optax.adam(0.01) if optimizer is None else optimizer
    per_epoch = max(n // min(batch_size, n), 1)
    epoch = jax.jit(partial(_epoch, network, tx, mapping == "iterative"))

    def advance(state, e, _):
        rows = minibatches(n, batch_size, per_epoch, key=jax.random.fold_in(key, e + 1))
        return epoch(*state, images, labels, rows)

    begin = _start(network, images, labels, size, classes, key, mapping, tx)
    return run_chunks(
        "visual_prompt", begin, advance, epochs, arguments, chunk=1, callback=callback,
        resume=resume, progress=progress,
    )[0]  # fmt: skip


def _start(network, images, labels, size, classes, key, mapping, tx) -> tuple[Prompt, PyTree]:
    delta = jnp.zeros((*size, images.shape[-1]), images.dtype)
    logits = network(prompt_images(images, delta))
    sources = logits.shape[-1]
    _check_classes(sources, classes)
    if mapping == "random":
        chosen = random_mapping(sources, classes, key=jax.random.fold_in(key, 0))
    else:
        chosen = frequency_mapping(logits.argmax(-1), labels, sources, classes)
    return Prompt(delta, chosen), tx.init(delta)


def _epoch(network, tx, remap, prompt, opt_state, images, labels, rows):
    delta, mapping = prompt
    if remap:
        logits = network(prompt_images(images, delta))
        mapping = frequency_mapping(logits.argmax(-1), labels, logits.shape[-1], mapping.shape[0])

    def loss(delta, row):
        logits = network(prompt_images(images[row], delta))[:, mapping]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[row]).mean()

    def step(carry, row):
        delta, state = carry
        updates, state = tx.update(jax.grad(loss)(delta, row), state, delta)
        return (optax.apply_updates(delta, updates), state), None

    (delta, opt_state), _ = jax.lax.scan(step, (delta, opt_state), rows)
    return Prompt(delta, mapping), opt_state


def linear_probe(
    X: Float[Array, "n d"],
    y: Int[Array, " n"],
    *,
    classes: int,
    steps: int,
    key: Key[Array, ""],
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 128,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> dict[str, Array]:
    r"""Linear probing: trains a linear head `X W + b` on frozen features by cross-entropy.

    Args:
      X: Features from a frozen network.
      y: Target classes.
      classes: Number of target classes.
      steps: Number of training steps.
      key: A key from `jax.random.key`, for the initial weights and the order of the samples.
      optimizer: An optax transformation; None uses `optax.adam(0.01)`.
      batch_size: Samples per step.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      `{"kernel": (d, classes), "bias": (classes,)}`.

    Raises:
      ValueError: If there are no samples, or a label is not below `classes`.

    Reference:
      Misra et al., Reprogramming under Constraints, 2023 (arXiv 2308.14969).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> X, y = jnp.eye(2), jnp.array([1, 0])
      >>> head = reprogramming.linear_probe(X, y, classes=2, steps=300, key=jax.random.key(0))
      >>> (X @ head["kernel"] + head["bias"]).argmax(-1).tolist()
      [1, 0]
    """
    data = {"X": X, "y": y}
    rows_of("X and y", data)
    _check_labels(y, classes)
    d = X.shape[1]
    bound = 1 / np.sqrt(d)
    check_key("key", key)
    start, order = jax.random.split(key)
    head = {
        "kernel": jax.random.uniform(start, (d, classes), minval=-bound, maxval=bound),
        "bias": jnp.zeros(classes),
    }

    def loss(p, batch):
        logits = batch["X"] @ p["kernel"] + p["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    tx = optax.adam(0.01) if optimizer is None else optimizer
    return train_masked(
        head, None, loss, tx, data, steps=steps, key=order, batch_size=batch_size,
        chunk=chunk, callback=callback, resume=resume, progress=progress,
    )  # fmt: skip


def few_shot(
    labels: Int[ArrayLike, " n"], shots: int, *, key: Key[Array, ""]
) -> Int[np.ndarray, " m"]:
    """Draws the rows of a few samples per class, without replacement.

    Args:
      labels: Class of each sample.
      shots: Samples per class; smaller classes are taken whole.
      key: A key from `jax.random.key`.

    Returns:
      Increasing indices.

    Raises:
      ValueError: If there are no labels or `shots` is not at least 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import reprogramming
      >>> rows = reprogramming.few_shot(jnp.array([0, 1, 0, 1, 0]), 1, key=jax.random.key(0))
      >>> rows.size
      2
    """
    check_key("key", key)
    check_count("shots", shots)
    y = np.asarray(labels)
    if not y.size:
        raise ValueError("few_shot: labels must not be empty.")
    order = np.asarray(jax.random.permutation(key, y.size))
    chosen = [order[y[order] == c][:shots] for c in np.unique(y)]
    return np.sort(np.concatenate(chosen))


def _check_classes(sources: int, targets: int) -> None:
    if not 1 <= targets <= sources:
        raise ValueError(f"{targets} target classes cannot be mapped to {sources} source classes.")


def _check_labels(labels: Any, classes: int, name: str = "labels", of: str = "classes") -> None:
    if not known(labels) or not np.size(labels):
        return
    labels = np.asarray(labels)
    if labels.max() >= classes or labels.min() < 0:
        raise ValueError(
            f"{name} must be from 0 to {classes - 1} for {of}={classes}, got {labels.min()} to "
            f"{labels.max()}."
        )


def _check_prompt(network, images, labels, size, classes, mapping) -> int:
    check_callable("network", network, "x")
    if mapping not in ("iterative", "frequency", "random"):
        raise ValueError(f"mapping={mapping!r} must be 'iterative', 'frequency' or 'random'.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images {images.shape} are {images.dtype}; give floats in [0, 1], as images / 255."
        )
    n = rows_of("images and labels", {"images": images, "labels": labels})
    _check_labels(labels, classes)
    if tuple(size) == images.shape[1:3]:
        raise ValueError(f"images of size {tuple(size)} leave no border for a prompt; shrink them.")
    return n
