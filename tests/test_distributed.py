"""The same results on one process and on two that share the parameters."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import sparsejax as sj
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sparsejax.contrib import sara
from sparsejax.recipes import iterative_prune, train_masked

process, processes, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
assert jax.process_count() == processes and jax.device_count() == 4 * processes
rng = np.random.default_rng(0)
host = {"a": {"kernel": rng.normal(size=(64, 32)).astype(np.float32)},
        "b": {"kernel": np.round(rng.normal(size=(32, 64)), 1).astype(np.float32)}}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
LEAVES = ("a", "b")
key = jax.random.key(3)

def mesh_of(kind):
    return jax.make_mesh((jax.device_count(),), ("x",), axis_types=(KINDS[kind],))

def spread(kind, spec=P("x")):
    sharding = NamedSharding(mesh_of(kind), spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), host)

def whole(tree):
    sharding = NamedSharding(mesh_of("auto"), P())
    tree = jax.jit(lambda m: m, out_shardings=sharding)(tree)
    return {leaf: np.asarray(tree[leaf]["kernel"].addressable_data(0)) for leaf in LEAVES}

def loss(p, *_):
    return sum(jnp.sum((x - .3) ** 2) for x in jax.tree.leaves(p))

def masks(found):
    params = spread("auto")
    plans = {
        "erk": sj.plan(host, sj.Unstructured(0.9), allocate=sj.masks.erk),
        "global": sj.plan(host, sj.Unstructured(0.8), allocate=sj.masks.joint),
        "nm": sj.plan(host, sj.NM(2, 4)),
        "block": sj.plan(host, sj.Block((8, 8), 0.75)),
    }
    for name, plan in plans.items():
        made = jax.jit(lambda p: plan.masks(sj.masks.magnitude(p)))(params)
        found |= {f"{name}_{leaf}": x for leaf, x in whole(made).items()}
    found["random"] = whole(plans["erk"].masks(sj.masks.random(params, key=key)))["a"]

def gathered(found):
    params = spread("auto")
    plan = sj.plan(params, sj.Block((8, 8), 0.75))
    made = plan.masks(sj.masks.magnitude(params))
    report = sj.report(params, made, plan)
    found["report"] = np.array([report.kept, report["b/kernel"].value_zeros, len(report.findings)])
    path = out + ".safetensors"
    sj.save(path, params)
    found["saved"] = np.asarray(sj.load(path)["b"]["kernel"])

def training(found):
    make = {
        "rigl": lambda plan: sj.optim.rigl(optax.sgd(.1, .9), plan, key=key, end=9, every=2),
        "prune": lambda plan: optax.chain(optax.sgd(.1), sj.optim.prune(plan, every=2)),
    }
    cases = [("rigl", "explicit", P("x")), ("prune", "explicit", P(None, "x"))]
    for name, kind, spec in cases:
        params = spread(kind, spec)
        plan = sj.plan(host, {"a/": sj.Unstructured(0.75), "b/": sj.Block((4, 4), .5)})
        tx = make[name](plan)
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(5):
            params, state = step(params, state)
        made = sj.get_masks(state)
        for a, b in zip(*map(jax.tree.leaves, (made, params))):
            assert a.sharding.is_equivalent_to(b.sharding, 2)
        found |= {f"{name}_{leaf}": x for leaf, x in whole(made).items()}

def procedures(found):
    params = spread("auto")
    plan = sj.plan(host, sj.Unstructured(0.5))
    saved = []
    tune = lambda **more: sara.sara(params, loss, key=key, theta=.3, steps=4, learning_rate=.01,
                                    progressive_step=2, chunk=1, **more)
    state = tune(callback=saved.append)
    again = tune(resume=saved[1])
    found["sara"] = np.asarray(state.values["a"]["kernel"])
    np.testing.assert_array_equal(found["sara"], np.asarray(again.values["a"]["kernel"]))
    train = lambda p, m, key: train_masked(
        p, m, loss, optax.sgd(.1), {"x": np.ones((4, 1))}, steps=2, key=key)
    pruned = []
    ran = lambda **more: iterative_prune(params, train, plan, key=key, rounds=2, **more)
    done = ran(callback=pruned.append)
    found |= {f"iterative_{leaf}": x for leaf, x in whole(done.params).items()}
    again = whole(ran(resume=pruned[1]).params)
    assert all((again[leaf] == found[f"iterative_{leaf}"]).all() for leaf in LEAVES)
    geometry = sj.recipes.soup_geometry([params, done.params])
    found["geometry"] = np.array([round(x, 2) for x in geometry.values()])
    few = sj.optim.subset(optax.sgd(.1, .9), done.masks, compact=True).init(params)
    found["subset"] = np.array([x.size for x in jax.tree.leaves(optax.tree.get(few, "trace"))])
    found["similarity"] = np.array(sj.metrics.mask_similarity(pruned[1].masks, done.masks))
    blocks = sj.compress(params, sj.plan(params, sj.Block((8, 8), 0.75)))["a"]["kernel"]
    blocks.validate()
    found["block"] = sj.formats.to_scipy(blocks).indices
    X, y = params["a"]["kernel"], params["a"]["kernel"][:, 0] + params["a"]["kernel"][:, 1]
    found["lasso"] = np.abs(np.asarray(sj.solve.lasso(X, y, .1).value)) > 1e-3

found = {}
globals()[sys.argv[5]](found)
np.savez(out, **found)
"""


def start(folder: pathlib.Path, part: str, processes: int) -> list[dict[str, np.ndarray]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = folder / "program.py"
    script.write_text(PROGRAM)
    outs = [folder / f"{processes}_{i}.npz" for i in range(processes)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    running = [
        subprocess.Popen(
            [sys.executable, script, str(i), str(processes), str(port), out, part],
            env=environment,
        )
        for i, out in enumerate(outs)
    ]
    try:
        assert [p.wait(timeout=180) for p in running] == [0] * processes
    finally:
        for p in running:
            p.kill()
    return [dict(np.load(out)) for out in outs]


# Each part starts three processes.
@pytest.mark.slow
@pytest.mark.parametrize("part", ["masks", "gathered", "training", "procedures"])
def test_two_processes_find_what_one_finds(part, tmp_path):
    (alone,) = start(tmp_path, part, 1)
    for found in start(tmp_path, part, 2):
        assert set(found) == set(alone)
        for name, array in found.items():
            np.testing.assert_array_equal(array, alone[name], err_msg=name)
    if part == "masks":
        assert alone["erk_a"].sum() + alone["erk_b"].sum() == 4096 - round(4096 * 0.9)
