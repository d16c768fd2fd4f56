"""Seconds of a training step of a top-k autoencoder in PyTorch, by SAELens and written plainly.

    python benchmarks/speed/_sae_torch.py 4096 576 16384 32

For an environment of its own, since PyTorch is not a dependency: `pip install sae-lens`. Prints one
line of JSON; `python -m benchmarks sae` runs it if SAE_TORCH_PYTHON names that interpreter.
"""

import json
import statistics
import sys
import time

import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig


def step_of_sae_lens(shape):
    """A step of SAELens, without dead latents; its sparse activations do not run on CPUs."""
    n, d, h, k = shape
    config = TopKTrainingSAEConfig(d_in=d, d_sae=h, k=k, use_sparse_activations=False)
    sae = TopKTrainingSAE(config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    x, dead = torch.randn(n, d), torch.zeros(h, dtype=torch.bool)

    def step():
        optimizer.zero_grad()
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0,
            is_logging_step=False,
        )  # fmt: skip
        sae.training_forward_pass(given).loss.backward()
        optimizer.step()

    return step


def plain_step(shape):
    """The same model in a few lines: top-k, scatter, two products."""
    n, d, h, k = shape
    x = torch.randn(n, d)
    encoder, decoder = torch.randn(d, h) / d**0.5, torch.randn(h, d) / d**0.5
    weights = [p.requires_grad_() for p in (encoder, decoder, torch.zeros(h), torch.zeros(d))]
    optimizer = torch.optim.Adam(weights, lr=1e-3)

    def step():
        W_enc, W_dec, b_enc, b_dec = weights
        optimizer.zero_grad()
        z = (x - b_dec) @ W_enc + b_enc
        values, index = z.topk(k)
        f = torch.zeros_like(z).scatter(-1, index, values.relu())
        ((f @ W_dec + b_dec - x) ** 2).sum(-1).mean().backward()
        optimizer.step()

    return step


def seconds_of(step, rounds):
    """The median time of a step."""
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    *shape, rounds = map(int, sys.argv[1:])
    steps = {"SAELens": step_of_sae_lens(shape), "PyTorch, plainly": plain_step(shape)}
    found = {name: seconds_of(step, rounds) for name, step in steps.items()}
    print(json.dumps(found | {"version": torch.__version__}))
