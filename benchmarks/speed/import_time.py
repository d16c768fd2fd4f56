"""`import sparsejax` over importing jax, flax and optax alone, in fresh interpreters.

python -m benchmarks import_time
"""

import subprocess
import sys
import time

from benchmarks._report import save, table_of

ALONE = "import jax, jax.numpy, flax, flax.nnx, optax, chex, jaxtyping, rich"
OURS = "import sparsejax"


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main(quick: bool = False) -> None:
    for code in (ALONE, OURS):
        seconds(code)  # write the bytecode
    # Interleaved, and the best of each: what else the machine does only ever adds time.
    pairs = [(seconds(ALONE), seconds(OURS)) for _ in range(3 if quick else 9)]
    alone, ours = (min(column) for column in zip(*pairs))
    ratio = ours / alone
    table = table_of(
        "import time in a fresh interpreter",
        ["what", "seconds", "ratio", "goal"],
        [
            ["jax, flax, optax and the other core dependencies", f"{alone:.2f}", "1.00", ""],
            ["sparsejax", f"{ours:.2f}", f"{ratio:.2f}", "<= 1.15", ratio <= 1.15],
        ],
    )
    save("import-time", table, quick=quick)
