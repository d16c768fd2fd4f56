"""Cost of a mask update at 10 M entries, over the argsort forms of the known peer.

One-shot masks, and a drop-and-grow step of RigL and of SET at 90 %.

    python -m benchmarks mask_update [--only one_shot]

The peer (jaxpruner, 2024) ranks by two argsorts; its forms are written out plainly below, since it
does not run on current JAX. Masks are compared before anything is timed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks._report import save, table_of


def ranks(scores, axis):
    """Position of each score in the ascending order along an axis."""
    return jnp.argsort(jnp.argsort(scores, axis=axis), axis=axis)


def argsort_unstructured(scores, sparsity):
    """Reversed, so that of equals the lower index is kept."""
    flat = scores.ravel()
    drop = round(flat.size * sparsity)
    return (ranks(flat[::-1], 0)[::-1] >= drop).reshape(scores.shape)


def argsort_nm(scores, n, m):
    """Groups along the contraction, as rows of length m."""
    groups = scores.T.reshape(-1, m)
    keep = ranks(groups[:, ::-1], 1)[:, ::-1] >= m - n
    return keep.reshape(scores.T.shape).T


def argsort_block(scores, size, sparsity):
    """Mean of each block, ranked, and repeated."""
    rows, columns = (s // size for s in scores.shape)
    pooled = scores.reshape(rows, size, columns, size).mean((1, 3))
    keep = argsort_unstructured(pooled, sparsity)
    return jnp.repeat(jnp.repeat(keep, size, 0), size, 1)


CASES = {
    "unstructured 90 %": (sj.Unstructured(0.9), lambda s: argsort_unstructured(s, 0.9)),
    "2:4": (sj.NM(2, 4), lambda s: argsort_nm(s, 2, 4)),
    "4:8": (sj.NM(4, 8), lambda s: argsort_nm(s, 4, 8)),
    "1:16": (sj.NM(1, 16), lambda s: argsort_nm(s, 1, 16)),
    "block 16, 90 %": (sj.Block((16, 16), 0.9), lambda s: argsort_block(s, 16, 0.9)),
}


def argsort_swap(weights, growing, mask, fraction):
    """Drops the active entries of least magnitude and grows as many others, by two rankings."""
    active = jnp.sum(mask)
    swapped = jnp.floor(fraction * active).astype(jnp.int32)
    flat = mask.ravel()
    size = jnp.where(flat, jnp.abs(weights).ravel(), -1)
    # Reversed, so that of equals the lower index is kept.
    kept = ranks(size[::-1], 0)[::-1] >= size.size - (active - swapped)
    candidates = jnp.where(kept, -1, growing.ravel())
    grown = ranks(candidates[::-1], 0)[::-1] >= size.size - swapped
    return (kept | grown).reshape(mask.shape)


def dynamic_steps(w, g):
    """The step of the optimizer that changes masks, ours against the argsort form, by name."""
    params, plan = {"kernel": w}, sj.plan({"kernel": w}, sj.Unstructured(0.9))
    makers = {"RigL, 90 %": sj.optim.rigl, "SET, 90 %": sj.optim.sparse_evolution}
    for name, make in makers.items():
        tx = make(
            optax.sgd(0.1), plan, key=jax.random.key(0), end=10_000, drop_fraction=lambda t: 0.3
        )
        state = tx.init(params)._replace(count=jnp.asarray(100))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 100)

        def ours(w, g, state, tx=tx):
            updates, new = tx.update({"kernel": g}, state, {"kernel": w})
            return w + updates["kernel"], sj.get_masks(new)["kernel"]

        def theirs(w, g, state, name=name, key=key):
            growing = jnp.abs(g)
            if name.startswith("SET"):
                growing = sj.masks.random({"kernel": w}, key=key)["kernel"]
            old = sj.get_masks(state)["kernel"]
            mask = argsort_swap(w, growing, old, 0.3)
            return jnp.where(old & mask, w, 0), mask

        yield name, jax.jit(ours), jax.jit(theirs), (w, g, state)


GOALS = {"unstructured 90 %": 15, "2:4": 80}


def row_of(name, ours, theirs, *args, rounds):
    """Equal results first, then times. SET grows other entries, as many: each draws its own."""
    drawn = name.startswith("SET")
    for found, exact in zip(jax.tree.leaves(ours(*args)), jax.tree.leaves(theirs(*args))):
        if not drawn:
            np.testing.assert_array_equal(found, exact)
        elif found.dtype == bool:
            assert found.sum() == exact.sum()
    calls = {"ours": lambda: ours(*args), "argsort": lambda: theirs(*args)}
    times = sj.kernels.measure(calls, rounds, seconds=0.05)
    ratio = times["argsort"] / times["ours"]
    goal = GOALS.get(name)
    return [
        name,
        f"{times['ours'] * 1e3:.1f}",
        f"{times['argsort'] * 1e3:.0f}",
        f"{ratio:.0f}x",
        f">= {goal}x" if goal else "",
        ratio >= (goal or 1),
    ]


COLUMNS = ["pattern", "ours (ms)", "argsort (ms)", "ratio", "goal"]


def one_shot(w, quick: bool) -> None:
    rows = []
    for name, (pattern, peer) in CASES.items():
        ours = jax.jit(lambda w, p=pattern: sj.masks.topk(jnp.abs(w), p))
        rows.append(
            row_of(
                name, ours, jax.jit(lambda w, f=peer: f(jnp.abs(w))), w, rounds=2 if quick else 7
            )
        )
    floor = jax.jit(lambda w: jnp.abs(w) > 1.6)
    seconds = sj.kernels.measure({"floor": lambda: floor(w)}, rounds=7, seconds=0.05)["floor"]
    table = table_of(
        f"mask update, {w.shape[0]}x{w.shape[1]} float32",
        COLUMNS,
        rows,
        caption=f"|w| > c, one pass over memory: {seconds * 1e3:.1f} ms",
    )
    save("mask-update-cpu", table, quick=quick, seed=0)


def drop_and_grow(w, quick: bool) -> None:
    g = jax.random.normal(jax.random.key(1), w.shape)
    steps = dynamic_steps(w, g)
    rows = [row_of(name, ours, theirs, *args, rounds=2) for name, ours, theirs, args in steps]
    title = f"drop and grow, {w.shape[0]}x{w.shape[1]} float32, three tenths of the active entries"
    save("drop-and-grow-cpu", table_of(title, COLUMNS, rows), quick=quick, seed=(0, 1))


def main(quick: bool = False, only: str = "") -> None:
    parts = {"one_shot": one_shot, "drop_and_grow": drop_and_grow}
    if only and only not in parts:
        raise ValueError(f"only: one of {', '.join(parts)}, not {only!r}")
    side = 640 if quick else 3200
    w = jax.random.normal(jax.random.key(0), (side, side))
    for name, part in parts.items():
        if only in ("", name):
            part(w, quick)
