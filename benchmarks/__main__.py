"""Runs one benchmark, or lists all.

python -m benchmarks                    the names, with what each shows
python -m benchmarks NAME               its tables, kept in benchmarks/results
python -m benchmarks NAME --quick       small sizes, within about a minute; nothing is kept
python -m benchmarks NAME --help        its own options: the arguments of its `main`
"""

import argparse
import ast
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable

FOLDERS = ("speed", "papers")


def found() -> dict[str, pathlib.Path]:
    """The file of each benchmark by name."""
    here = pathlib.Path(__file__).parent
    files = [path for folder in FOLDERS for path in sorted((here / folder).glob("[!_]*.py"))]
    return {path.stem: path for path in files}


def listing() -> str:
    """All names with the first line of each docstring; nothing is imported."""
    lines, files = [], found()
    width = max(map(len, files))
    for folder in FOLDERS:
        lines.append(f"benchmarks/{folder}:")
        for name, path in files.items():
            if path.parent.name == folder:
                text = ast.get_docstring(ast.parse(path.read_text())) or ""
                lines.append(f"  {name:{width}}  {text.partition(chr(10))[0]}")
    return "\n".join(lines)


def options(name: str, main: Callable[..., None], given: list[str]) -> argparse.Namespace:
    """What is given for the arguments of `main`, each with the type of its default."""
    parser = argparse.ArgumentParser(
        f"python -m benchmarks {name}",
        description=sys.modules[main.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, argument in inspect.signature(main).parameters.items():
        default = argument.default
        if isinstance(default, bool):
            parser.add_argument(f"--{option}", action="store_true")
        else:
            parser.add_argument(
                f"--{option}", type=type(default), default=default, help=f"{default!r} if not given"
            )
    return parser.parse_args(given)


def run() -> None:
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(listing() if not sys.argv[1:] else f"{__doc__}\n{listing()}")
        return
    name, *given = sys.argv[1:]
    files = found()
    if name not in files:
        sys.exit(f"{name!r} is no benchmark; there are:\n{listing()}")
    # Some set the environment before they import JAX, therefore nothing here does.
    main = importlib.import_module(f"benchmarks.{files[name].parent.name}.{name}").main
    main(**vars(options(name, main, given)))


if __name__ == "__main__":
    run()
