"""Sirius: sparse decoders that the full model corrects, on a language model of characters.

    python -m benchmarks sirius

Greedy continuations of 160 characters of validation prompts of 32. Score: the mean log-probability
of a continuation under the full model (2409.03856). AAL: tokens kept by a check. The effective
density counts the feed-forward networks only: (1 + 2 r) / 3 for FSparse, which reads all gates, r
for CSparse; a second check counts as one more pass of the full model.
"""

from typing import Any, NamedTuple

import numpy as np

import sparsejax as sj
from benchmarks._report import save, table_of
from benchmarks.papers._char_lm import text, trained
from sparsejax.contrib import activation_sparsity as gated

DRAFTS = {
    "FSparse .30": 0.30, "FSparse .15": 0.15, "CSparse .5": 0.5, "CSparse .3": 0.3,
}  # fmt: skip
SETTINGS = {
    "n = 16": dict(period=16),
    "n = 16, no rewriting": dict(period=16, rewrite=False),
    "n = 16, second check": dict(period=16, second_rollback=True),
    "n = 8": dict(period=8),
    "n = 16, tree of 4": dict(period=16, width=4),
    "threshold .5": dict(period=16, threshold=0.5 + 1e-6),
}


class Found(NamedTuple):
    """Score, AAL, whether the text is the greedy one, and passes of the full model for a chunk."""

    score: float
    length: float
    same: bool
    passes: float


def drafts_of(model: Any, prompts: list[list[int]], name: str, shared: bool) -> list[Any]:
    """The sparse model of each prompt; one for all of them where it does not depend on them."""
    if name.startswith("F"):
        return [gated.fine_sparse(model, DRAFTS[name], shared=shared)] * len(prompts)
    return [gated.coarse_sparse(model, prompt, DRAFTS[name]) for prompt in prompts]


def score(model: Any, prompt: list[int], tokens: list[int]) -> float:
    """Mean log-probability of the continuation."""
    losses = sj.models.token_losses(model, [*prompt, *tokens], window=192)
    return -float(losses[len(prompt) - 1 :].mean())


def measured(model: Any, prompts: list[list[int]], steps: int, settings: dict[str, Any]):
    """Scores of the full model, of each draft alone, and corrected ones with their texts' costs."""
    greedy = [sj.models.generate(model, [p], steps)[0] for p in prompts]
    mean = lambda texts: float(  # noqa: E731
        np.mean([score(model, p, t) for p, t in zip(prompts, texts)])
    )
    full, alone, corrected = mean(greedy), {}, {}
    for name in DRAFTS:
        drafts = drafts_of(model, prompts, name, False)
        alone[name] = mean([sj.models.generate(d, [p], steps)[0] for d, p in zip(drafts, prompts)])
        for setting, how in settings.items():
            with_tree = how.get("width", 1) > 1
            given = drafts_of(model, prompts, name, True) if with_tree else drafts
            found = [
                gated.corrected_generate(model, d, p, steps, **how) for d, p in zip(given, prompts)
            ]
            texts = [x.tokens for x in found]
            corrected[name, setting] = Found(
                mean(texts),
                float(np.mean(np.concatenate([x.advances for x in found]))),
                texts == greedy,
                sum(x.full_calls - 1 for x in found) / sum(len(x.advances) for x in found),
            )
        print(name, alone[name], {s: corrected[name, s] for s in settings}, flush=True)
    return full, alone, corrected


def claims(full: float, alone: dict[str, float], corrected: dict[Any, Any]) -> list[list[Any]]:
    """The orders that must come out, of the badly damaged drafts."""
    rows = []
    for name in ("FSparse .15", "CSparse .5", "CSparse .3"):
        mended = corrected[name, "n = 16"].score
        closed = (mended - alone[name]) / (full - alone[name])
        rows.append([f"{name}: share of the gap closed (goal .5)", f"{closed:.2f}", closed >= 0.5])
        worse = mended - corrected[name, "n = 16, no rewriting"].score
        rows.append([f"{name}: score lost without rewriting (goal 0)", f"{worse:.3f}", worse > 0])
    same = all(corrected[name, "threshold .5"].same for name in DRAFTS)
    rows.append(["threshold above .5 is greedy decoding", str(same), same])
    return [[name, value, bool(holds)] for name, value, holds in rows]


def main(quick: bool = False) -> None:
    model = list(trained("silu", quick).values())[-1]
    count, steps = (2, 48) if quick else (12, 160)
    starts = np.linspace(0, len(text().validation) - 64, count).astype(int)
    prompts = [text().validation[i : i + 32].tolist() for i in starts]
    full, alone, corrected = measured(model, prompts, steps, SETTINGS)
    rows = []
    for name, r in DRAFTS.items():
        density = (1 + 2 * r) / 3 if name.startswith("F") else r
        cells = []
        for setting, how in SETTINGS.items():
            found = corrected[name, setting]
            cost = gated.effective_density(density, how["period"], found.length)
            cost += (found.passes - 1) / found.length
            cells.append(f"{found.score:.3f} ({found.length:.2f}, {cost:.2f})")
        rows.append([name, f"{alone[name]:.3f}", *cells])
    title = f"Score (AAL, effective density), full model {full:.3f}, {count} prompts"
    save("sirius", table_of(title, ["draft", "alone", *SETTINGS], rows),
         table_of("Claims", ["claim", "measured"], claims(full, alone, corrected)),
         quick=quick, seed=0)  # fmt: skip
