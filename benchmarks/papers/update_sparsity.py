"""Which weights fine-tuning changes: reinforcement learning against supervised, on digits.

    python -m benchmarks update_sparsity

The experiment of 2505.11711 at a small size. A network pre-trained on 400 digits is fine-tuned by
policy gradients, on its own answers (in distribution) and on shifted labels (out of distribution),
with the same optimizer in float32. What is compared are bfloat16 copies, as public checkpoints are.
Then the run is repeated inside the mask of what it changed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._digits import digits
from benchmarks._report import save, table_of
from sparsejax.contrib import update_sparsity

BATCH = 64


def network(params, x):
    for name in ("a", "b"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["c"]["kernel"] + params["c"]["bias"]


def initial(key):
    sizes = {"a": (64, 128), "b": (128, 128), "c": (128, 10)}
    return {
        name: {
            "kernel": jax.random.normal(k, size) * np.sqrt(2 / size[0]),
            "bias": jnp.zeros(size[1]),
        }
        for (name, size), k in zip(sizes.items(), jax.random.split(key, 3))
    }


def cross_entropy(params, x, labels):
    logits = network(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def policy_loss(params, start, x, y, key):
    """Group-normalised rewards of 8 answers an image, and 0.04 KL to the start."""
    logits, old = jax.nn.log_softmax(network(params, x)), jax.nn.log_softmax(network(start, x))
    answers = jax.random.categorical(key, jax.lax.stop_gradient(logits), shape=(8, len(x)))
    reward = (answers == y).astype(jnp.float32)
    advantage = (reward - reward.mean(0)) / (reward.std(0) + 1e-4)
    chosen = jnp.take_along_axis(logits[None], answers[..., None], -1)[..., 0]
    kl = jnp.sum(jnp.exp(logits) * (logits - old), -1).mean()
    return -jnp.mean(advantage * chosen) + 0.04 * kl


def run(kind, start, x, y, key, rate, steps, masks=None):
    """Fine-tunes, always clipping with the norm of the full gradient."""
    adam = optax.adam(rate)
    inner = adam if masks is None else sj.optim.subset(adam, masks)
    tx = optax.chain(optax.clip_by_global_norm(1.0), inner)
    own = jnp.argmax(network(start, x), -1)
    labels = {"in": own, "out": (y + 1) % 10}

    def step(carry, key):
        params, state = carry
        pick, sample = jax.random.split(key)
        rows = jax.random.randint(pick, (BATCH,), 0, len(x))

        def loss(p):
            if kind == "rl":
                return policy_loss(p, start, x[rows], y[rows], sample)
            return cross_entropy(p, x[rows], labels[kind][rows])

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda c, k: jax.lax.scan(step, c, k)[0][0])
    return train((start, tx.init(start)), jax.random.split(key, steps))


def stored(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def main(quick: bool = False) -> None:
    steps = 40 if quick else 400
    x, y, test_x, test_y = digits()
    start = initial(jax.random.key(0))
    tx = optax.adam(1e-3)

    def pretrain(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, 400)
        grads = jax.grad(cross_entropy)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 600)
    (start, _), _ = jax.lax.scan(pretrain, (start, tx.init(start)), keys)
    rest = slice(400, None)
    rows, shares, tuned = [], {}, {}
    for rate in (1e-6, 3e-6, 1e-5):
        for kind in ("rl", "in", "out"):
            after = run(kind, start, x[rest], y[rest], jax.random.key(2), rate, steps)
            tuned[rate, kind] = after
            shares[rate, kind] = update_sparsity.update_sparsity(stored(start), stored(after)).total
        ranks = update_sparsity.update_rank(start, tuned[rate, "rl"]).values()
        single = update_sparsity.update_sparsity(start, tuned[rate, "rl"], 0.0).total
        found = [shares[rate, kind] for kind in ("rl", "in", "out")] + [single, np.mean([*ranks])]
        rows.append([f"{rate:g}", *(f"{v:.3f}" for v in found)])
    columns = ["rate", "RL", "own answers", "shifted labels", "RL in float32", "rank of RL"]
    first = table_of(f"share of bfloat16 copies unchanged after {steps} steps", columns, rows)

    rate = 3e-6
    full = tuned[rate, "rl"]
    again = run("rl", start, x[rest], y[rest], jax.random.key(3), rate, steps)
    overlap = update_sparsity.update_overlap(stored(start), stored(full), stored(again))
    mask = sj.masks.update_mask(stored(start), stored(full))
    shuffle = lambda m: jax.random.permutation(jax.random.key(4), m.ravel()).reshape(m.shape)  # noqa: E731
    chance = jax.tree.map(shuffle, mask)
    equal, accuracy = {}, {}
    for name, m in (("the mask", mask), ("a random mask", chance)):
        inside = run("rl", start, x[rest], y[rest], jax.random.key(2), rate, steps, m)
        equal[name] = update_sparsity.update_sparsity(stored(inside), stored(full)).total
        accuracy[name] = float((network(inside, test_x).argmax(-1) == test_y).mean())
    accuracy["everything"] = float((network(full, test_x).argmax(-1) == test_y).mean())
    second = table_of(
        f"training inside a mask, rate {rate:g}",
        ["trained", "equal to the full run", "accuracy"],
        [[n, f"{equal.get(n, 1.0):.3f}", f"{a:.4f}"] for n, a in accuracy.items()],
    )
    near = min(shares[1e-6, "rl"], shares[1e-6, "in"]) - shares[1e-6, "out"]
    claims = [
        ["float32 over bfloat16 sparsity of one run", f"{single:.2f} / {shares[1e-6, 'rl']:.2f}",
         bool(single < 0.3 < shares[1e-6, "rl"])],
        ["near data over far data, rate 1e-6 (goal 0.15)", f"{near:.3f}", near >= 0.15],
        ["relative rank (goal 0.9)", rows[0][-1], float(rows[0][-1]) >= 0.9],
        ["overlap of two seeds over chance", f"{overlap.first:.2f} / {overlap.chance_first:.2f}",
         overlap.first > overlap.chance_first],
        ["equal inside the mask over a random one",
         f"{equal['the mask']:.3f} / {equal['a random mask']:.3f}",
         equal["the mask"] > equal["a random mask"] + 0.1],
    ]  # fmt: skip
    claimed = table_of("claims", ["claim", "measured"], claims)
    save("update-sparsity", first, second, claimed, quick=quick, seed=range(5))
