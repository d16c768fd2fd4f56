"""MobileNets in channel-first layout, whose 1x1 convolutions can be dense or compressed."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._arguments import checked
from ..kernels import pointwise
from ..nn import LinearLayer, linear_layer

# (outputs, stride) of each block.
V1 = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
# (expansion, outputs, blocks, stride of the first) of each stage.
V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip

_INIT = nnx.initializers.he_normal()


class Convolution(nnx.Module):
    """A convolution of `(batch, C, H, W)` with a kernel `(kh, kw, C / groups, O)`, no bias."""

    def __init__(self, shape: tuple[int, ...], stride: int, groups: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INIT(rngs.params(), shape, jnp.float32))
        self.stride, self.groups = stride, groups

    def __call__(self, x: Float[Array, "batch c h w"]) -> Float[Array, "batch o h2 w2"]:
        dims: Any = ("NCHW", "HWIO", "NCHW")
        kernel = self.kernel[...]
        return lax.conv_general_dilated(
            x.astype(kernel.dtype), kernel, (self.stride,) * 2, "SAME", dimension_numbers=dims,
            feature_group_count=self.groups,
        )  # fmt: skip


class Pointwise(nnx.Module):
    """A 1x1 convolution of `(batch, C, H, W)` with a kernel `(C, O)`, dense or compressed."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel: Any = nnx.Param(_INIT(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "batch c h w"]) -> Float[Array, "batch o h w"]:
        return pointwise(x, self.kernel[...])


@linear_layer.register
def _(layer: Pointwise) -> LinearLayer:
    return LinearLayer(
        path="kernel",
        ndim=2,
        contraction=(0,),
        rows=lambda x: jnp.moveaxis(x, -3, -1).reshape(-1, x.shape[-3]),
        install=functools.partial(setattr, layer, "kernel"),
    )


