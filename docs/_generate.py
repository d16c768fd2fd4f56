"""The pages that Sphinx reads and that are made from the code, the notebooks and the results."""

import base64
import importlib
import inspect
import json
import re
from pathlib import Path

import sparsejax as sj

HERE = Path(__file__).parent
MADE = HERE / "generated"
RESULTS = HERE.parent / "benchmarks" / "results"
ROOMS = ["prox", "patterns", "select", "masks", "optim", "formats", "kernels", "nn", "nn.surgery",
         "models", "solve", "recipes", "reporting", "sae", "metrics",
         *(f"contrib.{subject}" for subject in sj.contrib.__all__)]  # fmt: skip


def within_site(text: str) -> str:
    """Text whose links to results and notebooks lead to their pages, others are named as files."""
    return re.sub(r"\[([^][]+)\]\(((?:\.\./)+|docs/)([^)#]*)(?:#[^)]*)?\)", _link, text)


def _link(found: re.Match[str]) -> str:
    text, above, target = found.groups()
    name = Path(target).name
    for folder in ("benchmarks/results", "notebooks"):
        if target == f"{folder}/{name}":
            return (
                f"[{text}](/generated/{'gallery' if name.endswith('.ipynb') else 'results'}/{name})"
            )
    if above == "docs/" or (HERE / target).is_file():
        return f"[{text}](/{target})"
    return f"`{target}`"


def front() -> str:
    """README without its list of pages, which the front page has itself."""
    text = (HERE.parent / "README.md").read_text().partition("## Documentation")[0]
    files = r"\[[^][]+\]\((?!docs/|https?:)([^)#]+)\)"
    return within_site(re.sub(files, lambda found: f"`{found[1]}`", text))


def package(room: str) -> str:
    """The page of a package: its docstring, then every public name."""
    name = f"sparsejax.{room}"
    module = importlib.import_module(name)
    public = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    lines = [f"# {room}", "", (module.__doc__ or "").strip(), ""]
    for n in public:
        value = getattr(module, n)
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        kind = kind if callable(value) else "py:data"
        lines += ["```{eval-rst}", f".. {kind}:: {name}.{n}", "```", ""]
        if isinstance(value, dict):
            lines += [*(f"- `{key}`: {text}" for key, text in value.items()), ""]
    return "\n".join(lines)


def gallery(notebooks: list[Path]) -> str:
    """The page of all notebooks: title, first sentence and first picture of each."""
    lines = ["# Notebooks", "", "Stored with their outputs; `make notebooks` runs them again.", ""]
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        title, _, text = "".join(cells[0]["source"]).lstrip("# ").partition("\n")
        sentence = re.split(r"(?<=[.:])\s", " ".join(text.split()), maxsplit=1)[0]
        lines += [f"## [{title}](gallery/{path.name})", "", sentence, ""]
        if picture := next(_pictures(cells), None):
            (MADE / "gallery" / f"{path.stem}.png").write_bytes(base64.b64decode(picture))
            lines += [f"```{{image}} gallery/{path.stem}.png", f":alt: {title}", ":width: 420px",
                      f":target: gallery/{path.stem}.html", "```", ""]  # fmt: skip
    hidden = ["```{toctree}", ":hidden:", *(f"gallery/{path.stem}" for path in notebooks), "```"]
    return "\n".join([*lines, *hidden, ""])


def _pictures(cells):
    for cell in cells:
        for output in cell.get("outputs", ()):
            yield from (
                [output["data"]["image/png"]] if "image/png" in output.get("data", {}) else []
            )


def speed() -> str:
    """The page on when sparsity pays: speed-ups over sparsity of each device, then all results."""
    lines = ["# When does sparsity pay?", "",
             "Speed-up of products over the best dense one of the same run, from "
             "[benchmarks/results](../../benchmarks/results); below 1 the sparse product loses. "
             "All claims: [measurements](../measurements.md).", ""]  # fmt: skip
    for title, name, curves in (
        ("A CPU with two cores, 128 rows, 2048 x 2048", "speed-cpu", _cpu_curves("128", 1)),
        ("The same, one row", "speed-cpu-row", _cpu_curves("1", 1)),
        ("An H200, bfloat16, 8192 rows, 8192 x 8192", "speed-hopper", _hopper_curves()),
    ):
        figure = sj.reporting.plot_tradeoff(curves, ylabel="speed-up", baseline=1.0)
        figure.savefig(MADE / "gallery" / f"{name}.png")
        lines += [
            f"## {title}",
            "",
            f"```{{image}} gallery/{name}.png",
            f":alt: {title}",
            "```",
            "",
        ]
    lines += ["## All results", ""]
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        heads = re.findall(r"^## (.+)$", text, re.M)
        (MADE / "results" / path.name).write_text(f"# {path.stem}\n\n{text}")
        lines += [f"- [{path.stem}](results/{path.name}): {heads[0] if heads else ''}"]
    hidden = ["", "```{toctree}", ":hidden:", ":glob:", "results/*", "```", ""]
    return "\n".join([*lines, *hidden])


def _table(text: str, heading: str) -> dict[str, dict[float, list[float]]]:
    """Ratios of the table below a heading by row and sparsity; empty cells are absent."""
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")]
            for line in section.splitlines() if line.startswith("|")]  # fmt: skip
    densities = [re.search(r"density ([\d.]+)", cell) for cell in rows[0][1:]]
    found: dict[str, dict[float, list[float]]] = {}
    for name, *cells in rows[2:]:
        for head, cell in zip(densities, cells):
            ratios = [float(x) for x in re.findall(r"\d+\.\d+", re.sub(r"\([^)]*\)", "", cell))]
            if head and ratios:
                found.setdefault(name, {})[1 - float(head[1])] = ratios
    return found


def _cpu_curves(rows: str, column: int) -> dict[str, dict[float, float]]:
    text, curves = (RESULTS / "matmul-cpu.md").read_text(), {}
    for made in ("XLA", "C++"):
        for side in (16, 64, 128):
            table = _table(text, f"{made}, blocks of {side}x{side},")[rows]
            curves[f"{made}, blocks of {side}"] = {s: r[column] for s, r in table.items()}
    return curves


def _hopper_curves() -> dict[str, dict[float, float]]:
    table = _table((RESULTS / "hopper.md").read_text(), "Block-sparse, 8192 rows")
    return {f"blocks of {n}": {s: r[0] for s, r in table[n].items()} for n in ("128", "64", "32")}


def generate() -> None:
    """Writes all of them."""
    for folder in ("api", "gallery", "results"):
        (MADE / folder).mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        (MADE / "api" / f"{room}.md").write_text(package(room))
    notebooks = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        (MADE / "gallery" / path.name).write_text(within_site(path.read_text()))
    (MADE / "front.md").write_text(front())
    (MADE / "notebooks.md").write_text(gallery(notebooks))
    (MADE / "speed.md").write_text(speed())
    (MADE / "choose.md").write_text(f"# Choosing a method\n\n{sj.reporting.advice_markdown()}")
    (MADE / "changelog.md").write_text((HERE.parent / "CHANGELOG.md").read_text())
