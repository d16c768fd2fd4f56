"""Gradients of LoRA in almost linear time: errors against the norm of the logits, and time.

    python -m benchmarks lora_limits

One head of size 4 of 16 features (2406.03136): tokens and kernels N(0, 1/16), targets N(0, 1), and
the scale of the logits for a largest logit of gamma. Errors in float64, times in float32, best of
three, of forward and backward. The last table is the number of tokens above which the polynomial
takes fewer operations, `k d e / (d + e)`.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib.lora_limits import (
    add_lora,
    attention_gradients,
    attention_norm,
    polynomial_attention,
)

DEGREES = (2, 4, 6)


def head(n, gamma, seed=0):
    """Arguments of `attention_gradients`."""
    rng = np.random.default_rng(seed)
    x, *kernels = (rng.normal(size=s) / 4 for s in ((n, 16), (16, 4), (16, 4), (16, 4)))
    target = rng.normal(size=(n, 4))
    largest = attention_norm(
        (x @ kernels[0])[:, None], (x @ kernels[1])[:, None], scale=1.0, center=False, exact=True
    )
    return [x, *kernels], {"target": target, "scale": gamma / float(largest[0])}


def error(found, exact):
    return float(jnp.linalg.norm(found.q - exact.q) / jnp.linalg.norm(exact.q))


def error_table():
    rows, at = [], {}
    with jax.enable_x64(True):
        for gamma in (0.25, 1.0, 2.0, 4.0, 6.0, 8.0):
            args, more = head(512, gamma)
            exact = attention_gradients(*args, method="exact", **more)
            for center in (False, True):
                at[gamma, center] = [
                    error(attention_gradients(
                        *args, method="polynomial", degree=g, center=center, **more
                    ), exact)
                    for g in DEGREES
                ]  # fmt: skip
            rows.append([f"{gamma:g}", *(f"{e:.1e}" for c in (False, True) for e in at[gamma, c])])
    columns = ["gamma", *(f"degree {g}" for g in DEGREES), *(f"{g}, centred" for g in DEGREES)]
    rise = at[6.0, False][1] / at[1.0, False][1]
    claim = [f"degree 4: error at gamma 6 over that at 1: {rise:.0f} (goal 1000)", rise >= 1000]
    return table_of("relative error of the gradient of Wq, 512 tokens", columns, rows), claim


def seconds(args, more, method):
    call = lambda: attention_gradients(*args, method=method, degree=4, **more)  # noqa: E731
    jax.block_until_ready(call().q)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(call().q)
        times.append(time.perf_counter() - start)
    return min(times)


def time_table(lengths, most):
    rows, found = [], {"exact": {}, "polynomial": {}}
    for n in lengths:
        args, more = head(n, 1.0)
        args = [jnp.asarray(a, jnp.float32) for a in args]
        more["target"] = jnp.asarray(more["target"], jnp.float32)
        for method, limit in (("exact", most), ("polynomial", math.inf)):
            if n <= limit:
                found[method][n] = seconds(args, more, method)
        both = [f"{1e3 * found[m][n]:.1f}" if n in found[m] else "" for m in found]
        ratio = found["exact"][n] / found["polynomial"][n] if n <= most else None
        rows.append([n, *both, "" if ratio is None else f"{ratio:.1f}"])
    at = max(found["exact"])
    args, more = head(at, 1.0)
    wrong = error(*(attention_gradients(*args, method=m, degree=4, **more)
                    for m in ("polynomial", "exact")))  # fmt: skip
    rates = {
        m: float(np.polyfit(np.log(list(t)[-4:]), np.log(list(t.values())[-4:]), 1)[0])
        for m, t in found.items()
    }
    speed_up = found["exact"][at] / found["polynomial"][at]
    claims = [
        [f"exponent of the polynomial {rates['polynomial']:.2f} (goal 1.5)",
         rates["polynomial"] <= 1.5],
        [f"exponent of softmax {rates['exact']:.2f} (at least 1.7)", rates["exact"] >= 1.7],
        [f"speed-up at {at} tokens {speed_up:.1f} (goal 3)", speed_up >= 3],
        [f"relative error there {wrong:.1e} (goal 1e-3)", wrong < 1e-3],
    ]  # fmt: skip
    columns = ["tokens", "softmax, ms", "degree 4, ms", "speed-up"]
    return table_of("gradients of all kernels at gamma 1, float32", columns, rows), claims


def training(steps):
    """Loss curves of LoRA of rank 2 on the kernels of queries and values, by method."""
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (512, 16)) / 4
    frozen = {
        name: {"kernel": jax.random.normal(key, (16, 4)) / 4}
        for name, key in zip(("query", "key", "value"), keys[1:])
    }
    target = jax.random.normal(keys[5], (512, 4)) / 8
    params = add_lora(frozen, 2, where="query|value", key=jax.random.key(1))
    tx = optax.partition({True: optax.adam(1e-2), False: optax.set_to_zero()}, sj.formats.trainable)

    def train(method):
        def loss(p):
            q, k, v = ((x @ p[name]["kernel"])[:, None] for name in ("query", "key", "value"))
            y = polynomial_attention(q, k, v, 4, method=method, scale=0.2)
            norm = attention_norm(q, k, scale=0.2, exact=True)[0]
            return jnp.mean((y[:, 0] - target) ** 2), norm

        def step(carry, _):
            p, state = carry
            (value, norm), grads = jax.value_and_grad(loss, has_aux=True)(p)
            updates, state = tx.update(grads, state, p)
            return (optax.apply_updates(p, updates), state), (value, norm)

        run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])
        return [np.asarray(a, np.float64) for a in run(params)]

    (exact, norms), (found, _) = train("exact"), train("polynomial")
    apart = float(np.abs(found / exact - 1).max())
    rows = [[i, f"{exact[i]:.6f}", f"{found[i]:.6f}", f"{norms[i]:.2f}"]
            for i in range(0, steps, max(steps // 5, 1))]  # fmt: skip
    inside = norms <= 1
    within = float(np.abs(found / exact - 1)[inside].max())
    title = f"loss curves differ by {within:.1e} at gamma <= 1 (goal 1e-2), by {apart:.1e} in all"
    claim = [title, within <= 1e-2]
    columns = ["step", "loss, softmax", "loss, degree 4", "gamma"]
    return table_of("training of the adapters by both gradients", columns, rows), claim


def break_even():
    rows = []
    for d, g in ((4, 4), (16, 2), (32, 2), (64, 2), (64, 4)):
        k = math.comb(d + g, g)
        rows.append([d, g, k, f"{k * d / 2:,.0f}"])
    return table_of("break-even", ["head size", "degree", "features", "tokens"], rows)


def main(quick: bool = False) -> None:
    lengths = (256, 512, 1024) if quick else (512, 1024, 2048, 4096, 8192)
    errors, first = error_table()
    speed, others = time_table(lengths, 1024 if quick else 4096)
    trained, last = training(20 if quick else 100)
    claims = table_of("claims", ["claim"], [first, *others, last])
    save("lora-limits", errors, speed, trained, break_even(), claims, quick=quick, seed=0)
