"""The sparsity report, with one counting convention."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jaxtyping import PyTree
from rich.console import Group

from .._arguments import checked
from .._frameworks import kernel_orders
from .._masks import History
from .._tree import at_path, definition_order
from ..masks import Plan
from ._bytes import bytes_of, pattern_bytes
from ._findings import Evidence, Finding, find, optimizer_bytes
from ._flops import Flops, flops_of
from ._history import Taxonomy, taxonomy
from ._html import html_page, html_table
from ._leaves import as_planned, entries
from ._render import rich_table, text
from ._study import Study, studies

_IS_VECTOR = re.compile(r"norm|(^|/)(bias|scale)$", re.IGNORECASE)


@dataclass(frozen=True)
class LeafReport:
    """The report on one leaf.

    Args:
      path: Path of the leaf.
      shape: Its (dense) shape.
      dtype: Name of its dtype.
      size: Entries.
      kept: Number of kept entries.
      planned: Entries kept by the plan; None if undetermined.
      value_zeros: Entries that are exactly 0, on or off the mask; None for shapes.
      claimed: The pattern of the plan; None without one.
      fits: The strictest pattern of the mask; None without a mask.
      chance: Probability that a random mask with as many kept entries fits, too.
      positions: Tokens or output positions at which it is used.
      flops_dense: FLOPs of its products, all weights counted; 0 without products.
      flops_sparse: FLOPs of its products, kept weights counted.
      bytes: Bytes by format, "stored" for its current size if it is compressed.
      prunable: Whether it is counted in the headline.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    kept: int
    planned: int | None
    value_zeros: int | None
    claimed: str | None
    fits: str | None
    chance: float | None
    positions: int | float
    flops_dense: int
    flops_sparse: int
    bytes: dict[str, int]
    prunable: bool

    @property
    def sparsity(self) -> float:
        """Zeros over entries."""
        return _sparsity(self.kept, self.size)

    @property
    def storage(self) -> tuple[str, int]:
        """The storage format, or the smallest format, and its bytes."""
        if "stored" in self.bytes:
            return "stored", self.bytes["stored"]
        return min(self.bytes.items(), key=lambda item: item[1])


@dataclass(frozen=True, repr=False)
class Report:
    """A sparsity report: prints as a table, displays as HTML in notebooks, exports as data.

    Args:
      leaves: All leaves, in the order of the tree.
      findings: Errors and warnings.
      source: The source of the counts: the masks, the zeros of the values, or the plan.
      asked: Sparsity of the plan.
      activation_flops: FLOPs of products between activations, not reduced by weight sparsity.
      uncounted: Leaves with unknown FLOPs, read only by custom kernels.
      traced: Whether FLOPs come from an example, or from one position per kernel.
      taxonomy: Classification of the training history.
      training_cost: Training FLOPs over those of dense training, theoretical.
      compiled_flops: FLOPs that XLA counts in the compiled program.
      optimizer_bytes: Bytes of the optimizer state.
    """

    leaves: tuple[LeafReport, ...]
    findings: tuple[Finding, ...]
    source: str
    asked: float | None = None
    activation_flops: int = 0
    uncounted: tuple[str, ...] = ()
    traced: bool = False
    taxonomy: Taxonomy | None = None
    training_cost: float | None = None
    compiled_flops: float | None = None
    optimizer_bytes: int | None = None

    def __getitem__(self, path: str) -> LeafReport:
        return at_path("report", {leaf.path: leaf for leaf in self.leaves}, path)

    @property
    def size(self) -> int:
        """Entries of all parameters."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def kept(self) -> int:
        """Kept entries of all parameters."""
        return sum(leaf.kept for leaf in self.leaves)

    @property
    def prunable_size(self) -> int:
        """Entries of the prunable leaves."""
        return sum(leaf.size for leaf in self.leaves if leaf.prunable)

    @property
    def prunable_kept(self) -> int:
        """Kept entries of the prunable leaves."""
        return sum(leaf.kept for leaf in self.leaves if leaf.prunable)

    @property
    def sparsity(self) -> float:
        """The headline: zeros over entries of the prunable leaves together."""
        return _sparsity(self.prunable_kept, self.prunable_size)

    @property
    def total_sparsity(self) -> float:
        """Zeros over entries of all parameters, reported next to the headline."""
        return _sparsity(self.kept, self.size)

    @property
    def dense_leaves(self) -> tuple[str, ...]:
        """Paths of the kernels and embeddings that are not pruned."""
        matrices = [x for x in self.leaves if len(x.shape) >= 2 and not _IS_VECTOR.search(x.path)]
        return tuple(x.path for x in matrices if x.kept == x.size)

    @property
    def flops_dense(self) -> int:
        """Forward FLOPs of products with weights, all weights counted."""
        return sum(leaf.flops_dense for leaf in self.leaves)

    @property
    def flops_sparse(self) -> int:
        """Forward FLOPs of products with weights, kept weights counted."""
        return sum(leaf.flops_sparse for leaf in self.leaves)

    @property
    def bytes_dense(self) -> int:
        """Bytes of all parameters, dense."""
        return sum(leaf.bytes["dense"] for leaf in self.leaves)

    @property
    def bytes_sparse(self) -> int:
        """Bytes of all parameters, each in its `storage`."""
        return sum(leaf.storage[1] for leaf in self.leaves)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for `json.dumps`."""
        leaves = [asdict(x) | {"shape": list(x.shape), "sparsity": x.sparsity} for x in self.leaves]
        totals = {name: getattr(self, name) for name in _TOTALS}
        found = [asdict(f) | {"level": f.level} for f in self.findings]
        own = {name: getattr(self, name) for name in _OWN}
        kind = asdict(self.taxonomy) if self.taxonomy else None
        dense = {"dense_leaves": list(self.dense_leaves), "uncounted": list(self.uncounted)}
        return totals | dense | own | {"taxonomy": kind, "leaves": leaves, "findings": found}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a standalone HTML page, `report.html`; `str(report)` is the text."""
        save_reports(path, {"Sparsity report": self})

    def plot(self) -> Any:
        """The sparsity by layer: `sj.reporting.plot_sparsity(report)`."""
        from ._plot import plot_sparsity  # which plots reports

        return plot_sparsity(self)

    def __rich__(self) -> Group:
        return rich_table(self)

    def __str__(self) -> str:
        return text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self)


@checked()
def save_reports(
    path: str | os.PathLike[str],
    reports: Mapping[str, Report],
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Writes several reports into one standalone HTML page, with figures inside it.

    Args:
      path: A file that ends in .html.
      reports: Reports by title.
      figures: Figures of matplotlib by caption, shown above the reports.

    Raises:
      ValueError: If the file does not end in .html, or there is no report.

    Example:
      >>> import pathlib, tempfile, jax.numpy as jnp, sparsejax as sj
      >>> dense = sj.report({"kernel": jnp.ones((8, 8))})
      >>> path = pathlib.Path(tempfile.mkdtemp(), "reports.html")
      >>> sj.reporting.save_reports(path, {"dense": dense}, {"layers": dense.plot()})
      >>> "<h3>dense</h3>" in path.read_text()
      True
    """
    if not os.fspath(path).lower().endswith((".html", ".htm")):
        raise ValueError(
            f"{os.fspath(path)!r} does not end in .html: report.save('report.html'), or print "
            "str(report)."
        )
    if not reports:
        raise ValueError("save_reports: reports is empty; pass {'dense': sj.report(model)}.")
    with open(path, "w", encoding="utf-8") as file:
        file.write(html_page(reports, figures or {}))


