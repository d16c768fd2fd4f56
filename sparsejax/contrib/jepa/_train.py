"""Training of a sparse joint-embedding predictive architecture."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from ... import prox
from ..._arguments import check_finite, check_schedule, checked, known, rows_of
from ..._minibatches import minibatches
from ..._progress import check_loop, run_chunks
from ..._tree import map_named
from ...optim import proximal
from ...recipes import Progress
from ._blocks import block_masks
from ._grouped import row_sparsity
from ._loss import jepa_loss
from ._modules import PatchEncoder, Predictor

_KERNEL = r"^predictor/output/kernel$"


class SparseJEPA(NamedTuple):
    """A trained architecture.

    Args:
      encoder: The encoder of the context.
      target: The encoder of the targets, a moving average; its `features` are probed.
      predictor: The predictor; `predictor.output.kernel` has exact zeros.
      losses: Mean prediction error of each chunk of steps, without the penalty.
    """

    encoder: PatchEncoder
    target: PatchEncoder
    predictor: Predictor
    losses: Float[Array, " chunks"]


@checked(grid="[1, inf)", block="[1, inf)", blocks="[1, inf)", strength="[0, inf)",
         weight_decay="[0, inf)", momentum="[0, 1]", steps="[0, inf)",
         batch_size="[1, inf)")  # fmt: skip
def train_jepa(
    encoder: PatchEncoder,
    predictor: Predictor,
    patches: Float[Array, "n patches dim"],
    *,
    grid: tuple[int, int],
    block: tuple[int, int],
    steps: int,
    key: Key[Array, ""],
    blocks: int = 1,
    strength: float = 0.3,
    learning_rate: optax.ScalarOrSchedule = 2e-3,
    weight_decay: float = 0.01,
    momentum: float = 0.996,
    batch_size: int = 64,
    chunk: int = 1000,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> SparseJEPA:
    r"""Trains encoders and a predictor whose latents serve few groups of features (SparseJEPA).

    Minimises `jepa_loss + strength sum_{g,k} ||W^(g)[k]||_2` over the rows of the predictor's
    output layer: a step of AdamW on the loss, then `sj.optim.proximal` with the learning rate of
    that step, which gives exact zeros. The kernel W has no weight decay. After each step the target
    encoder moves, `E_t <- m E_t + (1 - m) E`, with m rising from `momentum` to 1.

    Args:
      encoder: The encoder; a copy is trained, another one becomes the target.
      predictor: The predictor; a copy is trained.
      patches: Patches of the images, `patches_of(images, size)`.
      grid: Rows and columns of patches of an image.
      block: Rows and columns of a target block.
      steps: Number of steps.
      key: A key from `jax.random.key`, for blocks and the order of the images.
      blocks: Number of target blocks of an image.
      strength: Strength of the group penalty; 0 is a plain JEPA. All rows are zero where
        `learning_rate * strength * steps` exceeds their norms by far.
      learning_rate: A number or an optax schedule.
      weight_decay: Decay of the other parameters.
      momentum: First decay m of the moving average; about 0.99 for less than 2000 steps.
      batch_size: Images per step; at most all of them.
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      `SparseJEPA(encoder, target, predictor, losses)`. Warns if more than 95 % of the rows are 0.

    Raises:
      ValueError: If the patches are not those of the grid, the blocks leave no context, or `resume`
        began with other arguments.

    Reference:
      Hartman and Varshney, SparseJEPA: Sparse Representation Learning of Joint Embedding Predictive
      Architectures, 2025 (arXiv 2504.16140).

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from sparsejax.contrib import jepa
      >>> patches = jepa.patches_of(jax.random.uniform(jax.random.key(0), (8, 4, 4, 1)), 1)
      >>> encoder = jepa.PatchEncoder(16, 1, 8, 1, 2, rngs=nnx.Rngs(0))
      >>> predictor = jepa.Predictor(16, 8, 8, 4, 1, 2, rngs=nnx.Rngs(1))
      >>> found = jepa.train_jepa(encoder, predictor, patches, grid=(4, 4), block=(2, 2), steps=2,
      ...                         key=jax.random.key(0))
      >>> jepa.features(found.target, patches).shape
      (8, 8)
    """
    check_schedule("train_jepa", "learning_rate", learning_rate)
    if patches.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"train_jepa: patches {patches.shape} must have {grid[0]} x {grid[1]} patches an image "
            f"for grid={grid}."
        )
    check_finite("train_jepa", patches=patches)
    patches = jnp.asarray(patches)
    order, places = jax.random.split(key)
    graphs, params = {}, {}
    for name, module in (("encoder", encoder), ("predictor", predictor)):
        graphs[name], state = nnx.split(module)
        params[name] = nnx.as_pure(state)
    tx = _optimizer(learning_rate, weight_decay, strength)
    arguments = check_loop(
        "train_jepa", resume, callback, key=key, grid=tuple(grid), block=tuple(block),
        blocks=blocks, steps=steps, strength=strength, weight_decay=weight_decay,
        momentum=momentum, batch_size=batch_size, chunk=chunk,
        learning_rate=None if callable(learning_rate) else learning_rate,
        data={"params": params, "patches": patches},
    )  # fmt: skip
    rows = minibatches(rows_of("patches", patches), batch_size, steps, key=order)

    def draw(key):
        return block_masks(grid, block, targets=blocks, key=key)

    def step(carry, inputs):
        params: Any
        params, target, state = carry
        t, row = inputs
        keys = jax.random.split(jax.random.fold_in(places, t), len(row))

        def loss(params):
            seen, predicted = (nnx.merge(graphs[name], params[name]) for name in graphs)
            teacher = nnx.merge(graphs["encoder"], target)
            return jepa_loss(seen, teacher, predicted, patches[row], jax.vmap(draw)(keys))

        value, grads = jax.value_and_grad(loss)(params)
        moves, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, moves)
        slow = momentum + (1 - momentum) * t / max(steps, 1)
        target: Any = optax.incremental_update(params["encoder"], target, 1 - slow)
        return (params, target, state), value

    run = jax.jit(lambda carry, inputs: jax.lax.scan(step, carry, inputs))

    def advance(held, first, last):
        carry, losses = held
        carry, values = run(carry, (jnp.arange(first, last), rows[first:last]))
        return carry, (*losses, values.mean())

    begin = (params, params["encoder"], tx.init(params)), ()
    (params, target, _), losses = run_chunks(
        "train_jepa", begin, advance, steps, arguments, chunk=chunk, callback=callback,
        resume=resume, progress=progress, inputs=patches, view=lambda held: held[0][0],
    )  # fmt: skip
    _warn_if_collapsed(params["predictor"]["output"]["kernel"])
    seen, teacher, predicted = (
        nnx.merge(graphs[name], tree)
        for name, tree in (
            ("encoder", params["encoder"]),
            ("encoder", target),
            ("predictor", params["predictor"]),
        )
    )
    return SparseJEPA(seen, teacher, predicted, jnp.asarray(losses))


def _optimizer(learning_rate, weight_decay, strength) -> optax.GradientTransformation:
    """AdamW, then the proximal step at the same schedule; decay would compete with the penalty."""

    def decayed(params):
        return map_named(lambda name, _: name != "predictor/output/kernel", params)

    penalty = prox.group_lasso(strength, axis=2, weights=1.0)
    return optax.chain(
        optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed),
        proximal({_KERNEL: penalty}, learning_rate),
    )


def _warn_if_collapsed(kernel: Array) -> None:
    if known(kernel) and (zeros := float(row_sparsity(kernel))) > 0.95:
        warnings.warn(
            f"train_jepa: {zeros:.0%} of the rows of the predictor's output are 0, so that it "
            "predicts little but its bias; lower strength.",
            stacklevel=4,
        )
