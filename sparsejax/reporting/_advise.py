"""The decision table of methods, used by `advise` and the documentation."""

import html
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from .._arguments import checked

Hardware = Literal["gpu", "tpu", "cpu", "any"]
Goal = Literal["accuracy", "memory", "speed", "many_sparsities"]

_HARDWARE = ("gpu", "tpu", "cpu", "any")
_GOALS = ("accuracy", "memory", "speed", "many_sparsities")


@dataclass(frozen=True)
class Answers:
    """The properties of the case, as given by the user."""

    trained: bool
    training: bool
    hardware: str
    sparsity: int | float | None
    goal: str | None


@dataclass(frozen=True)
class Rule:
    """A row of the decision table.

    Args:
      case: Condition, as text.
      applies: Condition, as a function of the answers.
      use: Names in sparsejax, the first choice first.
      pattern: Patterns to plan with.
      reason: Why.
    """

    case: str
    applies: Callable[[Answers], bool]
    use: tuple[str, ...]
    pattern: tuple[str, ...]
    reason: str

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return _rule, (self.case,)  # its condition is a function, which cannot be pickled


def _rule(case: str) -> Rule:
    return next(rule for rule in RULES if rule.case == case)


RULES = (
    Rule(
        "many sparsities of one model are needed",
        lambda a: a.goal == "many_sparsities",
        ("sj.recipes.sparsity_sweep", "sj.masks.topk"),
        ("sj.Unstructured",),
        "nested magnitude masks are thresholds of one order: a sweep costs one selection",
    ),
    Rule(
        "the best accuracy at a sparsity, whatever training costs",
        lambda a: a.training and a.goal == "accuracy",
        ("sj.recipes.sparse_model_soup", "sj.optim.prune"),
        ("sj.Unstructured",),
        "averaging models with the same mask gains accuracy at no inference cost",
    ),
    Rule(
        "trained, no training possible, sparsity at most 0.4",
        lambda a: a.trained and not a.training and a.sparsity is not None and a.sparsity <= 0.4,
        ("sj.masks.magnitude", "sj.masks.apply_masks"),
        ("sj.Unstructured",),
        "within the essential sparsity one-shot magnitude pruning loses almost no accuracy",
    ),
    Rule(
        "trained, no training possible, GPU",
        lambda a: a.trained and not a.training and a.hardware == "gpu",
        ("sj.recipes.sparsegpt", "sj.masks.wanda", "sj.masks.magnitude"),
        ("sj.NM(2, 4)",),
        "scores from a few calibration inputs; GPUs multiply 2:4 faster",
    ),
    Rule(
        "trained, no training possible",
        lambda a: a.trained and not a.training and a.hardware != "gpu",
        ("sj.recipes.sparsegpt", "sj.masks.wanda", "sj.masks.magnitude"),
        ("sj.Unstructured", "sj.Block"),
        "scores from a few calibration inputs; without retraining only fine patterns keep quality",
    ),
    Rule(
        "trained, a budget for fine-tuning",
        lambda a: a.trained and a.training,
        ("sj.optim.prune", "sj.optim.sr_ste"),
        ("sj.Unstructured", "sj.NM(2, 4)"),
        "gradual magnitude pruning for free patterns, SR-STE for N:M",
    ),
    Rule(
        "from scratch, the memory of training is the limit",
        lambda a: not a.trained and a.goal == "memory",
        ("sj.optim.rigl", "sj.masks.erk"),
        ("sj.Unstructured",),
        "never above the target; train longer so that more weights are explored (R_s)",
    ),
    Rule(
        "from scratch, fast on a GPU now",
        lambda a: not a.trained and a.hardware == "gpu" and a.goal in ("speed", None),
        ("sj.optim.sr_ste", "sj.optim.prune"),
        ("sj.NM(2, 4)", "sj.Block((64, 64), s)"),
        "N:M with SR-STE, or blocks: the patterns GPU kernels use",
    ),
    Rule(
        "fast on a TPU",
        lambda a: a.training and a.hardware == "tpu" and a.goal in ("speed", None),
        ("sj.optim.prune",),
        ("sj.Block((128, 128), s)", "sj.Channel(s)"),
        "a TPU has no 2:4; blocks of its matrix unit and whole channels are skipped",
    ),
    Rule(
        "deployed on any CPU",
        lambda a: a.training and a.hardware in ("cpu", "any") and a.goal == "speed",
        ("sj.optim.prune",),
        ("sj.Channel(s)", "sj.Block((16, 1), s)"),
        "removed channels are faster on every machine; small blocks on CPUs with vectors",
    ),
    Rule(
        "from scratch, to learn what sparsity costs",
        lambda a: not a.trained and a.training and a.goal is None and a.hardware in ("cpu", "any"),
        ("sj.optim.prune", "sj.masks.random"),
        ("sj.Unstructured",),
        "gradual pruning with ERK is the reference for quality, a static random mask with ERK the "
        "floor",
    ),
)

