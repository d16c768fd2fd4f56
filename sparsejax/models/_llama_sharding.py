"""Llama models on the devices of a mesh: fully sharded data and tensor parallelism."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._arguments import checked
from .._tree import map_named, named_leaves
from ._llama import Llama
from ._llama_names import LAYER, OUTSIDE, inside

# Axes of the mesh along the axes of each parameter: W of the first layer of a pair by its outputs,
# of the second by its inputs, so that a pair needs one sum over the tensor axis.
FIRST, SECOND = ("fsdp", "tensor"), ("tensor", "fsdp")
SPECS = {
    "embed/embedding": SECOND,
    "head/kernel": FIRST,
    "attention/query/kernel": FIRST,
    "attention/key/kernel": FIRST,
    "attention/value/kernel": FIRST,
    "attention/out/kernel": SECOND,
    "mlp/gate/kernel": FIRST,
    "mlp/up/kernel": FIRST,
    "mlp/down/kernel": SECOND,
}


@checked()
def llama_specs(
    model: Llama, *, fsdp: str | None = "fsdp", tensor: str | None = "tensor"
) -> dict[str, PartitionSpec]:
    """How each parameter of a `Llama` is sharded, by path.

    Tensor parallelism splits the heads of attention, the units of the feed-forward networks and the
    vocabulary; fully sharded data parallelism splits the other axis of every matrix. Norms, and the
    axis of the layers of a model that scans, are not split.

    Args:
      model: The model, with values or without.
      fsdp: The mesh axis over which data and parameters are sharded; None for no such axis.
      tensor: The mesh axis of tensor parallelism; None for no such axis.

    Raises:
      ValueError: If the model is compressed.

    Reference:
      Shoeybi et al., Megatron-LM, 2019 (arXiv 1909.08053); Zhao et al., PyTorch FSDP, 2023 (arXiv
      2304.11277).

    Example:
      >>> import sparsejax as sj
      >>> from flax import nnx
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=2, heads=4, key_heads=2, head_size=4)
      >>> model = nnx.eval_shape(lambda: sj.models.Llama(config, rngs=nnx.Rngs(0)))
      >>> tuple(sj.models.llama_specs(model)["layers/1/mlp/down/kernel"])
      ('tensor', 'fsdp')
    """
    names = {"fsdp": fsdp, "tensor": tensor}

    def spec(path: str) -> PartitionSpec:
        name, layers = inside(path, model.config.layers, model.scan)
        outside = layers == [None]
        if name not in (OUTSIDE if outside else LAYER):
            raise ValueError(
                f"llama_specs: {path} is not a parameter of a dense Llama; shard the model before "
                "it is compressed, or the columns of a matrix by sj.formats.shard_columns."
            )
        axes = [names[axis] for axis in SPECS.get(name, ())]
        return PartitionSpec(*[None] * (model.scan and not outside), *axes)

    params = nnx.as_pure(nnx.state(model, nnx.Param))
    return {path: spec(path) for path in named_leaves(params)}


@checked()
def shard_llama(
    model: Llama, mesh: Mesh, *, fsdp: str | None = "fsdp", tensor: str | None = "tensor"
) -> Llama:
    """A copy of a `Llama` with its parameters over the devices of a mesh, as by `llama_specs`.

    `sj.models.perplexity`, `sj.recipes.sequential_prune` and training run on it as on one device;
    the compiler inserts the communication. Sizes that a mesh axis does not divide are not split.

    Args:
      model: A dense model, or an abstract one, whose arrays become abstract with these shardings:
        `sj.load(path, model)` then reads a file into them.
      mesh: A mesh with automatic axes.
      fsdp: As for `llama_specs`.
      tensor: As for `llama_specs`.

    Raises:
      ValueError: If the mesh has no such axis, or explicit axes, or the model is compressed.

    Example:
      >>> import jax, sparsejax as sj
      >>> from flax import nnx
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=2, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> auto = jax.sharding.AxisType.Auto
      >>> mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(auto, auto))
      >>> tuple(sj.models.shard_llama(model, mesh).layers[0].mlp.up.kernel.sharding.spec)
      ('fsdp', 'tensor')
    """
    for axis in filter(None, (fsdp, tensor)):
        if axis not in mesh.shape:
            raise ValueError(
                f"shard_llama: the mesh has the axes {', '.join(mesh.shape)}, and not {axis}; name "
                'them, fsdp="data", or leave one out, tensor=None.'
            )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "shard_llama: the mesh must have automatic axes, over which the compiler shards "
            f"products, got {mesh.axis_types}; make it with axis_types=(AxisType.Auto, ...)."
        )
    specs = llama_specs(model, fsdp=fsdp, tensor=tensor)

    def place(path: str, x: Any, spec: PartitionSpec) -> Any:
        axes = [
            axis if axis and n % mesh.shape[axis] == 0 else None for axis, n in zip(spec, x.shape)
        ]
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.device_put(x, sharding)

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, map_named(place, params, specs), jax.tree.map(lambda x: x, rest))
