"""The same masks on one process and on two that share the parameters."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
import sparsejax as sj

process, processes, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
assert jax.process_count() == processes and jax.device_count() == 4 * processes
mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
host = {"a": {"kernel": rng.normal(size=(64, 32)).astype(np.float32)},
        "b": {"kernel": np.round(rng.normal(size=(32, 64)), 1).astype(np.float32)}}
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
params = jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), host)
plans = {
    "erk": sj.plan(host, sj.Unstructured(0.9), allocate=sj.masks.erk),
    "global": sj.plan(host, sj.Unstructured(0.8), allocate=sj.masks.joint),
    "nm": sj.plan(host, sj.NM(2, 4)),
    "block": sj.plan(host, sj.Block((8, 8), 0.75)),
}
replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
found = {}
for name, plan in plans.items():
    masks = jax.jit(lambda p: plan.masks(sj.masks.magnitude(p)))(params)
    whole = jax.jit(lambda m: m, out_shardings=replicated)(masks)
    for leaf in ("a", "b"):
        found[f"{name}_{leaf}"] = np.asarray(whole[leaf]["kernel"].addressable_data(0))
random = jax.jit(lambda p: plans["erk"].masks(sj.masks.random(p, key=jax.random.key(3))),
                 out_shardings=replicated)(params)
found["random"] = np.asarray(random["a"]["kernel"].addressable_data(0))
np.savez(out, **found)
"""


def start(folder: pathlib.Path, processes: int) -> list[dict[str, np.ndarray]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = folder / "program.py"
    script.write_text(PROGRAM)
    outs = [folder / f"{processes}_{i}.npz" for i in range(processes)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    running = [
        subprocess.Popen(
            [sys.executable, script, str(i), str(processes), str(port), out], env=environment
        )
        for i, out in enumerate(outs)
    ]
    try:
        assert [p.wait(timeout=180) for p in running] == [0] * processes
    finally:
        for p in running:
            p.kill()
    return [dict(np.load(out)) for out in outs]


@pytest.mark.parametrize("processes", [2])
def test_two_processes_make_the_masks_of_one(tmp_path, processes):
    (alone,) = start(tmp_path, 1)
    for found in start(tmp_path, processes):
        assert set(found) == set(alone)
        for name, mask in found.items():
            np.testing.assert_array_equal(mask, alone[name], err_msg=name)
    assert alone["erk_a"].sum() + alone["erk_b"].sum() == 4096 - round(4096 * 0.9)
