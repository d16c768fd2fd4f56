"""Fine-tuning of the smallest weights: memory of a step, and adaptation of a small diffusion model.

    python -m benchmarks sara

Memory: arguments + outputs - aliases + temporaries of the compiled step, over the bytes of the
parameters. Adaptation (2409.06633 at a small size): a denoiser of 8 x 8 digits 0 to 7 is fine-tuned
on 60 rotated digits 8 and 9.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparsejax as sj
from benchmarks._report import save, table_of
from sparsejax.contrib import sara
from sparsejax.contrib.sara import gather_values, indices_of, select_gradients, write_back

LAYERS, WIDTH, BATCH = 12, 1024, 64


def bytes_of(step, *args, donate) -> float:
    """What the step holds, in units of the parameters' bytes."""
    found = jax.jit(step, donate_argnums=donate).lower(*args).compile().memory_analysis()
    total = found.argument_size_in_bytes + found.output_size_in_bytes
    total += found.temp_size_in_bytes - found.alias_size_in_bytes
    return total / (4 * LAYERS * WIDTH**2)


# Without the policy the scan would stack a copy of the weights for the backward pass.
@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
def tapped(x, given):
    return jnp.tanh(x @ select_gradients(*given)), None


def deep(stacked, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]


def memory_table():
    adam = optax.adamw(1e-3)
    w = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    x = jnp.ones((BATCH, WIDTH))

    def dense(w, state, x):
        grads = jax.grad(lambda w: jnp.sum(deep(w, x) ** 2))(w)
        updates, state = adam.update(grads, state, w)
        return optax.apply_updates(w, updates), state

    rows = [["dense AdamW", "1.00", bytes_of(dense, w, adam.init(w), x, donate=(0, 1))]]
    for fraction in (0.05, 0.1, 0.2):
        masks = [sara.below_threshold(layer, fraction=fraction) for layer in w]
        found = [np.asarray(indices_of(m)) for m in masks]
        longest = max(map(len, found))
        padded = [np.pad(i, (0, longest - len(i)), constant_values=WIDTH**2) for i in found]
        at = jnp.asarray(np.stack(padded))
        values = jax.vmap(gather_values)(w, at)

        def sparse(w, values, state, at, x):
            def loss(values):
                return jnp.sum(jax.lax.scan(tapped, x, (w, values, at))[0] ** 2)

            updates, state = adam.update(jax.grad(loss)(values), state, values)
            values = optax.apply_updates(values, updates)
            # One array for all layers is written in place; padding stays out of range.
            first = WIDTH**2 * jnp.arange(LAYERS)[:, None]
            flat = jnp.where(at == WIDTH**2, w.size, at + first).reshape(-1)
            return write_back(w, values.reshape(-1), flat), values, state

        args = (w, values, adam.init(values), at, x)
        share = values.size / w.size
        rows.append([f"{fraction:.0%} selected", f"{share:.2f}",
                     bytes_of(sparse, *args, donate=(0, 1, 2))])  # fmt: skip
    whole = rows[0][2]
    cells = [[n, s, f"{b:.2f}", f"{b / whole:.2f}"] for n, s, b in rows]
    tenth = rows[2][2] / whole
    claim = ["memory of a step at 10 % over dense (goal 0.45)", f"{tenth:.2f}", tenth <= 0.45]
    title = f"memory of a step, {LAYERS} x {WIDTH} x {WIDTH} in a scan, batch {BATCH}"
    return table_of(
        title, ["trained", "moments", "times the parameters", "over dense"], cells
    ), claim


def denoiser(params, x, t):
    h = jnp.concatenate([x, t[:, None]], -1)
    for name in ("a", "b"):
        h = jax.nn.silu(h @ params[name]["kernel"] + params[name]["bias"])
    return h @ params["c"]["kernel"] + params["c"]["bias"]


def initial(key):
    sizes = {"a": (65, 96), "b": (96, 96), "c": (96, 64)}
    return {
        n: {"kernel": jax.random.normal(k, s) / np.sqrt(s[0]), "bias": jnp.zeros(s[1])}
        for (n, s), k in zip(sizes.items(), jax.random.split(key, 3))
    }


def denoising_loss(params, data, key, size=128):
    """The mean squared error of the noise, with the cosine schedule."""
    rows, time, noise = jax.random.split(key, 3)
    x = data[jax.random.randint(rows, (size,), 0, len(data))]
    t = jax.random.uniform(time, (size,))
    alpha = jnp.cos(t * np.pi / 2)[:, None]
    e = jax.random.normal(noise, x.shape)
    return jnp.mean((denoiser(params, alpha * x + jnp.sqrt(1 - alpha**2) * e, t) - e) ** 2)


