"""Training of sparse autoencoders: sparse against dense gradients, many in one pass, its parts.

    python -m benchmarks sae

Steps are those of `sj.sae.train_step` and of the same model written plainly: `lax.top_k`, a
scatter, `f @ W_dec` and `jax.grad`; a ratio above 1 means that `sj.sae` is faster. Steps of eight
autoencoders in one program, by `jax.vmap` and by `jax.lax.map`, are timed over eight steps of one.
Collecting the activations of a layer is timed over the forward pass of the model. If the variable
SAE_TORCH_PYTHON names an interpreter with `pip install sae-lens`, steps of PyTorch are timed too.
"""

import json
import os
import pathlib
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import sparsejax as sj
from benchmarks._report import save, table_of

ADAM = optax.adam(1e-3)
SHAPE = (4096, 576, 16384, 32)  # tokens, width, latents, active
MANY = (1024, 128, 1024, 8)


def plain_step(x, k):
    """One step of Adam with dense features."""

    def loss(p):
        z = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        values, index = lax.top_k(z, k)
        rows = jnp.arange(len(x))[:, None]
        f = jnp.zeros_like(z).at[rows, index].set(jax.nn.relu(values))
        return jnp.mean(jnp.sum((f @ p["W_dec"] + p["b_dec"] - x) ** 2, -1))

    @jax.jit
    def step(p, state):
        updates, state = ADAM.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    return step


def steps(shape, rounds):
    """Seconds of a step, sparse and plain, and the difference of the parameters after one."""
    n, d, h, k = shape
    x = jax.random.normal(jax.random.key(0), (n, d))
    sae = sj.sae.SAE(sj.sae.TopK(k), sparse=True)
    params = sae.init(d, h, key=jax.random.key(1))
    carry, state, plain = sj.sae.begin(sae, params, ADAM), ADAM.init(params), plain_step(x, k)
    seconds = sj.kernels.measure(
        {
            "sparse": lambda: sj.sae.train_step(sae, ADAM, carry, x),
            "plain": lambda: plain(params, state),
        },
        rounds,
    )
    a, b = sj.sae.train_step(sae, ADAM, carry, x).params, plain(params, state)[0]
    error = max(float(jnp.abs(a[name] - b[name]).mean()) for name in params)
    return seconds["sparse"], seconds["plain"], error


def parts(shape, rounds):
    """Seconds of top-k and of decoding, apart."""
    n, d, h, k = shape
    z = jax.random.normal(jax.random.key(0), (n, h))
    rows = jax.random.normal(jax.random.key(1), (h, d))
    values, index = lax.top_k(z, k)
    f = jnp.zeros_like(z).at[jnp.arange(n)[:, None], index].set(values)
    topk = jax.jit(lambda z: lax.top_k(z, k))
    sparse, dense = jax.jit(sj.sae.decode), jax.jit(lambda f, w: f @ w)
    return sj.kernels.measure(
        {
            "top-k": lambda: topk(z),
            "sparse": lambda: sparse(index, values, rows),
            "dense": lambda: dense(f, rows),
        },
        rounds,
    )


def many(shape, rounds):
    """Seconds of a step of eight by vmap, by map, and of one."""
    n, d, h, k = shape
    x = jax.random.normal(jax.random.key(0), (n, d))
    sae = sj.sae.SAE(sj.sae.TopK(k), constraint=sj.optim.unit_norm)
    start = lambda key: sj.sae.begin(sae, sae.init(d, h, key=key), ADAM)  # noqa: E731
    keys = jax.random.split(jax.random.key(1), 8)
    one, eight = start(keys[0]), jax.vmap(start)(keys)
    step = lambda carry: sj.sae.train_step(sae, ADAM, carry, x)  # noqa: E731
    together, mapped = jax.jit(jax.vmap(step)), jax.jit(lambda carries: lax.map(step, carries))
    seconds = sj.kernels.measure(
        {
            "vmap": lambda: together(eight),
            "map": lambda: mapped(eight),
            "one": lambda: step(one),
        },
        rounds,
    )
    return seconds["vmap"], seconds["map"], seconds["one"]


