"""Training of sparse autoencoders: sparse against dense gradients, many in one pass, its parts.

    python -m benchmarks sae

Steps are those of `sj.sae.train_step` and of the same model written plainly: `lax.top_k`, a
scatter, `f @ W_dec` and `jax.grad`; a ratio above 1 means that `sj.sae` is faster. Steps of eight
autoencoders in one program, by `jax.vmap` and by `jax.lax.map`, are timed over eight steps of one.
"""

import jax
import jax.numpy as jnp
import optax
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


def main(quick: bool = False) -> None:
    rounds = 2 if quick else 7
    shapes = [(512, 128, 4096, 16)] if quick else [SHAPE, (4096, 576, 16384, 64)]
    rows = []
    for shape in shapes:
        sparse, plain, error = steps(shape, rounds)
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
    save("sae-cpu", training, together, quick=quick, seed=0)
