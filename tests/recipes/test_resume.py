"""Every long procedure is killed after any chunk and resumes to the same bits, or refuses."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import prox, solve
from sparsejax.contrib import (
    bayes,
    dag,
    jepa,
    reprogramming,
    retrieval,
    sara,
    search,
    unlearnable,
    unlearning,
    unmixing,
)

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (24, 6))
Y = jnp.arange(24) % 2
PARAMS = {"kernel": 0.3 * jax.random.normal(KEY, (6, 2)), "bias": jnp.zeros(2)}
PLAN = sj.plan(PARAMS, {"kernel": sj.Unstructured(0.5)})
ADAM = optax.adam(0.05)
SMALL = {"batch_size": 8, "chunk": 2}
WORDS = jnp.arange(48).reshape(24, 1, 2) % 6
IMAGES = jax.random.uniform(KEY, (16, 2, 2, 1))
SHARES = jax.random.dirichlet(KEY, jnp.ones(2), (30,)).T
PIXELS = jnp.array([[1.0, 0.1], [0.5, 0.5], [0.1, 1.0]]) @ SHARES


def loss(p, batch):
    logits = batch["x"] @ p["kernel"] + p["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def dass_loss(p, alpha, batch):
    return loss(jax.tree.map(lambda w: w * jax.nn.softmax(alpha)[0], p), batch)


def network(x):
    flat = x.reshape(len(x), -1)
    return flat @ jax.random.normal(jax.random.key(5), (flat.shape[1], 4))


def masks_of(key, params, sparsity=0.5):
    plan = sj.plan(params, {"kernel": sj.Unstructured(sparsity)})
    return plan.masks(sj.masks.random(params, key=key))


def layers(seed):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(*(nnx.Linear(6, 6, rngs=rngs) for _ in range(3)))


def bayes_layer():
    return bayes.BayesLinear(6, 3, rngs=nnx.Rngs(0))


def data(x=X):
    return {"x": x, "y": Y}


def train(p, masks, key):
    return sj.recipes.train_masked(p, masks, loss, ADAM, data(), steps=3, key=key)


# By name: the run, and arguments of another run, which must be refused.
RUNS = {
    "train_masked": (
        lambda x=X, key=KEY, optimizer=ADAM, **more: sj.recipes.train_masked(
            PARAMS, None, loss, optimizer, data(x), steps=7, key=key, **SMALL, **more
        ),
        ({"x": 2 * X}, {"key": jax.random.key(9)}, {"optimizer": optax.sgd(0.1)}),
    ),
    "unlearn": (
        lambda method="l1", x=X, strength=1e-3, steps=5, **more: unlearning.unlearn(
            PARAMS, None, method, loss, ADAM, forget=data(), retain=data(x), steps=steps, key=KEY,
            strength=strength, **SMALL, **more
        ),
        ({"x": 2 * X}, {"strength": 1e-2}, {"steps": 7}, {"method": "finetune"}),
    ),
    "unlearnable_noise": (
        lambda eps=0.1, images=IMAGES, **more: unlearnable.unlearnable_noise(
            jnp.ones((4, 2)) * jnp.array([0.5, -0.5]), lambda p, x: x.reshape(len(x), -1) @ p,
            images, Y[:16], eps=eps, ratio=0.3, inner_steps=3, weight_steps=2, batch_size=8,
            rounds=4, stop=0.0, **more
        ),
        ({"eps": 0.2}, {"images": IMAGES / 2}),
    ),
    "linear_probe": (
        lambda x=X, **more: reprogramming.linear_probe(
            x, Y, classes=2, steps=5, key=KEY, **SMALL, **more
        ),
        ({"x": 2 * X},),
    ),
    "visual_prompt": (
        lambda size=(4, 4), images=IMAGES, **more: reprogramming.visual_prompt(
            network, images, Y[:16], size=size, classes=2, key=KEY, epochs=3, batch_size=8, **more
        ),
        ({"size": (5, 5)}, {"images": IMAGES / 2}),
    ),
    "dass": (
        lambda alpha=1.0, steps=3, last=ADAM, **more: search.dass(
            PARAMS, alpha * jnp.ones(2), dass_loss, PLAN, data(), data(), key=KEY,
            pretrain=search.Stage(3, ADAM), prune=search.Stage(steps, ADAM),
            finetune=search.Stage(2, last), **SMALL, **more
        ),
        ({"alpha": 2.0}, {"steps": 4}, {"last": optax.sgd(0.1)}),
    ),
    "score_prune": (
        lambda x=X, **more: search.score_prune(
            PARAMS, loss, PLAN, data(x), key=KEY, prune=search.Stage(5, ADAM), **SMALL, **more
        ),
        ({"x": 2 * X},),
    ),
    "random_search": (
        lambda candidates=9, scale=1.0, sparsity=0.5, **more: search.random_search(
            jax.tree.map(lambda x: scale * x, PARAMS), lambda p, masks: loss(p, data()),
            lambda key: masks_of(key, PARAMS, sparsity), key=KEY, candidates=candidates,
            batch_size=3, chunk=4, **more
        ),
        ({"candidates": 8}, {"scale": 2.0}, {"sparsity": 0.75}),
    ),
    "compare_random_search": (
        lambda trials=2, scale=1.0, **more: search.compare_random_search(
            lambda key: jax.tree.map(lambda x: scale * x, PARAMS), masks_of,
            lambda p, masks: loss(p, data()), lambda p, masks, key: loss(p, data()), key=KEY,
            sparsities=(0.25, 0.5, 0.75), trials=trials, candidates=3, **more
        ),
        ({"trials": 3}, {"scale": 2.0}),
    ),
    "colide": (
        lambda strength=0.05, x=X, **more: dag.colide(
            x, strength, path=(1.0, 0.1), shifts=(1.0, 0.9), max_steps=(60, 50), check_every=20,
            learning_rate=1e-3, throw=False, **more
        ),
        ({"strength": 0.1}, {"x": 2 * X}),
    ),
    "dagma": (
        lambda x=X, **more: dag.dagma(
            x, path=(1.0, 0.1), shifts=(1.0, 0.9), max_steps=(40, 50), check_every=20,
            learning_rate=1e-3, throw=False, **more
        ),
        ({"x": 2 * X},),
    ),
    "unmix": (
        lambda strength=0.05, **more: unmixing.unmix(
            PIXELS, 2, strength, max_steps=50, chunk=20, throw=False, **more
        ),
        ({"strength": 0.1},),
    ),
    "dictionary_learning": (
        lambda x=X, penalty=None, **more: solve.dictionary_learning(
            x.reshape(6, 4, 6), 8, penalty or prox.l1(0.1), key=KEY, chunk=2, max_steps=5, **more
        ),
        ({"x": 2 * X}, {"penalty": prox.l1(0.2)}, {"penalty": prox.l0(0.1)}),
    ),
    "sara": (
        lambda weight_decay=0.1, **more: sara.sara(
            PARAMS, lambda p, key: loss(p, data()), key=KEY, theta=0.3, steps=9, chunk=2,
            progressive_step=5, learning_rate=0.05, weight_decay=weight_decay, **more
        ),
        ({"weight_decay": 0.2},),
    ),
    "train_jepa": (
        lambda strength=0.3, scale=1.0, **more: jepa.train_jepa(
            jepa.PatchEncoder(4, 1, 4, 1, 1, rngs=nnx.Rngs(0)),
            jepa.Predictor(4, 4, 4, 2, 1, 1, rngs=nnx.Rngs(1)),
            scale * IMAGES.reshape(16, 4, 1), grid=(2, 2), block=(1, 1), steps=5, key=KEY,
            strength=strength, **SMALL, **more
        ),
        ({"strength": 0.1}, {"scale": 2.0}),
    ),
    "train_retriever": (
        lambda strength=0.1, scale=1, special=(), **more: retrieval.train_retriever(
            jnp.eye(6), lambda p, ids, mask: retrieval.splade_pool(p[ids], mask),
            retrieval.info_nce, ADAM,
            retrieval.Pairs(scale * WORDS[:, 0] % 6, WORDS[:, 0] > 0, WORDS, WORDS > 0),
            jnp.arange(1.0, 7), steps=7, key=KEY, strength=strength, special=special, **SMALL,
            **more
        ),
        ({"strength": 0.2}, {"scale": 5}, {"special": (1,)}),
    ),
    "train_ssvi": (
        lambda scale=1.0, every=2, sparsity=0.5, **more: bayes.train_ssvi(
            bayes_layer(), sj.plan(bayes_layer(), {r"mu$": sj.Unstructured(sparsity)}),
            lambda model, batch, key: jnp.mean(model(batch, key) ** 2), ADAM, scale * X, steps=7,
            key=KEY, every=every, **SMALL, **more
        ),
        ({"scale": 2.0}, {"every": 3}, {"sparsity": 0.75}),
    ),
    "sparsity_sweep": (
        lambda seeds=1, scale=1.0, grid=(0.0, 0.5, 0.75), **more: sj.recipes.sparsity_sweep(
            jax.tree.map(lambda x: scale * x, PARAMS), lambda p: -loss(p, data()),
            sparsities=grid, seeds=seeds, finetune=train, key=KEY, **more
        ),
        ({"seeds": 2}, {"scale": 2.0}, {"grid": (0.0, 0.5, 0.8)}),
    ),
    "iterative_prune": (
        lambda scale=1.0, score=None, **more: sj.recipes.iterative_prune(
            jax.tree.map(lambda x: scale * x, PARAMS), train, PLAN, key=KEY, rounds=3, score=score,
            **more
        ),
        ({"scale": 2.0}, {"score": sj.masks.magnitude}),
    ),
    "sequential_prune": (
        lambda seed=0, x=X, **more: sj.recipes.sequential_prune(
            layers(seed), [x], sj.plan(layers(seed), sj.Unstructured(0.5)), **more
        ),
        ({"seed": 1}, {"x": 2 * X}),
    ),
    "sparse_model_soup": (
        lambda settings=(0.1, 0.2), scale=1.0, **more: sj.recipes.sparse_model_soup(
            jax.tree.map(lambda x: scale * x, PARAMS),
            lambda p, masks, key, setting: train(p, masks, key), PLAN, key=KEY, phases=3,
            copies=2, settings=settings, **more
        ),
        ({"settings": (0.1, 0.3)}, {"scale": 2.0}),
    ),
}  # fmt: skip


def bits(tree):
    return [(str(np.asarray(x).dtype), np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_bit_for_bit_or_refuses(name):
    run, others = RUNS[name]
    saved = []
    whole = run()
    assert bits(run(callback=lambda done: saved.append(pickle.dumps(done)))) == bits(whole)
    assert len(saved) > 1
    resume = pickle.loads(saved[len(saved) // 2])
    assert isinstance(resume, sj.recipes.Progress) and bits(run(resume=resume)) == bits(whole)
    for other in others:
        with pytest.raises(ValueError, match="resume began with|has shape"):
            run(resume=pickle.loads(saved[0]), **other)


# A rate of float32 and parameters of bfloat16: after its first step the state has another dtype.
DRIFTING = optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(0.1)
LOW = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
LOOPS = {
    "train_masked": lambda: sj.recipes.train_masked(
        LOW, None, loss, DRIFTING, data(), steps=3, key=KEY, **SMALL
    ),
    "dass": lambda: search.dass(
        LOW, jnp.ones(2), dass_loss, PLAN, data(), data(), key=KEY, prune=search.Stage(2, DRIFTING),
        alpha_optimizer=DRIFTING, **SMALL
    ).params,
    "visual_prompt": lambda: reprogramming.visual_prompt(
        network, IMAGES.astype(jnp.bfloat16), Y[:16], size=(4, 4), classes=2, key=KEY, epochs=2,
        batch_size=8, optimizer=DRIFTING,
    ).prompt,
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_optimizers_whose_state_changes_dtype_at_its_first_step(name):
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(LOOPS[name]()))


@pytest.mark.parametrize("name", ["colide", "train_masked", "sparsity_sweep"])
def test_the_bar_reaches_its_end(name, capsys):
    RUNS[name][0](progress=True)
    assert f"{name} " in (shown := capsys.readouterr().out) and "100%" in shown, shown


CHILD = """
import os, pathlib, pickle, sys
from tests.recipes.test_resume import RUNS, bits
name, file = sys.argv[1], pathlib.Path(sys.argv[2])
def save(done):
    part = file.with_suffix(".part")
    part.write_bytes(pickle.dumps(done))
    os.replace(part, file)
    print("saved", flush=True)