def collection(rounds, layers=8):
    """Seconds of forward passes, and of those whose last activations are collected."""
    config = sj.models.LlamaConfig(
        vocabulary=8192, width=256, hidden=1024, layers=layers, heads=4, key_heads=2, head_size=64
    )
    model = sj.models.Llama(config, rngs=nnx.Rngs(0))
    batches = [jax.random.randint(jax.random.key(i), (8, 128), 0, 8192) for i in range(4)]
    forward = jax.jit(lambda ids: model.features(ids)[0])
    found = {"forward": [], "collect": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for ids in batches:
            np.asarray(forward(ids))
        found["forward"].append(time.perf_counter() - start)
        stream = sj.sae.collect(model, rf"layers/{layers - 1}$", [batches[0], *batches])
        next(stream)  # compiles
        start = time.perf_counter()
        for _ in stream:
            pass
        found["collect"].append(time.perf_counter() - start)
    return {name: float(np.median(times[1:])) for name, times in found.items()}


def torch_rows(shapes, ours, rounds):
    """Steps of PyTorch over those of `sj.sae`, in the environment that holds it."""
    script = str(pathlib.Path(__file__).with_name("_sae_torch.py"))
    for shape, sparse in zip(shapes, ours):
        command = [os.environ["SAE_TORCH_PYTHON"], script, *map(str, shape), str(rounds)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        version = found.pop("version")
        for name, seconds in found.items():
            label = f"{name} (torch {version.split('+')[0]})"
            yield (
                label,
                "x".join(map(str, shape)),
                f"{shape[0] / seconds:,.0f}",
                f"{seconds / sparse:.2f}",
            )


def main(quick: bool = False) -> None:
    rounds = 2 if quick else 7
    shapes = [(512, 128, 4096, 16)] if quick else [SHAPE, (4096, 576, 16384, 64)]
    rows, ours = [], []
    for shape in shapes:
        sparse, plain, error = steps(shape, rounds)
        ours.append(sparse)
        part = parts(shape, rounds)
        rows.append(
            (
                "x".join(map(str, shape)), f"{shape[0] / sparse:,.0f}", f"{shape[0] / plain:,.0f}",
                f"{plain / sparse:.2f}", f"{part['dense'] / part['sparse']:.1f}",
                f"{part['top-k'] / plain:.0%}", f"{error:.0e}", plain / sparse >= 2,
            )
        )  # fmt: skip
    columns = ("tokens x width x latents x active", "tokens/s", "plain tokens/s", "ratio",
               "decode ratio", "top-k / plain step", "difference")  # fmt: skip
    training = table_of(
        "A training step of a top-k autoencoder, float32", columns, rows, "Goal: 2."
    )
    sizes = [(256, 64, 512, 4)] if quick else [MANY, (256, 64, 512, 4), (4096, 64, 1024, 8)]
    found = []
    for size in sizes:
        *both, one = many(size, rounds)
        shares = [f"{eight / (8 * one):.2f}" for eight in both]
        found.append(("x".join(map(str, size)), *shares, both[0] <= 5.6 * one))
    together = table_of(
        "A step of eight autoencoders over eight steps of one",
        ("tokens x width x latents x active", "vmap", "map"),
        found,
        "Goal: 0.7 by vmap.",
    )
    took = collection(rounds)
    share = took["collect"] / took["forward"] - 1
    collecting = table_of(
        "Activations of the last layer of a model of 8 layers, 4096 tokens",
        ("forward pass", "collect", "more"),
        [(f"{took['forward']:.2f} s", f"{took['collect']:.2f} s", f"{share:+.0%}", share <= 0.15)],
        "Goal: at most 15 % more.",
    )
    tables = [training, together, collecting]
    if "SAE_TORCH_PYTHON" in os.environ:
        title = "Steps of PyTorch over those of sj.sae"
        columns = ("step", "tokens x width x latents x active", "tokens/s", "sj.sae is faster by")
        tables.append(table_of(title, columns, list(torch_rows(shapes, ours, rounds))))
    save("sae-cpu", *tables, quick=quick, seed=0)