QUESTIONS = (
    (
        "Is sparse just small and dense?",
        "Compare with a small dense model of equal parameters and one of equal FLOPs; sparse and "
        "wide often wins.",
    ),
    (
        "Is unstructured sparsity useless on hardware?",
        "It is the reference for quality, and fast on CPUs and sparse accelerators; for a GPU "
        "choose sj.NM(2, 4) or sj.Block, sj.Channel for any hardware.",
    ),
    (
        "Structured or unstructured?",
        "In speed channel > block > N:M > unstructured; in quality at equal sparsity the reverse.",
    ),
    (
        "Pruning or sparse training?",
        "Only inference matters and the model exists: prune it after training. Training costs "
        "matter: sparse-to-sparse.",
    ),
    (
        "Dense-to-sparse or sparse-to-sparse?",
        "If the dense network fits in memory, gradual pruning; else SET or RigL with longer "
        "training, so that many weights are explored.",
    ),
    (
        "Static or dynamic?",
        "A static random mask with ERK is the floor; dynamic masks add quality at 90 % and more. "
        "Report the mask-change rate and R_s.",
    ),
    (
        "Before, during or after training?",
        "With the same data and steps after >= during >= before in quality, usually; before is "
        "cheapest. Masks from before training: check them against shuffling within layers.",
    ),
    (
        "Is random pruning enough?",
        "Always include random masks with the same layer ratios, random search "
        "(sj.contrib.search.random_search), and one-shot magnitude as baselines.",
    ),
    (
        "What is a fair comparison?",
        "Equal sparsity over an equal set of layers, equal training FLOPs, a dense network tuned "
        "with the same budget, at least 3 seeds with their standard deviation.",
    ),
    (
        "Only efficiency?",
        "Report robustness, calibration, generalisation and worst-class accuracy next to accuracy.",
    ),
)


@dataclass(frozen=True, repr=False)
class Advice:
    """The rows of the decision table that apply, the most specific first."""

    rules: tuple[Rule, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names available in this version of sparsejax, first choice first, each once."""
        named = (name for rule in self.rules for name in rule.use)
        return tuple(filter(is_available, dict.fromkeys(named)))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Table:
        table = Table(title="advice", title_style="bold", show_lines=True)
        for column in _COLUMNS:
            table.add_column(column, overflow="fold", no_wrap=column in ("use", "pattern"))
        for rule in self.rules:
            table.add_row(*_cells(rule, join="\n"))
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=110, force_jupyter=False, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(rule)) + "</tr>"
            for rule in self.rules
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def is_available(name: str) -> bool:
    """Whether this version has a name in the table, such as `sj.optim.prune`."""
    room, _, member = name.removeprefix("sj.").rpartition(".")
    try:
        return member in dir(importlib.import_module(f"sparsejax.{room}".rstrip(".")))
    except ImportError:
        return False


_COLUMNS = ("case", "use", "pattern", "because")


@checked()
def advise(
    *,
    trained: bool,
    training: bool,
    hardware: Hardware = "any",
    sparsity: int | float | None = None,
    goal: Goal | None = None,
) -> Advice:
    r"""Recommends methods, with reasons: the rows of a decision table that apply.

    Args:
      trained: Whether a trained dense model exists.
      training: Whether there is a budget for training or fine-tuning.
      hardware: Target hardware: "gpu", "tpu", "cpu" or "any".
      sparsity: Requested fraction of zeros, if known.
      goal: Priority: "accuracy", "memory" (of training), "speed" or "many_sparsities".

    Returns:
      An `Advice`: prints as a table; `.names` are names in sparsejax.

    Raises:
      ValueError: If an answer is not one of the choices, or neither a model nor training is
        available.

    Reference:
      Liu and Wang, Ten Lessons We Have Learned in the New "Sparseland", 2023 (arXiv 2302.02596).

    Example:
      >>> from sparsejax.reporting import advise
      >>> advise(trained=True, training=False, hardware="gpu").names
      ('sj.recipes.sparsegpt', 'sj.masks.wanda', 'sj.masks.magnitude')
    """
    _check("hardware", hardware, _HARDWARE)
    _check("goal", goal, (*_GOALS, None))
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity} must be the fraction of zeros, in [0, 1].")
    if not trained and not training:
        raise ValueError(
            "advise: a trained model or training is required, got neither; pass "
            "trained=True or training=True."
        )
    answers = Answers(trained, training, hardware, sparsity, goal)
    return Advice(tuple(rule for rule in RULES if rule.applies(answers)))


@checked()
def advice_markdown() -> str:
    """The decision table and the ten questions as Markdown: the page `choose.md` of the docs."""
    lines = ["| case | use | pattern | because |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(_cells(rule, code="`")) + " |" for rule in RULES]
    lines += ["", "| question | answer |", "|---|---|"]
    lines += [f"| {question} | {answer} |" for question, answer in QUESTIONS]
    return "\n".join(lines) + "\n"


def _cells(rule: Rule, code: str = "", join: str = ", ") -> tuple[str, str, str, str]:
    use = [f"{code}{x}{code}" + ("" if is_available(x) else " (planned)") for x in rule.use]
    pattern = [f"{code}{x}{code}" for x in rule.pattern]
    return rule.case, join.join(use), join.join(pattern), rule.reason


def _check(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")
