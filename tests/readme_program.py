"""Runs the program of a README on a small model, with the core dependencies only.

python tests/readme_program.py README.md
"""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

X = jax.random.normal(jax.random.key(0), (8, 5, 16))


class Model(nnx.Module):
    """Attention and a network on top, with the names that the program expects."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.mlp = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.mlp(jax.nn.relu(self.attention(x)))


def loss_fn(model, batch):
    return jnp.mean((model(batch) - batch) ** 2)


def main(readme: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", pathlib.Path(readme).read_text(), re.S)
    program = program.replace("every=50", "every=1").replace("=200", "=0").replace("=1_800", "=5")
    names = {"model": Model(), "loss_fn": loss_fn, "batches": [X] * 8}
    exec(compile(program, readme, "exec"), names)
    model, fast = names["model"], names["fast"]
    np.testing.assert_allclose(fast(X), model(X), atol=1e-5)
    zeros = float((model.mlp.kernel[...] == 0).mean())
    assert 0.5 < zeros < 1, zeros
    print(f"sparsejax on Python {sys.version.split()[0]}, JAX {jax.__version__}: runs")


if __name__ == "__main__":
    main(sys.argv[1])
