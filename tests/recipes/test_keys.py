"""Keys that are none, in a process whose annotations are not checked."""

import os
import subprocess
import sys

CALLS = """
import jax.numpy as jnp, optax, sparsejax as sj
from sparsejax.contrib import reprogramming, sara, search
params = {"kernel": jnp.ones((4, 4))}
plan = sj.plan(params, sj.Unstructured(0.5))
keep = lambda params, masks, key: params
for call in (
    lambda: sj.masks.random(params, key=0),
    lambda: search.random_nodes(sj.nn.surgery.channel_graph(params), 0.5, key=0),
    lambda: sj.recipes.iterative_prune(params, keep, plan, key=0),
    lambda: sj.recipes.sparse_model_soup(params, keep, plan, key=0),
    lambda: sj.recipes.train_masked(params, None, lambda p, b: 0.0, optax.sgd(0.1), jnp.ones(2),
                                    steps=1, key=0),
    lambda: sara.sara(params, lambda p, key: 0.0, key=0),
    lambda: reprogramming.few_shot(jnp.zeros(3, int), 1, key=0),
):
    try:
        call()
    except TypeError as error:
        print(error)
for rounds in ("5", 2.5):
    try:
        sj.masks.iterative(sj.masks.magnitude, plan, params, rounds=rounds)
    except TypeError as error:
        print(error)
"""


def test_a_key_that_is_none_is_named():
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=os.environ, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert all("key must come from jax.random.key(0)" in line for line in lines[:7])
    assert all("rounds must be an integer, got" in line for line in lines[7:])
