"""Iterative soft shrinkage against hard thresholding: supports found, and super-resolution.

    python -m benchmarks shrinkage

The experiments of ISS-P (2303.09650) at a small size: a sparse linear regression over 200 seeds,
and twofold super-resolution of the photographs that scikit-learn ships (train on one, test on the
other) by a small network with 95 % zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_images

import sparsejax as sj
from benchmarks._report import save, table_of

ALPHAS = (0.0, 0.5, 0.9, 0.95, 0.99)


def regression(alpha: float, key) -> tuple[jax.Array, jax.Array]:
    """Whether the support is found, and the relative error, of one problem."""
    keys = jax.random.split(key, 4)
    a = jax.random.normal(keys[0], (60, 40))
    support = jax.random.permutation(keys[1], 40)[:8]
    truth = jnp.zeros(40).at[support].set(jax.random.normal(keys[2], (8,)))
    params = {"kernel": 0.1 * jax.random.normal(keys[3], (40,))}
    plan = sj.plan(params, {"kernel": sj.Unstructured(0.8)})
    shrink = sj.optim.iterative_shrinkage(plan, alpha, prune_steps=200)
    tx = optax.chain(optax.sgd(0.1), shrink)

    def loss(p):
        return jnp.sum((a @ (p["kernel"] - truth)) ** 2) / 120

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=400)
    found = jnp.all(sj.get_masks(state)["kernel"] == (truth != 0))
    return found, jnp.linalg.norm(params["kernel"] - truth) / jnp.linalg.norm(truth)


def regression_table(seeds, alphas):
    keys = jax.random.split(jax.random.key(0), seeds)
    rows, rate = [], {}
    for alpha in alphas:
        found, error = jax.jit(jax.vmap(lambda k, a=alpha: regression(a, k)))(keys)
        rate[alpha] = float(found.mean())
        name = "0 (hard thresholding)" if alpha == 0 else f"{alpha:g}"
        rows.append([name, f"{rate[alpha]:.3f}", f"{float(error.mean()):.4f}"])
    title = f"60 x 40 regression, 8 of 40 entries, {seeds} seeds"
    claims = [
        ["exact support at 0.95 (goal 0.85)", f"{rate[0.95]:.3f}", rate[0.95] >= 0.85],
        ["over hard thresholding (goal 1.7)", f"{rate[0.95] / rate[0.0]:.2f}",
         rate[0.95] >= 1.7 * rate[0.0]],
    ]  # fmt: skip
    return table_of(title, ["alpha", "exact support", "relative error"], rows), claims


def patches(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """5 x 5 patches of the halved luminance less their centre, and the 2 x 2 residuals."""
    y = image @ np.array([0.299, 0.587, 0.114]) / 255
    y = y[: y.shape[0] // 2 * 2, : y.shape[1] // 2 * 2]
    high = y.reshape(y.shape[0] // 2, 2, y.shape[1] // 2, 2)
    low = high.mean((1, 3))
    windows = np.lib.stride_tricks.sliding_window_view(low, (5, 5)).reshape(-1, 25)
    centre = low[2:-2, 2:-2].reshape(-1, 1)
    target = high[2:-2, :, 2:-2].transpose(0, 2, 1, 3).reshape(-1, 4)
    return (windows - centre).astype(np.float32), (target - centre).astype(np.float32)


def network(params, x):
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["third"]["kernel"] + params["third"]["bias"]


def initial(key):
    sizes = {"first": (25, 128), "second": (128, 128), "third": (128, 4)}
    return {
        name: {"kernel": 0.03 * jax.random.normal(k, size), "bias": jnp.zeros(size[1])}
        for (name, size), k in zip(sizes.items(), jax.random.split(key, 3))
    }


def resolution(kind: str, seed: int, data, steps: int):
    """The test PSNR and the gradient norm at the end of the first stage."""
    (x, y), (test_x, test_y) = data
    prune_steps = steps * 3 // 5
    params = initial(jax.random.key(seed))
    plan = sj.plan(params, sj.Unstructured(0.95))
    adam = optax.adam(1e-3, 0.9, 0.99)
    shrink = lambda a: optax.chain(  # noqa: E731
        adam, sj.optim.iterative_shrinkage(plan, a, prune_steps=prune_steps)
    )
    methods = {
        "dense": adam,
        "random mask": optax.chain(
            adam, sj.optim.keep_masked(plan.masks(sj.masks.random(params, key=jax.random.key(9))))
        ),
        "one-shot magnitude": optax.chain(
            adam, sj.optim.prune(plan, begin=prune_steps, end=prune_steps)
        ),
        "IHT": shrink(0.0),
        "ISS-P 0.95": shrink(0.95),
        "ISS-P 0.99": shrink(0.99),
    }
    tx = methods[kind]

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (256,), 0, len(x))
        loss = lambda p: jnp.abs(network(p, x[rows]) - y[rows]).mean()  # noqa: E731
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), optax.tree.norm(grads)

    keys = jax.random.split(jax.random.key(100 + seed), steps)
    start = (params, tx.init(params))
    (params, _), norms = jax.jit(lambda c, k: jax.lax.scan(step, c, k))(start, keys)
    error = jnp.mean((network(params, test_x) - test_y) ** 2)
    return float(-10 * jnp.log10(error)), float(norms[prune_steps * 2 // 3 : prune_steps].mean())


def resolution_table(seeds, steps):
    china, flower = load_sample_images().images
    data = tuple(tuple(map(jnp.asarray, patches(i))) for i in (china, flower))
    rows, psnr, norm = [], {}, {}
    names = ("dense", "random mask", "one-shot magnitude", "IHT", "ISS-P 0.95", "ISS-P 0.99")
    for kind in names:
        found = np.array([resolution(kind, seed, data, steps) for seed in range(seeds)])
        psnr[kind], norm[kind] = found.mean(0)
        rows.append([kind, f"{psnr[kind]:.2f} +- {found[:, 0].std():.2f}", f"{norm[kind]:.3f}"])
    best = max(psnr["random mask"], psnr["one-shot magnitude"])
    ratio = norm["ISS-P 0.95"] / norm["IHT"]
    claims = [
        ["PSNR of ISS-P 0.95 over IHT (goal 0)", f"{psnr['ISS-P 0.95'] - psnr['IHT']:.3f}",
         bool(psnr["ISS-P 0.95"] >= psnr["IHT"])],
        ["PSNR of IHT over both one-shot masks (goal 0)", f"{psnr['IHT'] - best:.3f}",
         bool(psnr["IHT"] > best)],
        ["gradient norm of ISS-P over IHT (goal 1.4)", f"{ratio:.2f}", bool(ratio >= 1.4)],
    ]  # fmt: skip
    title = f"twofold super-resolution, 95 % zeros, {seeds} seeds"
    return table_of(title, ["method", "PSNR", "gradient norm"], rows), claims


def main(quick: bool = False) -> None:
    first, claims = regression_table(*((20, (0.0, 0.95)) if quick else (200, ALPHAS)))
    second, more = resolution_table(*((1, 150) if quick else (3, 1500)))
    claimed = table_of("claims", ["claim", "measured"], claims + more)
    save("shrinkage", first, second, claimed, quick=quick, seed=range(1 if quick else 3))
