"""A training step with `prune` in the chain over the same step without it.

    python -m benchmarks training_step

Between two updates of the masks (`every` large) and with an update at each step, for a network of
matrices whose optimizer step matters (small batch) and for a usual batch.
"""

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from benchmarks._report import save, table_of

WIDTHS = (2048, 4096, 4096, 2048)


def network(key, widths):
    keys = jax.random.split(key, len(widths))
    return {
        f"layer_{i}": {"kernel": jax.random.normal(keys[i], (m, n)) / m**0.5, "bias": jnp.zeros(n)}
        for i, (m, n) in enumerate(zip(widths, widths[1:]))
    }


def loss(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return jnp.mean((x - 1) ** 2)


class Run:
    """A donated training step that keeps its own parameters and state."""

    def __init__(self, tx, params, x):
        self.params = jax.tree.map(jnp.copy, params)  # donated
        self.state, self.x = tx.init(self.params), x

        def step(params, state, x):
            updates, state = tx.update(jax.grad(loss)(params, x), state, params)
            return optax.apply_updates(params, updates), state

        self.step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, self.x)
        return self.params


def main(quick: bool = False) -> None:
    widths, batches = ((512, 1024, 512), (32,)) if quick else (WIDTHS, (32, 256))
    plans = {
        "unstructured 90 %": sj.Unstructured(0.9),
        "2:4": sj.NM(2, 4),
        "block 32, 90 %": sj.Block((32, 32), 0.9),
    }
    params = network(jax.random.key(0), widths)
    rows = []
    for batch in batches:
        x = jax.random.normal(jax.random.key(1), (batch, widths[0]))
        runs = {"plain": Run(optax.adamw(1e-3), params, x)}
        for name, pattern in plans.items():
            plan = sj.plan(params, pattern)
            for every in (10**6, 50, 1):
                tx = optax.chain(optax.adamw(1e-3), sj.optim.prune(plan, every=every))
                runs[f"{name}, every={every}"] = Run(tx, params, x)
        times = sj.kernels.measure(runs, rounds=2 if quick else 12, seconds=0.05 if quick else 0.2)
        for name in list(runs)[1:]:
            seconds = times[name]
            label, every = name.split(", every=")
            ratio = seconds / times["plain"]
            goal = "<= 1.05" if every == "1000000" else ""
            every = "never" if every == "1000000" else every
            rows.append(
                [
                    label,
                    batch,
                    every,
                    f"{seconds * 1e3:.1f}",
                    f"{times['plain'] * 1e3:.1f}",
                    f"{ratio:.3f}",
                    goal,
                    not goal or ratio <= 1.05,
                ]
            )
    size = sum(x.size for x in jax.tree.leaves(params))
    table = table_of(
        f"AdamW step of {size / 1e6:.1f} M parameters with prune over the plain step",
        ["pattern", "batch", "mask updates every", "with (ms)", "plain (ms)", "ratio", "goal"],
        rows,
    )
    save("training-step-cpu", table, quick=quick, seed=(0, 1))