resume = pickle.loads(file.read_bytes()) if file.exists() else None
found = bits(RUNS[name][0](callback=save, resume=resume))
pathlib.Path(sys.argv[3]).write_bytes(pickle.dumps(found))
"""


# Each starts a process; SPARSEJAX_KILLS=20 is the long form.
KILLS = int(os.environ.get("SPARSEJAX_KILLS", "4"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_process_resumes_bit_for_bit(name, tmp_path):
    want, rng = bits(RUNS[name][0]()), np.random.default_rng(0)
    file, result = tmp_path / "progress", tmp_path / "result"
    root = pathlib.Path(__file__).parents[2]
    for _ in range(KILLS):
        call = [sys.executable, "-c", CHILD, name, str(file), str(result)]
        with subprocess.Popen(call, cwd=root, env=os.environ, stdout=subprocess.PIPE) as child:
            for _ in range(int(rng.integers(1, 4))):  # after some chunks, anywhere in the next
                if not child.stdout.readline():
                    break
            try:
                child.wait(float(rng.random() / 20))
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
        if result.exists():
            assert pickle.loads(result.read_bytes()) == want
            result.unlink()
            file.unlink()
    resume = pickle.loads(file.read_bytes()) if file.exists() else None
    assert bits(RUNS[name][0](resume=resume)) == want