class Block(nnx.Module):
    """[1x1 to the hidden width,] depthwise 3x3, 1x1; each normalised, the last optionally linear.

    A linear block of stride 1 with as many outputs as inputs adds its input.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int, linear: bool, rngs: nnx.Rngs
    ):
        self.expands = hidden != inputs
        if self.expands:
            self.expand = Pointwise(inputs, hidden, rngs=rngs)
            self.expand_norm = _norm(hidden, rngs)
        self.depthwise = Convolution((3, 3, 1, hidden), stride, hidden, rngs=rngs)
        self.depthwise_norm = _norm(hidden, rngs)
        self.project = Pointwise(hidden, outputs, rngs=rngs)
        self.project_norm = _norm(outputs, rngs)
        self.linear = linear
        self.residual = linear and stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "batch c h w"]) -> Float[Array, "batch o h2 w2"]:
        y = jax.nn.relu6(self.expand_norm(self.expand(x))) if self.expands else x
        y = jax.nn.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        if self.residual:
            return x + y
        return y if self.linear else jax.nn.relu6(y)

    def channel_layers(self, at: str, source: str) -> list[tuple[str, str, tuple[str, ...]]]:
        """The layers under the path `at` that read from `source`."""
        kinds = [("depthwise", "depthwise"), ("project", "dense")]
        kinds = [("expand", "dense"), *kinds] if self.expands else kinds
        layers, last = [], source
        for name, kind in kinds:
            layers.append((f"{at}/{name}", kind, (last,)))
            last = f"{at}/{name}_norm"
            layers.append((last, "same", (f"{at}/{name}",)))
        return [*layers, (f"{at}/add", "add", (source, last))] if self.residual else layers


class MobileNet(nnx.Module):
    r"""A MobileNet: a stem, blocks of 1x1 and depthwise convolutions, mean pooling, a linear layer.

    Made by `mobilenet_v1` and `mobilenet_v2`.

    Args:
      channels: Channels of the images.
      classes: Number of outputs.
      stem: Width and stride of the first 3x3 convolution.
      blocks: `(hidden, outputs, stride)` of each block.
      linear: Whether blocks end without an activation and add their input.
      head: Width of a last 1x1 convolution; None omits it.
      rngs: Keys of the initial parameters.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> net = sj.models.MobileNet(1, 10, (8, 1), [(8, 16, 2)], rngs=nnx.Rngs(0))
      >>> net(jnp.ones((2, 1, 8, 8))).shape
      (2, 10)
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        stem: tuple[int, int],
        blocks: Sequence[tuple[int, int, int]],
        linear: bool = False,
        head: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        width, stride = stem
        self.stem = Convolution((3, 3, channels, width), stride, 1, rngs=rngs)
        self.stem_norm = _norm(width, rngs)
        made = []
        for hidden, outputs, stride in blocks:
            made.append(Block(width, hidden, outputs, stride, linear, rngs))
            width = outputs
        self.blocks = nnx.List(made)
        self.has_head = head is not None
        if head is not None:
            self.head = Pointwise(width, head, rngs=rngs)
            self.head_norm = _norm(head, rngs)
        self.classifier = nnx.Linear(head or width, classes, rngs=rngs)

    def __call__(
        self, x: Float[Array | np.ndarray, "batch c h w"]
    ) -> Float[Array, "batch classes"]:
        """Logits of images `(batch, C, H, W)`; transpose channel-last images first."""
        y = jax.nn.relu6(self.stem_norm(self.stem(jnp.asarray(x))))
        for block in self.blocks:
            y = block(y)
        if self.has_head:
            y = jax.nn.relu6(self.head_norm(self.head(y)))
        return self.classifier(y.mean((-2, -1)))

    def channel_layers(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """The dataflow of channels for `sj.nn.surgery.rearrange`: `(path, kind, inputs)`."""
        layers: list[tuple[str, str, tuple[str, ...]]] = [
            ("image", "input", ()),
            ("stem", "dense", ("image",)),
            ("stem_norm", "same", ("stem",)),
        ]
        for i, block in enumerate(self.blocks):
            layers += block.channel_layers(f"blocks/{i}", layers[-1][0])
        if self.has_head:
            layers += [("head", "dense", (layers[-1][0],)), ("head_norm", "same", ("head",))]
        return [*layers, ("classifier", "dense", (layers[-1][0],))]


@checked(channels="[1, inf)", classes="[1, inf)", width="(0, inf)", divisor="[1, inf)")
def mobilenet_v1(
    channels: int,
    classes: int,
    *,
    width: float = 1.0,
    stem: tuple[int, int] = (32, 2),
    blocks: Sequence[tuple[int, int]] = V1,
    divisor: int = 8,
    rngs: nnx.Rngs,
) -> MobileNet:
    r"""MobileNet v1: blocks of a depthwise 3x3 convolution and a 1x1 convolution.

    Its 1x1 convolutions are named `blocks/i/project/kernel`, of shape (in, out): prune those.

    Args:
      channels: Channels of the images `(batch, C, H, W)`.
      classes: Number of outputs.
      width: Factor of all widths.
      stem: Width and stride of the first convolution.
      blocks: `(outputs, stride)` of each block.
      divisor: Widths are rounded to multiples of it.
      rngs: Keys of the initial parameters.

    Reference:
      Howard et al., MobileNets, 2017 (arXiv 1704.04861); Elsen et al., Fast Sparse ConvNets, 2019
      (arXiv 1911.09723).

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> small = ((16, 1), (32, 2))
      >>> net = sj.models.mobilenet_v1(1, 10, stem=(8, 1), blocks=small, rngs=nnx.Rngs(0))
      >>> sj.plan(net, {r"project/kernel$": sj.Block((1, 4), 0.9)}).leaves[0].kept
      12
    """
    first = _rounded(stem[0] * width, divisor)
    rows, inputs = [], first
    for outputs, stride in blocks:
        rows.append((inputs, _rounded(outputs * width, divisor), stride))
        inputs = rows[-1][1]
    return MobileNet(channels, classes, (first, stem[1]), rows, rngs=rngs)


@checked(
    channels="[1, inf)", classes="[1, inf)", width="(0, inf)", head="[1, inf)", divisor="[1, inf)"
)
def mobilenet_v2(
    channels: int,
    classes: int,
    *,
    width: float = 1.0,
    stem: tuple[int, int] = (32, 2),
    stages: Sequence[tuple[int, int, int, int]] = V2,
    head: int | None = 1280,
    widest: int | None = None,
    divisor: int = 8,
    rngs: nnx.Rngs,
) -> MobileNet:
    r"""MobileNet v2: inverted residual blocks with linear bottlenecks.

    Its 1x1 convolutions are named `blocks/i/expand/kernel`, `blocks/i/project/kernel` and
    `head/kernel`, of shape (in, out): prune those.

    Args:
      channels: Channels of the images `(batch, C, H, W)`.
      classes: Number of outputs.
      width: Factor of all widths (of the head only above 1).
      stem: Width and stride of the first convolution.
      stages: `(expansion, outputs, blocks, stride of the first block)` of each stage.
      head: Width of the last 1x1 convolution; None omits it.
      widest: Upper limit of the hidden width of a block (at least the width of its input): the
        cache-aware variant uses `cache_aware_width(...)`.
      divisor: Widths are rounded to multiples of it.
      rngs: Keys of the initial parameters.

    Reference:
      Sandler et al., MobileNetV2, 2018 (arXiv 1801.04381); Elsen et al., Fast Sparse ConvNets,
      2019 (arXiv 1911.09723).

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> net = sj.models.mobilenet_v2(
      ...     1, 10, stem=(8, 1), stages=((4, 8, 2, 1),), head=None, widest=24, rngs=nnx.Rngs(0)
      ... )
      >>> net.blocks[0].expand.kernel.shape
      (8, 24)
    """
    first = _rounded(stem[0] * width, divisor)
    rows, inputs = [], first
    for expansion, outputs, count, stride in stages:
        outputs = _rounded(outputs * width, divisor)
        for i in range(count):
            hidden = expansion * inputs
            if widest is not None:
                hidden = max(inputs, min(hidden, widest // divisor * divisor))
            rows.append((hidden, outputs, stride if i == 0 else 1))
            inputs = outputs
    last = None if head is None else _rounded(head * max(width, 1.0), divisor)
    return MobileNet(channels, classes, (first, stem[1]), rows, True, last, rngs=rngs)


@checked()
def cache_aware_width(cache_bytes: int, strip: int = 16, dtype: DTypeLike | None = None) -> int:
    """Maximum channels whose pixel strip fits into a cache: `cache / (strip * itemsize)`.

    Args:
      cache_bytes: Size of the first-level data cache.
      strip: Pixels that the product handles at a time.
      dtype: Dtype of the activations; None means float32.

    Raises:
      ValueError: If not even one channel fits.

    Reference:
      Elsen et al., Fast Sparse ConvNets, 2019 (arXiv 1911.09723).

    Example:
      >>> import sparsejax as sj
      >>> sj.models.cache_aware_width(32 * 1024)
      512
    """
    itemsize = np.dtype(np.float32 if dtype is None else dtype).itemsize
    if strip < 1 or cache_bytes < strip * itemsize:
        raise ValueError(
            f"cache_aware_width(cache_bytes={cache_bytes}, strip={strip}): the cache must hold at "
            f"least one channel of a strip, as in cache_aware_width(32 * 1024, 16)."
        )
    return cache_bytes // (strip * itemsize)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, axis=1, momentum=0.9, rngs=rngs)


def _rounded(width: float, divisor: int) -> int:
    """Rounds to the nearest multiple, at most a tenth below."""
    near = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * width else near