def train(params, data, steps, key):
    tx = optax.adamw(1e-3)

    def step(carry, key):
        params, state = carry
        grads = jax.grad(denoising_loss)(params, data, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda c, k: jax.lax.scan(step, c, k)[0][0])
    return run((params, tx.init(params)), jax.random.split(key, steps))


def data_sets():
    digits = load_digits()
    x = (digits.data / 8 - 1).astype(np.float32)
    turned = np.rot90(x.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    few, source = turned[digits.target >= 8], x[digits.target < 8]
    return jnp.asarray(source[:1100]), jnp.asarray(source[1100:]), few[:60], jnp.asarray(few[60:])


def evaluate(params, data) -> float:
    keys = jax.random.split(jax.random.key(99), 20)
    return float(jax.vmap(lambda k: denoising_loss(params, data, k, 512))(keys).mean())


def nuclear_of(params, indices) -> float:
    total = 0.0
    for name in ("a", "b"):
        w, at = params[name]["kernel"], indices[name]["kernel"]
        chosen = jnp.zeros(w.size).at[at].set(w.reshape(-1)[at]).reshape(w.shape)
        total += float(jnp.linalg.svdvals(chosen).sum())
    return total


def adaptation_table(seeds, steps, tuning_steps):
    source, source_test, target, target_test = data_sets()
    target = jnp.asarray(target)
    found: dict[str, list] = {}
    for seed in range(seeds):
        start = train(initial(jax.random.key(seed)), source, steps, jax.random.key(10 + seed))
        key = jax.random.key(20 + seed)
        full = train(start, target, tuning_steps, key)

        def tune(fraction, strength, start=start, key=key):
            return sara.sara(
                start, lambda p, k: denoising_loss(p, target, k), key=key, fraction=fraction,
                steps=tuning_steps, learning_rate=1e-3, progressive_step=None,
                rank_strength=strength, rank_of_all=True,
            )  # fmt: skip

        states = {f"SaRA {f:.0%}, lambda {s:g}": tune(f, s)
                  for f, s in ((0.1, 0.0), (0.2, 0.0), (0.2, 1e-2))}  # fmt: skip
        plain = states["SaRA 20%, lambda 0"].indices
        models = {"pre-trained": start, "full fine-tuning": full}
        models |= {name: state.params for name, state in states.items()}
        smallest = sara.below_threshold(start, fraction=0.1)
        cut = sj.masks.apply_masks(start, jax.tree.map(jnp.logical_not, smallest))
        models["smallest 10 % zeroed"] = cut
        for name, params in models.items():
            row = [evaluate(params, target_test), evaluate(params, source_test),
                   nuclear_of(params, plain)]  # fmt: skip
            found.setdefault(name, []).append(row)
    mean = {name: np.mean(rows, 0) for name, rows in found.items()}
    rows = [[name, *(f"{v:.4f}" for v in m)] for name, m in mean.items()]
    columns = ["model", "target loss", "source loss", "nuclear norm of what 20 % selects"]
    before, after = mean["pre-trained"], mean["full fine-tuning"]
    tuned, ranked = mean["SaRA 20%, lambda 0"], mean["SaRA 20%, lambda 0.01"]
    closed = (before[0] - tuned[0]) / (before[0] - after[0])
    zeroed = mean["smallest 10 % zeroed"][1] / before[1]
    claims = [
        ["loss with the smallest 10 % zeroed over before (goal 1.03)", f"{zeroed:.4f}",
         bool(zeroed <= 1.03)],
        ["gap closed with 20 % of the weights (goal 0.75)", f"{closed:.2f}", bool(closed >= 0.75)],
        ["forgets less than full fine-tuning", f"{tuned[1]:.4f} / {after[1]:.4f}",
         bool(tuned[1] < after[1])],
        ["nuclear norm without over with the term (goal 10)", f"{tuned[2] / ranked[2]:.1f}",
         bool(tuned[2] >= 10 * ranked[2])],
    ]  # fmt: skip
    return table_of(f"a denoiser of digits, {seeds} seeds", columns, rows), claims


def main(quick: bool = False) -> None:
    seeds, steps, tuning_steps = (1, 200, 50) if quick else (3, 3000, 400)
    memory, claim = memory_table()
    adaptation, claims = adaptation_table(seeds, steps, tuning_steps)
    claimed = table_of("claims", ["claim", "measured"], [claim, *claims])
    save("sara", memory, adaptation, claimed, quick=quick, seed=range(seeds))
