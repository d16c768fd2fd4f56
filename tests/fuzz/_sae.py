"""Rows of sparsejax.sae."""

import functools
import tempfile

import jax.numpy as jnp
import numpy as np
from flax import nnx

import sparsejax as sj
from sparsejax import optim, sae

from ._core import KEY
from ._training import LOOP, SGD
from ._values import named, row

X = jnp.arange(12.0).reshape(4, 3) / 6 - 1
RELU = sae.SAE(sae.ReLU())
PARAMS = RELU.init(3, 6, key=KEY)
CARRY = sae.begin(RELU, PARAMS, SGD)
MODEL = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
SITE = {"model": MODEL, "where": "layers/0$"}
USE = SITE | {"sae": RELU, "params": PARAMS}
F = RELU.encode(PARAMS, X)
PLAIN = {"sae": RELU, "params": PARAMS}
FOLDER = f"{tempfile.mkdtemp()}/sae"
sae.save(FOLDER, RELU, PARAMS)


OWN = {"where": "text"}  # `replace` lists the modules


@functools.wraps(sae.collect)
def collect(*args, **kwargs):
    return list(sae.collect(*args, **kwargs))


def loss(logits, batch):
    return jnp.mean(logits**2)


ROWS = [
    row(optim.unit_norm, {"where": "text"}, optimizer=SGD, where="W_dec$", axis=-1),
    row(sae.ActivationBuffer, source=lambda start: [np.ones((4, 2))], capacity=8, batch_size=2,
        key=KEY),
    row(sae.ablate, OWN, **USE, latents=[0, 1], value=0.0),
    row(sae.begin, **PLAIN, optimizer=SGD),
    row(sae.cache_activations, {"folder": "text"}, folder=f"{FOLDER}-cache",
        source=lambda start: []),
    row(collect, OWN, **SITE, batches=[X], keep=lambda batch: np.ones(4, bool), call=None),
    row(sae.coherence, W_dec=X, block=2),
    row(sae.dashboard, **PLAIN, batches=[([["a", "b"]], X[None, :2])], latents=[0], examples=2,
        window=3),
    row(sae.decode, indices=jnp.array([[0, 1]]), values=jnp.ones((1, 2)), W_dec=X),
    row(sae.description_length, l0=3.0, latents=8, bits=7.0),
    row(sae.eps_lbo, z=X, f=F, params=PARAMS),
    row(sae.expected_scale, samples=X),
    row(sae.fidelity, OWN, **USE, batches=[X], loss=loss, ablation="zero", call=None),
    row(sae.fold_decoder_norm, **PLAIN),
    row(sae.fold_scale, params=PARAMS, scale=2.0),
    row(sae.geometric_median, samples=X, max_steps=5, tol=1e-5),
    row(named("gradients", lambda model, where, loss, call: sae.gradients(
        model, where, loss, X, call=call)), **SITE, loss=jnp.sum, call=None),
    row(sae.recovery, W_dec=X, truth=X, block=2),
    row(sae.resample, sae=RELU, optimizer=SGD, carry=CARRY, x=X, key=KEY, dead_after=3, scale=0.2),
    row(sae.sparse_probe, features=F, labels=np.array([0, 1, 0, 1]), k=1, held_out=None,
        strength=0.1),
    row(sae.specs, {"axis": "text"}, params=PARAMS, axis="x"),
    row(sae.splice, OWN, **USE, error=False),
    row(sae.statistics, **PLAIN, batches=[X]),
    row(sae.steer, OWN, **USE, latent=0, strength=1.0, relative=True),
    row(sae.steering_effect, OWN, **USE, latents=[0], batch=X, strength=1.0),
    row(sae.train, sae=RELU, params=PARAMS, data=X, optimizer=SGD, steps=2, key=KEY, batch_size=2,
        chunk=1, **LOOP),
    row(sae.train_step, sae=RELU, optimizer=SGD, carry=CARRY, batch=X),
    row(sae.weight_statistics, params=PARAMS),
    row(sae.zf, z=X, f=F, params=PARAMS),
    row(sae.zf_bounds, eps=0.1, latents=8),
    row(named("load", lambda path: sae.load(path)), {"path": "text"}, path=FOLDER),
    row(named("save", lambda path, sae, params, metadata: sj.sae.save(
        path, sae, params, metadata=metadata)), {"path": "text"},
        path=FOLDER, **PLAIN, metadata=None),
    row(RELU.init, width=3, latents=6, key=KEY, samples=X, decoder_norm=1.0, output=3, skip=False,
        dtype=jnp.float32),
    row(RELU.encode, params=PARAMS, x=X, grad=None),
    row(RELU.decode, params=PARAMS, features=F),
]  # fmt: skip
