"""Plots: masks, sparsity by layer, results over sparsity, masks over training, calibration."""

import io
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from .._arguments import checked
from .._masks import History, count, masks_by_name, steps_of
from .._sharding import on_host
from ..masks import Plan
from ..metrics import Reliability, exploration_rate, flip_rate
from ._report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

INK, BLUE, ORANGE, GREY, LIGHT = "#22303c", "#2a78b5", "#d9822b", "#9aa5b1", "#e9edf1"
_SIDE = 512  # pixels: a larger mask is shown as densities of tiles
_LONGEST = 8  # sides of a mask with square cells


@checked(columns="[1, inf)")
def plot_masks(masks: PyTree, *, columns: int = 4) -> Figure:
    """Plots each mask: kept entries dark, contraction vertical, outputs horizontal.

    Args:
      masks: A tree of boolean masks and None, plotted in the order of its dicts. The last axis of
        stacked or 3-D masks is horizontal; a large mask is shown as the density of its tiles. Cells
        are square, unless a mask is more than eight times as long as wide.
      columns: Plots per row.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: If the tree holds no masks.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.reporting import plot_masks
      >>> figure = plot_masks({"kernel": jnp.eye(8, dtype=bool)})
      >>> figure.axes[0].get_title(loc="left")
      'kernel'
    """
    if not masks_by_name(masks):
        raise ValueError("plot_masks: the tree holds no masks; pass sj.get_masks(opt_state).")
    named = {name: _as_matrix(mask) for name, mask in _in_order(masks).items()}
    columns = min(columns, len(named))
    tall = [_box(matrix) for matrix in named.values()]
    heights = [max(tall[i : i + columns]) for i in range(0, len(tall), columns)]
    figure = _figure(2.7 * columns, sum(2.4 * height + 0.75 for height in heights))
    grid = figure.add_gridspec(len(heights), columns, height_ratios=[h + 0.3 for h in heights])
    for place, (name, matrix) in enumerate(named.items()):
        _draw_mask(figure.add_subplot(grid[divmod(place, columns)]), name, matrix)
    return figure


@checked()
def plot_sparsity(report: Report | Plan) -> Figure:
    """Plots the sparsity by layer as bars, with the total as a line.

    Args:
      report: A `Report`, whose prunable leaves are shown next to the planned sparsities; or a
        `Plan`.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.reporting import plot_sparsity
      >>> plan = sj.plan({"kernel": jnp.ones((8, 8))}, sj.NM(2, 4))
      >>> len(plot_sparsity(plan).axes[0].patches)
      1
    """
    if isinstance(report, Plan):
        leaves = [(x.name, x.sparsity, x.size, None) for x in report.leaves]
    else:
        shown = [x for x in report.leaves if x.prunable]
        leaves = [(x.path, x.sparsity, x.size, _planned(x)) for x in shown]
    figure = _figure(7.2, 1.0 + 0.32 * max(len(leaves), 2))
    axes = figure.add_subplot()
    _draw_bars(axes, leaves, report.sparsity)
    return figure


