"""BlockFFN: two losses that make neighbouring tokens use few and the same experts.

    python -m benchmarks block_ffn

The ablation of 2507.08771 on a language model of characters: two layers of 24 experts of 16
neurons, 300 steps; sparsity of tokens (TLS) and of chunks of eight (CLS8) on 16 x 64 validation
characters. ReMoE (2412.14711) for comparison.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

import sparsejax as sj
from benchmarks._report import save, table_of
from benchmarks.papers._char_lm import (
    LENGTH,
    WIDTH,
    cross_entropy,
    language_model,
    mean_loss,
    text,
    train,
    windows,
)  # fmt: skip
from sparsejax.contrib import activation_sparsity as gated

ROWS, CHUNK, EXPERTS, SIZE = 16, 16, 24, 16
# By name: factor of the locality loss, and the first of the chunk loss.
LOSSES = {
    "none": (0.0, 0.0),
    "AL": (2e-3, 0.0),
    "CS": (0.0, 5e-2),
    "AL + CS": (2e-3, 5e-2),
    "8 CS": (0.0, 4e-1),
    "AL + 8 CS": (2e-3, 4e-1),
}
TARGET = 0.85  # sparsity of ReMoE


def model_of(norm: str, experts: int = EXPERTS) -> Any:
    """The language model with experts."""
    return language_model(
        lambda old, rngs: gated.BlockFFN(WIDTH, experts, SIZE, norm=norm, rngs=rngs)
    )


def routed(model: Any, ids: Any) -> tuple[Any, dict[str, Any]]:
    """Logits, and what each router gives, tokens in one row."""
    return sj.nn.record(model, r"router$", ids[:, :-1])


def block_loss(locality: float, factor: Any, segments: Any):
    """The loss of BlockFFN; its state is that of the adaptive factor."""

    def loss(model, ids, state):
        logits, routers = routed(model, ids)
        mean = lambda f: jnp.mean(jnp.stack([f(r) for r in routers.values()]))  # noqa: E731
        total = cross_entropy(logits, ids)
        total += locality * mean(lambda r: gated.activation_locality(r.logits, segments))
        if factor is None:
            return total, state
        chunks = mean(lambda r: gated.chunk_sparsification(r.normed, chunk=CHUNK))
        value, state = factor.update(state, lax.stop_gradient(chunks))
        return total + lax.stop_gradient(value) * chunks, state

    return loss


def balanced_loss(factor: Any, experts: int):
    """The loss of ReMoE."""

    def loss(model, ids, state):
        logits, routers = routed(model, ids)
        active = jnp.stack([r.active for r in routers.values()])
        value, state = factor.update(state, jnp.mean(active == 0))
        l1 = sum(gated.balanced_l1(a, (1 - TARGET) * experts) for a in active) / len(active)
        return cross_entropy(logits, ids) + value * l1, state

    return loss


def measured(name: str, steps: int = 300, rows: int = ROWS) -> dict[str, float]:
    """Perplexity and sparsities of one training."""
    segments = jnp.repeat(jnp.arange(rows), LENGTH)
    if name == "ReMoE":
        factor, model = gated.target_factor(TARGET, 1e-6), model_of("none")
        loss = balanced_loss(factor, EXPERTS)
    else:
        locality, first = LOSSES[name]
        windows_of = dict(warmup=steps // 2, every=steps // 20)
        factor = gated.adaptive_factor(first, **windows_of) if first else None
        model, loss = model_of("rms"), block_loss(locality, factor, segments)
    state = factor.init() if factor else ()
    found, state = train(model, steps, rows=rows, loss=loss, state=state)
    model, ids = found[steps], windows(text().validation, ROWS)
    weights = [r.weights.reshape(-1, EXPERTS) for r in routed(model, ids)[1].values()]
    mean = lambda f: float(np.mean([f(w) for w in weights]))  # noqa: E731
    return {
        "perplexity": float(np.exp(mean_loss(model, ids))),
        "TLS": mean(lambda w: gated.chunk_sparsity(w, 1)),
        "CLS8": mean(lambda w: gated.chunk_sparsity(w, 8)),
        "reuse": mean(gated.reuse_ratio),
        "factor": float(state.base) if factor else float("nan"),
    }


def claims(found: dict[str, dict[str, float]]) -> list[list[Any]]:
    """The orders that must come out."""
    both, none = found["AL + CS"], found["none"]
    gain = both["CLS8"] - max(found["AL"]["CLS8"], found["CS"]["CLS8"])
    cost = both["perplexity"] / none["perplexity"] - 1
    gap = {name: found[name]["TLS"] - found[name]["CLS8"] for name in ("AL + CS", "none")}
    rows = [
        ("CLS8 of AL + CS over the better of both alone (goal .15)", f"{gain:.3f}", gain >= 0.15),
        ("TLS of AL + CS (goal .8)", f"{both['TLS']:.3f}", both["TLS"] >= 0.8),
        ("perplexity over none (goal 3 %)", f"{cost:.2%}", cost <= 0.03),
        ("TLS - CLS8 of AL + CS (goal below .05)", f"{gap['AL + CS']:.3f}", gap["AL + CS"] < 0.05),
        ("TLS - CLS8 of none (goal above .3)", f"{gap['none']:.3f}", gap["none"] > 0.3),
    ]
    return [[name, value, bool(holds)] for name, value, holds in rows]


def main(quick: bool = False) -> None:
    names = ("none", "AL", "CS", "AL + CS") if quick else (*LOSSES, "ReMoE")
    found = {}
    for name in names:
        found[name] = measured(name, 100 if quick else 300)
        print(name, found[name], flush=True)
    columns = ["losses", "perplexity", "TLS", "CLS8", "reuse", "factor"]
    rows = [[name, *(f"{value:.4g}" for value in x.values())] for name, x in found.items()]
    save("block-ffn", table_of("BlockFFN, 24 experts", columns, rows),
         table_of("Claims", ["claim", "measured"], claims(found)), quick=quick, seed=0)  # fmt: skip
