"""Compatibility with the Mosaic GPU of different JAX releases."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ._table import lowering_for


def kernel(body: Any, *, lanes: bool = False, **arguments: Any) -> Any:
    """`plgpu.kernel` with explicit lowering semantics: of warpgroups, or of single lanes."""
    semantics = plgpu.LoweringSemantics.Lane if lanes else plgpu.LoweringSemantics.Warpgroup
    params = plgpu.CompilerParams(lowering_semantics=semantics)
    return plgpu.kernel(body, compiler_params=params, **arguments)


def transposed(ref: Any) -> Any:
    """A view of a matrix in shared memory with its axes exchanged."""
    if jax.__version_info__ < (0, 11):
        return plgpu.transpose_ref(ref, (1, 0))
    return ref.transpose((1, 0))


def vector(ref: Any, start: Any, size: int, axis: int) -> Any:
    """Loads part of a vector, in the layout of a product summed over `axis`."""
    how = {"layout": plgpu.Layout.WGMMA.reduce(axis), "optimized": False}
    if jax.__version_info__ < (0, 11):
        return plgpu.load(ref, (pl.ds(start, size),), **how)  # pyright: ignore
    return plgpu.load(ref.at[pl.ds(start, size)], **how)


@contextlib.contextmanager
def hopper() -> Iterator[None]:
    """Lowers for an H200 without the device."""
    device = jax.sharding.AbstractDevice
    try:
        kind = device(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    except TypeError:
        kind = device(device_kind="NVIDIA H200", num_cores=132)  # pyright: ignore[reportCallIssue]
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
    with lowering_for("gpu"), jax.sharding.use_abstract_mesh(mesh):
        yield


# XLA's description of an H200.
_H200 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
device_description_str: "NVIDIA H200" """


def compile_for_hopper(f: Callable[..., Any], *args: Any) -> Any:
    """Compiles for an H200 without one, down to machine code; needs the CUDA plugin.

    Detects errors that lowering does not: too many registers, too much shared memory, layouts
    without an instruction. Set `JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1` and `JAX_PLATFORMS=cpu,cuda` in
    the environment before JAX is loaded.
    """
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shape_of(a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)

    with hopper():
        lowered = jax.jit(f).trace(*jax.tree.map(shape_of, args)).lower()
    return lowered.compile()