@checked(baseline="(-inf, inf)")
def plot_tradeoff(
    curves: Mapping[str, Mapping[float, Any]],
    *,
    ylabel: str = "accuracy",
    baseline: float | None = None,
) -> Figure:
    """Plots accuracies, speed-ups or other results over sparsity, one line per method.

    Args:
      curves: Results by method and sparsity, such as `{"magnitude": {0.5: 0.98, 0.9: 0.95}}`; of
        several values, such as those of seeds, the mean is drawn within their range.
      ylabel: Name of the result, with its unit.
      baseline: The result of the dense network, drawn as a horizontal line.

    Returns:
      A `matplotlib.figure.Figure`; sparsity is drawn as `1 / (1 - sparsity)`, on a logarithmic
      axis.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: If there are no curves, one is empty, or a sparsity is not in [0, 1).

    Example:
      >>> from sparsejax.reporting import plot_tradeoff
      >>> curves = {"magnitude": {0.5: 0.98, 0.9: 0.95}, "Wanda": {0.5: [0.98, 0.99], 0.9: 0.97}}
      >>> [line.get_label() for line in plot_tradeoff(curves, baseline=0.98).axes[0].lines]
      ['magnitude', 'Wanda', 'dense']
    """
    lines = {name: _line(name, curve) for name, curve in curves.items()}
    if not lines:
        raise ValueError("plot_tradeoff: curves is empty; pass {'magnitude': {0.5: 0.98}}.")
    figure = _figure(5.4, 3.4)
    axes = figure.add_subplot()
    for (name, (sparsity, low, mean, high)), colour in zip(lines.items(), _cycle()):
        place = 1 / (1 - sparsity)
        axes.plot(place, mean, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
        axes.fill_between(place, low, high, color=colour, alpha=0.18, linewidth=0)
    if baseline is not None:
        axes.axhline(baseline, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), label="dense")
    ticks = sorted({float(x) for sparsity, *_ in lines.values() for x in sparsity})
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - x) for x in ticks], [f"{x:.4g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("sparsity (fraction of zeros)", fontsize=8.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=8.5, color=INK)
    axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _tidy(axes, "y")
    return figure


def _line(name: str, curve: Mapping[float, Any]) -> tuple[np.ndarray, ...]:
    """Sparsities in order, and the least, mean and largest result at each."""
    sparsity = np.array(sorted(curve), float)
    if not len(sparsity) or not ((sparsity >= 0) & (sparsity < 1)).all():
        raise ValueError(
            f"plot_tradeoff: curves[{name!r}] must hold results by sparsity in [0, 1), such as "
            f"{{0.5: 0.98, 0.9: 0.95}}, got the sparsities {sparsity.tolist()}."
        )
    try:
        values = [np.atleast_1d(np.asarray(curve[x], float)) for x in sorted(curve)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"plot_tradeoff: curves[{name!r}] must hold numbers: {error}.") from error
    return (sparsity, *(np.array([f(v) for v in values]) for f in (np.min, np.mean, np.max)))


def _cycle() -> Iterator[str]:
    return itertools.cycle((BLUE, ORANGE, "#3a9278", "#8a5fa8", "#b4483f", INK))


@checked()
def plot_training(history: History, metrics: Mapping[str, Any] | None = None) -> Figure:
    """Plots masks over training: sparsity, flips per weight, and the share of weights explored.

    Args:
      history: Masks over training: a list of trees, or a dict from steps to trees.
      metrics: Further curves by name, one value for each record, such as {"accuracy": [...]}.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: If the history holds no masks, or a curve has another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.reporting import plot_training
      >>> masks = [jnp.arange(4) >= i for i in range(3)]
      >>> len(plot_training(masks).axes)
      3
    """
    steps = steps_of(history)
    times, records = list(steps), list(steps.values())
    sizes = [sum(np.size(m) for m in masks.values()) for masks in records]
    kept = [sum(count(m) for m in masks.values()) for masks in records]
    explored = [exploration_rate(records[: i + 1]) for i in range(len(records))]
    curves = {
        "sparsity": (times, [1 - k / n for k, n in zip(kept, sizes)]),
        "flips per weight": (times[1:], flip_rate(records)),
        "explored R_s": (times, explored),
    }
    for name, values in (metrics or {}).items():
        if len(values) != len(times):
            raise ValueError(f"metrics[{name!r}] has {len(values)} values for {len(times)} steps.")
        curves[name] = (times, np.asarray(values))
    figure = _figure(3.1 * len(curves) + 0.2, 2.7)
    for place, (name, (x, y)) in enumerate(curves.items(), start=1):
        _draw_curve(figure.add_subplot(1, len(curves), place), name, x, y)
    return figure


@checked()
def plot_reliability(curve: Reliability | Mapping[str, Reliability]) -> Figure:
    """Plots the reliability diagram: accuracy over confidence, and the number of samples per bin.

    Args:
      curve: The result of `reliability(probabilities, labels)`; or several, by name.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import reliability
      >>> from sparsejax.reporting import plot_reliability
      >>> curve = reliability(jnp.array([[0.8, 0.2]]), jnp.array([0]))
      >>> len(plot_reliability(curve).axes)
      2
    """
    curves = {"": curve} if isinstance(curve, Reliability) else dict(curve)
    figure = _figure(3.4 * len(curves) + 0.3, 4.0)
    grid = figure.add_gridspec(2, len(curves), height_ratios=(4, 1))
    for column, (name, one) in enumerate(curves.items()):
        top = figure.add_subplot(grid[0, column])
        _draw_reliability(top, name, one)
        _draw_counts(figure.add_subplot(grid[1, column], sharex=top), one)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'sparsejax[examples]'.") from error

    class Picture(Figure):
        """A figure that notebooks display without pyplot."""

        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    # A Figure without pyplot: no global state, no window, no backend selection.
    return Picture(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def _in_order(masks: PyTree, path: str = "") -> dict[str, np.ndarray]:
    """The masks by path, in the order of the dicts that hold them: JAX sorts keys."""
    if isinstance(masks, Mapping):
        parts = [_in_order(m, f"{path}{key}/") for key, m in masks.items()]
        return {name: mask for part in parts for name, mask in part.items()}
    named = masks_by_name(masks).items()
    return {f"{path}{name}".strip("/"): on_host(mask) for name, mask in named}


class _Shown(NamedTuple):
    matrix: np.ndarray
    shape: tuple[int, ...]


def _as_matrix(mask: np.ndarray) -> _Shown:
    return _Shown(mask.reshape(-1, mask.shape[-1] if mask.ndim else 1), mask.shape)


def _box(shown: _Shown) -> float:
    """Height over width of the box of a mask; at most 1.5 high, where the box is narrower."""
    rows, columns = shown.matrix.shape
    return float(np.clip(rows / max(columns, 1), 1 / _LONGEST, 1.5))


def _draw_mask(axes, name: str, shown: _Shown) -> None:
    matrix = shown.matrix
    rows, columns = (max(n, 1) for n in matrix.shape)
    axes.imshow(1 - _tiles(matrix), cmap=_colours(), vmin=0, vmax=1, interpolation="nearest",
                aspect="auto")  # fmt: skip
    axes.set_box_aspect(float(np.clip(rows / columns, 1 / _LONGEST, _LONGEST)))
    axes.set_anchor("NW")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=GREY, linewidth=0.8)
    axes.set_title(_shorten(name), loc="left", fontsize=8.5, color=INK)
    shape = " × ".join(map(str, shown.shape))
    sparsity = 1 - np.count_nonzero(matrix) / max(matrix.size, 1)
    text = f"{shape}   sparsity {sparsity:.3f}"
    axes.annotate(text, (0, 0), (0, -4), "axes fraction", "offset points", va="top",
                  fontsize=7.5, color=INK)  # fmt: skip


def _tiles(matrix: np.ndarray) -> np.ndarray:
    """Densities of tiles, so that a large mask fits the plot without moiré."""
    rows, columns = (-(-n // _SIDE) for n in matrix.shape)
    if rows == columns == 1:
        return matrix.astype(np.float32)
    k, n = matrix.shape[0] // rows * rows, matrix.shape[1] // columns * columns
    tiles = matrix[:k, :n].reshape(k // rows, rows, n // columns, columns)
    return tiles.mean(axis=(1, 3), dtype=np.float32)


def _colours():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", ["#14456e", BLUE, "#f4f6f8"])


def _planned(leaf) -> float | None:
    return None if leaf.planned is None else 1 - leaf.planned / max(leaf.size, 1)


def _draw_bars(axes, leaves, total: float) -> None:
    places = np.arange(len(leaves))
    axes.barh(places, [s for _, s, _, _ in leaves], color=BLUE, height=0.68, zorder=2)
    for place, (_, sparsity, size, planned) in zip(places, leaves):
        axes.text(1.015, place, f"{sparsity:.3f}", va="center", fontsize=8, color=INK)
        axes.text(1.125, place, f"{size:,}", va="center", fontsize=8, color=GREY)
        if planned is not None and abs(planned - sparsity) > 5e-4:
            axes.plot([planned] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=1.5, zorder=4)
    axes.axvline(total, color=ORANGE, linewidth=1.4, zorder=3)
    axes.text(total, -0.75, f"all together {total:.3f}", color=ORANGE, fontsize=8, ha="center")
    axes.set(xlim=(0, 1), ylim=(len(leaves) - 0.4, -0.6))
    axes.set_yticks(places, [_shorten(name, 40) for name, *_ in leaves])
    axes.set_xlabel("sparsity (fraction of zeros)", fontsize=8.5, color=INK)
    _tidy(axes, "x")


def _draw_curve(axes, name: str, x, y) -> None:
    few = len(x) <= 30
    axes.plot(x, y, color=BLUE, linewidth=1.8, marker="o" if few else None, markersize=3.5)
    axes.set_title(name, loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("step", fontsize=8.5, color=INK)
    if name in ("sparsity", "explored R_s"):
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.margins(y=0.1)
    _tidy(axes, "y")


def _draw_reliability(axes, name: str, curve: Reliability) -> None:
    edges, confidence, accuracy, count = map(np.asarray, curve)
    full, centres = count > 0, (edges[1:] + edges[:-1]) / 2
    width = 0.92 / len(count)
    low, gap = np.minimum(accuracy, confidence), accuracy - confidence
    axes.bar(centres[full], low[full], width, color=BLUE, zorder=2)
    for name_of_gap, colour, size in (
        ("accuracy above confidence", "#8fc1e3", gap),
        ("accuracy below confidence", "#f1bf8b", -gap),
    ):
        shown = full & (size > 0)
        if not shown.any():
            continue
        axes.bar(centres[shown], size[shown], width, low[shown], color=colour, label=name_of_gap)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=4)
    error = float(np.sum(count / max(count.sum(), 1) * np.abs(accuracy - confidence)))
    title = f"{name}   ECE {error:.3f}" if name else f"ECE {error:.3f}"
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_ylabel("accuracy", fontsize=8.5, color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    _tidy(axes, "y")
    axes.tick_params(labelbottom=False)


def _draw_counts(axes, curve: Reliability) -> None:
    edges, _, _, count = map(np.asarray, curve)
    share = count / max(count.sum(), 1)
    axes.bar((edges[1:] + edges[:-1]) / 2, share, 0.92 / len(count), color=GREY, zorder=2)
    axes.set_xlabel("confidence", fontsize=8.5, color=INK)
    axes.set_ylabel("share", fontsize=8.5, color=INK)
    axes.set_ylim(bottom=0)
    _tidy(axes, "y")


def _tidy(axes, grid: str) -> None:
    axes.grid(axis=grid, color=LIGHT, linewidth=0.9, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, length=0)


def _shorten(name: str, length: int = 30) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]
