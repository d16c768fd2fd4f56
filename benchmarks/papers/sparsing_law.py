"""Activation sparsity at 1 % more perplexity, of ReLU and SiLU gates, on a model of characters.

    python -m benchmarks sparsing_law

CETT-PPL-1% (2411.02335) on 4096 validation characters; at the same share of active neurons, top-k
and one global threshold of the gate (FAT) for comparison; and the share over training, at the tail
error c of the last snapshot.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sparsejax as sj
from benchmarks._report import save, table_of
from benchmarks.papers._char_lm import HIDDEN, mean_loss, text, trained, windows
from sparsejax.contrib import activation_sparsity as gated

ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
DOWN = ("layers/0/mlp/down", "layers/1/mlp/down")


def neurons(model: Any, ids: jax.Array) -> dict[str, jax.Array]:
    """The inputs of the last kernel of each feed-forward network."""
    rows = lambda inputs, y: inputs[0].reshape(-1, HIDDEN)  # noqa: E731
    return sj.nn.record(model, r"mlp/down$", ids[:, :-1], reduce=rows)[1]


def ratio_at(model: Any, ids: jax.Array, c: float) -> float:
    """The share of active neurons of the model with the tail error c in each layer."""
    z, gates = neurons(model, ids), {}
    for i, path in enumerate(DOWN):
        kernel = model.layers[i].mlp.down.kernel[...]
        epsilon = jax.jit(gated.cett_threshold)(z[path], kernel, c)
        gates[path] = gated.NeuronGate.at(kernel, epsilon)
    sparse = sj.nn.replace(model, {f"^{path}$": gate for path, gate in gates.items()})
    z = neurons(sparse, ids)
    return float(np.mean([gates[path].kept(z[path]).mean() for path in DOWN]))


@nnx.jit
def _loss_and_share(model, gate, ids):
    y, seen = sj.nn.record(sj.nn.replace(model, {r"mlp/gate$": gate}), r"mlp/gate$", ids[:, :-1])
    share = jnp.mean(jnp.stack([(a != 0).mean() for a in seen.values()]))
    loss = -jnp.take_along_axis(jax.nn.log_softmax(y), ids[:, 1:, None], -1).mean()
    return loss, share


def rivals(model: Any, ids: jax.Array, ratio: float, kind: str) -> dict[str, float]:
    """Loss of top-k and of one threshold for all layers at a share of active neurons."""
    act = ACTIVATIONS[kind]
    top = gated.ActivationGate(sj.select.TopK(round(HIDDEN * ratio)), act)
    low, high = 0.0, 10.0
    for _ in range(25):
        tau = (low + high) / 2
        fat = gated.ActivationGate(sj.select.Threshold(jnp.float32(tau)), act)
        share = float(_loss_and_share(model, fat, ids)[1])
        low, high = (tau, high) if share > ratio else (low, tau)
    return {name: float(_loss_and_share(model, gate, ids)[0])
            for name, gate in (("top-k", top), ("FAT", fat))}  # fmt: skip


def positive(model: Any, ids: jax.Array) -> float:
    """The mean share of gates above 0."""
    found = gated.neuron_activity(model, [ids[:, :-1]])
    return float(np.mean([activity.nonzero_fraction for activity in found.values()]))


def measured(kind: str, quick: bool) -> dict[str, Any]:
    """All figures of one activation."""
    snapshots = trained(kind, quick)
    initial = snapshots.pop(0)
    ids = windows(text().validation, 16 if quick else 64)
    model = list(snapshots.values())[-1]
    found = gated.perplexity_sparsity(model, [ids], tol=2e-3)
    ratio = float(np.mean(list(found.activation_ratio.values())))
    dense = float(mean_loss(model, ids))
    others = {name: np.exp(x - dense) for name, x in rivals(model, ids, ratio, kind).items()}
    return {
        "perplexity": np.exp(dense),
        "c": found.cett,
        "ratio": ratio,
        "CETT": found.perplexity_ratio,
        **others,
        "over training": [ratio_at(m, ids, found.cett) for m in snapshots.values()],
        "gate > 0": [positive(m, ids) for m in (initial, *snapshots.values())],
    }


def claims(found: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """The orders that must come out."""
    relu, silu = found["relu"], found["silu"]
    plain, rising = relu["gate > 0"], silu["over training"]
    rivals = [min(x["top-k"], x["FAT"]) for x in (relu, silu)]
    gap = abs(relu["perplexity"] / silu["perplexity"] - 1)
    rows = [
        ("perplexities within 1 %", f"{gap:.2%}", gap < 0.01),
        ("ReLU ratio below half of SiLU's", f"{relu['ratio'] / silu['ratio']:.2f}",
         2 * relu["ratio"] < silu["ratio"]),
        ("SiLU ratio rises with data", f"{rising[0]:.3f} to {rising[-1]:.3f}",
         all(a < b for a, b in zip(rising, rising[1:]))),
        ("share of ReLU gates above 0 falls", f"{plain[0]:.3f} to {plain[-1]:.3f}",
         all(b < a + 0.01 for a, b in zip(plain, plain[1:])) and plain[-1] < plain[1]),
        ("CETT below top-k and FAT at equal ratio", f"{min(rivals):.3f}",
         all(x["CETT"] < y for x, y in zip((relu, silu), rivals))),
    ]  # fmt: skip
    return [[name, value, bool(holds)] for name, value, holds in rows]


def main(quick: bool = False) -> None:
    found = {kind: measured(kind, quick) for kind in ACTIVATIONS}
    single = ("perplexity", "c", "ratio", "CETT", "top-k", "FAT")
    rows = [[kind, *(f"{x[name]:.3f}" for name in single)] for kind, x in found.items()]
    columns = ["gate", "perplexity", "c", "active at PPL + 1 %", "PPL ratio CETT", "top-k", "FAT"]
    first = table_of("CETT-PPL-1%", columns, rows)
    curves = [
        [f"{kind}, {name}", " ".join(f"{x:.1%}" for x in found[kind][name])]
        for kind in found
        for name in ("over training", "gate > 0")
    ]
    second = table_of(
        "Share of active neurons at the snapshots of training", ["gate", "shares"], curves,
        "The second kind begins with the initial model. The falling CETT ratio of ReLU models is "
        "not visible at this scale.",
    )  # fmt: skip
    third = table_of("Claims", ["claim", "measured"], claims(found))
    save("sparsing-law", first, second, third, quick=quick, seed=0)