_TOTALS = (
    "sparsity",
    "total_sparsity",
    "size",
    "kept",
    "prunable_size",
    "prunable_kept",
    "flops_dense",
    "flops_sparse",
    "bytes_dense",
    "bytes_sparse",
)
_OWN = (
    "source",
    "asked",
    "activation_flops",
    "traced",
    "training_cost",
    "compiled_flops",
    "optimizer_bytes",
)


@checked()
def report(
    model: PyTree,
    masks: PyTree = None,
    plan: Plan | None = None,
    *,
    example: Any = None,
    apply: Callable[..., Any] | None = None,
    positions: Mapping[str, int] | None = None,
    history: History | None = None,
    training: Callable[[int, int], Any] | None = None,
    opt_state: PyTree = None,
    compiled: Any = None,
    seeds: int | None = None,
) -> Report:
    r"""Reports the sparsity, patterns, FLOPs and bytes of a model, and findings.

    Sparsity is `sum zeros / sum sizes`, zeros being entries off the mask: of the prunable leaves
    (those of the plan; otherwise those named `kernel` or `weight`), and of all parameters. Without
    masks the exact zeros of the values are counted, as stated in the report.

    Args:
      model: An `nnx.Module`, `nnx.State`, Linen or plain dict, Equinox module; arrays, compressed
        kernels or shapes. If arrays span processes, all of these must make the call.
      masks: A tree of boolean masks and None, such as `sj.get_masks(opt_state)`.
      plan: The plan to compare with.
      example: Input of the model, an array or a tuple: FLOPs are then counted by tracing; without
        it, at one position per kernel.
      apply: `apply(params, *example)`, if the model cannot be called itself.
      positions: Tokens or output positions by path of the kernel, instead of an example.
      history: Masks over training: a list of trees, or a dict from steps to trees.
      training: Function from (dense, sparse) forward FLOPs to training FLOPs, such as
        `partial(sj.reporting.training_flops, "rigl", every=100)`.
      opt_state: Optimizer state, to count its bytes.
      compiled: A compiled program, `jax.jit(f).lower(x).compile()`: its FLOPs are reported for
        comparison.
      seeds: Number of seeds of the reported results.

    Returns:
      A `Report`: `print` it, `.as_dict()`, `.save("report.html")`.

    Raises:
      ValueError: If the tree has no parameters, or a mask does not belong to its leaf.
      TypeError: If an example is given but the model cannot be called.

    Reference:
      Liu and Wang, Ten Lessons We Have Learned in the New "Sparseland", 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"dense": {"kernel": jnp.sin(jnp.arange(64.0)).reshape(8, 8)}}
      >>> plan = sj.plan(params, sj.NM(2, 4))
      >>> masks = plan.masks(sj.masks.magnitude(params))
      >>> found = sj.reporting.report(sj.masks.apply_masks(params, masks), masks, plan)
      >>> found.sparsity, found["dense/kernel"].fits, found.findings
      (0.5, '2:4', ())
    """
    found = entries(model) if plan is None else as_planned(entries(model), plan)
    studied = studies(found, masks, plan, kernel_orders(model))
    kept = {name: s.kept for name, s in studied.items()}
    pruned = {name for name, s in studied.items() if s.prunable or s.mask is not None}
    work = flops_of(model, found, kept, pruned, example, apply, positions)
    leaves = tuple(_leaf(s, work) for s in studied.values())
    under_mask = any(s.values and s.values["under_mask"] for s in studied.values())
    kind = None if history is None else taxonomy(history, dense_weights=under_mask)
    counted = Report(leaves, (), _source(studied, masks, plan))
    evidence = Evidence(
        studies=studied,
        plan=plan,
        flops=work,
        traced=example is not None,
        sparsity=counted.sparsity,
        total_sparsity=counted.total_sparsity,
        taxonomy=kind,
        opt_state=opt_state,
        order=plan.order if plan and plan.order else definition_order(model, studied),
        training_stated=training is not None,
        seeds=seeds,
    )
    return Report(
        leaves,
        find(evidence),
        counted.source,
        asked=_asked(plan, studied),
        activation_flops=work.activations,
        uncounted=work.uncounted,
        traced=example is not None,
        taxonomy=kind,
        training_cost=_training_cost(training, work),
        compiled_flops=_compiled_flops(compiled),
        optimizer_bytes=None if opt_state is None else optimizer_bytes(opt_state),
    )


def _leaf(s: Study, work: Flops) -> LeafReport:
    used = work.leaves.get(s.path)
    return LeafReport(
        path=s.path,
        shape=s.entry.shape,
        dtype=s.entry.dtype.name,
        size=s.entry.size,
        kept=s.kept,
        planned=s.planned_kept,
        value_zeros=s.values["zeros"] if s.values else None,
        claimed=s.pattern.label if s.pattern else None,
        fits=s.fit.name if s.fit else None,
        chance=s.fit.chance if s.fit else None,
        positions=used.positions if used else 0,
        flops_dense=used.dense if used else 0,
        flops_sparse=used.sparse if used else 0,
        bytes=_bytes(s),
        prunable=s.prunable,
    )


def _bytes(s: Study) -> dict[str, int]:
    """Bytes by format; those of a structured pattern only if the mask conforms to it."""
    shape, dtype = s.entry.shape, s.entry.dtype
    found = {"dense": bytes_of(shape, dtype)}
    fitted = s.fit.pattern if s.fit else None
    if s.mask is not None and fitted is not None and fitted.structured:
        bits = jax.dtypes.itemsize_bits(dtype)
        found[fitted.label] = pattern_bytes(fitted, s.mask, s.layout, None, bits)
    if s.kept < s.entry.size:
        found["bitmask"] = bytes_of(shape, dtype, "bitmask", kept=s.kept)
        found["csr"] = bytes_of(shape, dtype, "csr", kept=s.kept)
    if s.entry.compressed:
        found["stored"] = int(s.entry.value.nbytes)
    return found


def _asked(plan: Plan | None, studied: Mapping[str, Study]) -> float | None:
    if plan is None or not all(s.divisible for s in studied.values()):
        return None
    return float(plan.sparsity)


def _source(studied: Mapping[str, Study], masks, plan: Plan | None) -> str:
    if masks is not None:
        return "the masks"
    if all(s.entry.compressed for s in studied.values() if s.mask is not None and s.prunable):
        if any(s.entry.compressed for s in studied.values()):
            return "the entries stored by compressed kernels"
    if any(s.mask is not None for s in studied.values()):
        return "the exact zeros of the values, in the absence of masks"
    return "the plan, in the absence of values" if plan is not None else "shapes: nothing is pruned"


def _training_cost(training, work: Flops) -> float | None:
    if training is None or not work.dense:
        return None
    return float(training(work.dense, work.sparse) / training(work.dense, work.dense))


def _compiled_flops(compiled) -> float | None:
    if compiled is None:
        return None
    if not isinstance(compiled, jax.stages.Compiled):
        raise TypeError(
            f"report: compiled must be jax.jit(f).lower(x).compile(), got {compiled!r:.80}."
        )
    analysis = compiled.cost_analysis() or {}
    return float(analysis["flops"]) if "flops" in analysis else None


def _sparsity(kept: int, size: int) -> float:
    return (size - kept) / max(size, 1)
