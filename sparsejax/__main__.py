"""`python -m sparsejax`: trains sparse networks on real data and shows the result.

Five networks learn scikit-learn's digits: dense, pruned to 90 % along a cubic ramp with ERK
allocation, random 90 % static, 2:4 with SR-STE, and cut to 16 hidden neurons by WGSEF. Prints one
table of results and writes a report, a picture and a checkpoint to the folder quickstart.
"""

import argparse
import importlib.metadata
import pathlib
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import sparsejax as sj

OUT = pathlib.Path("quickstart")
STEPS, BATCH, CHUNK = 1500, 64, 50
console = Console()


class Data(NamedTuple):
    """Images of 64 pixels, centred, and their digits; 70 % for training."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


class Classifier(nnx.Module):
    """A ReLU network."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs):
        he = nnx.initializers.he_normal()
        self.layers = nnx.List(
            nnx.Linear(m, n, kernel_init=he, rngs=rngs) for m, n in zip(widths, widths[1:])
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Trained(NamedTuple):
    """A trained network, its masks and plan, and a smaller network without its dead units."""

    model: Classifier
    masks: Any = None
    plan: sj.masks.Plan | None = None
    optimizer: nnx.Optimizer | None = None
    small: Classifier | None = None


def load_data() -> Data:
    """scikit-learn's digits, which are included in the package."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise SystemExit('the quickstart needs: pip install "sparsejax[examples]"') from error
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        (x / 16).astype(np.float32), y, test_size=0.3, stratify=y, random_state=0
    )
    mean = np.mean(x, axis=0)
    return Data(*map(jnp.asarray, (x - mean, y, x_test - mean, y_test)))


def loss_fn(model: Classifier, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def accuracy(model: Classifier, data: Data) -> float:
    """Fraction of correctly classified test images."""
    return float((model(data.x_test).argmax(-1) == data.y_test).mean())


def fit(
    model: Classifier,
    tx: optax.GradientTransformation,
    data: Data,
    report: Callable[[int, float], None],
    *,
    steps: int = STEPS,
    batch: int | None = BATCH,
    view: Callable[..., Classifier] = lambda model, masks: model,
) -> nnx.Optimizer:
    """Trains a model in place; the loss is evaluated at `view(model, masks)`."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, key):
        if batch is None:
            x, y = data.x, data.y
        else:
            rows = jax.random.randint(key, (batch,), 0, data.x.shape[0])
            x, y = data.x[rows], data.y[rows]
        masks = _masks(optimizer)
        loss, grads = nnx.value_and_grad(lambda m: loss_fn(view(m, masks), x, y))(model)
        optimizer.update(model, grads)
        return loss

    for i, key in enumerate(jax.random.split(jax.random.key(1), steps)):
        loss = step(model, optimizer, key)
        if (i + 1) % CHUNK == 0:
            report(i + 1, float(loss))
    return optimizer


def _masks(optimizer: nnx.Optimizer) -> Any:
    try:
        return sj.get_masks(optimizer.opt_state)
    except ValueError:  # a dense optimizer
        return {}


def sgd(steps: int = STEPS) -> optax.GradientTransformation:
    """The common optimizer of all methods."""
    rate = optax.cosine_decay_schedule(0.1, steps)
    return optax.chain(optax.add_decayed_weights(5e-5), optax.sgd(rate, momentum=0.9))


WIDTHS = (64, 256, 256, 10)


def dense(data: Data, report) -> Trained:
    """The dense baseline."""
    model = Classifier(WIDTHS, nnx.Rngs(0))
    fit(model, sgd(), data, report)
    return Trained(model)


def pruned(data: Data, report) -> Trained:
    """90 % of the weights pruned during training, along a cubic ramp, ERK between layers."""
    model = Classifier(WIDTHS, nnx.Rngs(0))
    plan = sj.plan(model, {r"kernel$": sj.Unstructured(0.9)}, allocate=sj.masks.erk)
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, transition_steps=800, transition_begin=100)
    tx = optax.chain(sgd(), sj.optim.prune(plan, ramp, every=20))
    optimizer = fit(model, tx, data, report)
    return Trained(model, sj.get_masks(optimizer.opt_state), plan, optimizer)


def static(data: Data, report) -> Trained:
    """90 % of the weights pruned at random from the start, ERK between layers."""
    model = Classifier(WIDTHS, nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    plan = sj.plan(model, {r"kernel$": sj.Unstructured(0.9)}, allocate=sj.masks.erk)
    masks = plan.masks(sj.masks.random(params, key=jax.random.key(2)))
    nnx.update(model, sj.masks.apply_masks(params, masks))
    fit(model, optax.chain(sgd(), sj.optim.keep_masked(masks)), data, report)
    return Trained(model, masks, plan)


def two_to_four(data: Data, report) -> Trained:
    """2:4 with SR-STE: masked forward, dense backward, pruned weights pulled to zero."""
    model = Classifier(WIDTHS, nnx.Rngs(0))
    plan = sj.plan(model, {r"layers/[01]/kernel$": sj.NM(2, 4)})
    tx = optax.chain(sgd(), sj.optim.track_masks(plan))

    def view(model, masks):
        return sj.masks.straight_through(model, masks, decay=2e-4)

    optimizer = fit(model, tx, data, report, view=view)
    masks = sj.get_masks(optimizer.opt_state)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    nnx.update(model, sj.masks.apply_masks(params, masks))
    return Trained(model, masks, plan)


def sixteen_neurons(data: Data, report) -> Trained:
    """At most 16 of 64 hidden neurons by the group envelope WGSEF, then cut to exactly 16."""
    model = Classifier((64, 64, 10), nnx.Rngs(0))
    neurons = jnp.arange(64)
    labels = {
        "layers/0/kernel": jnp.broadcast_to(neurons, (64, 64)),
        "layers/0/bias": neurons,
    }
    penalty = sj.prox.wgsef(16, strength=0.1, groups=labels, num_groups=64)
    tx = sj.optim.proximal_sgd(0.2, penalty, momentum=0.9)
    fit(model, tx, data, report, steps=600, batch=None)
    params: Any = nnx.as_pure(nnx.state(model, nnx.Param))
    kernel, bias = params["layers"][0]["kernel"], params["layers"][0]["bias"]
    live = sj.metrics.live_units(kernel, bias)
    before = accuracy(model, data)
    strength = jnp.hypot(jnp.linalg.norm(kernel, axis=0), bias)
    kept = sj.masks.topk(strength, sj.Unstructured(0.75))
    masks = {"layers": {0: {"kernel": jnp.broadcast_to(kept, (64, 64)), "bias": kept}}}
    nnx.update(model, sj.masks.apply_masks(params, masks))
    console.print(
        f"WGSEF: {int(live.sum())} of 64 hidden neurons alive, accuracy {before:.4f}; "
        f"cut to 16: {accuracy(model, data):.4f}"
    )
    graph = sj.nn.surgery.channel_graph(model)
    small = sj.nn.surgery.remove_channels(model, graph, {"layers/0": kept})
    return Trained(model, masks, small=small)


METHODS: dict[str, tuple[Callable[..., Trained], int]] = {
    "dense": (dense, STEPS),
    "pruned 90 %, ERK": (pruned, STEPS),
    "random 90 %, static": (static, STEPS),
    "2:4, SR-STE": (two_to_four, STEPS),
    "16 neurons, WGSEF": (sixteen_neurons, 600),
}


def train_all(data: Data) -> dict[str, Trained]:
    """Trains the five networks with a live bar each."""
    bars = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        console=console,
    )
    trained = {}
    with bars:
        for name, (method, steps) in METHODS.items():
            task = bars.add_task(name, total=steps, loss="")
            trained[name] = method(
                data,
                lambda i, loss, task=task: bars.update(task, completed=i, loss=f"{loss:.4f}"),
            )
    return trained


def show(trained: dict[str, Trained], data: Data) -> dict[str, sj.reporting.Report]:
    """One table of all networks."""
    title = "digits, one seed, 540 test images"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("network", no_wrap=True)
    for column in ("accuracy", "sparsity (all)", "kept", "FLOPs", "bytes", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    reports, seconds = {}, times(trained, data)
    for name, (model, masks, plan, *_) in trained.items():
        report = sj.report(model, masks, plan, example=data.x_test[:1])
        table.add_row(
            name,
            f"{accuracy(model, data):.4f}",
            f"{report.sparsity:.3f} ({report.total_sparsity:.3f})",
            f"{report.kept:,}",
            f"{report.flops_sparse / 1e3:.1f}k",
            f"{report.bytes_sparse / 1e3:.0f}k",
            f"{seconds[name] / seconds['dense']:.2f}",
        )
        reports[name] = report
    console.print(table)
    device = jax.devices()[0].device_kind
    console.print(
        f"time: {len(data.x_test)} images, compressed network over the dense one, {device};"
        "\n  single zeros stay dense; 2:4 is faster on GPUs with sparse tensor cores only"
    )
    return reports


def times(trained: dict[str, Trained], data: Data) -> dict[str, float]:
    """Seconds of a forward pass of each network, compressed: 2:4 kernels, smaller layers."""
    calls = {}
    for name, (model, masks, plan, _, small) in trained.items():
        fast = small or (model if plan is None else sj.compress(model, plan, masks))
        graph, state = nnx.split(fast)
        forward = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x))
        calls[name] = lambda f=forward, state=state: f(state, data.x_test)
    return sj.kernels.measure(calls, rounds=9, seconds=0.02)


def check_compressed(model: Classifier, plan: sj.masks.Plan, data: Data) -> None:
    """Checks that the compressed and the masked network return the same outputs."""
    fast, expected = sj.compress(model, plan), model(data.x_test)
    difference, scale = jnp.abs(fast(data.x_test) - expected).max(), jnp.abs(expected).max()
    if not difference <= 1e-5 * scale:
        raise SystemExit(f"the compressed 2:4 network differs by {difference}")
    console.print(f"compressed 2:4 network: same logits up to {difference / scale:.0e}")


def check_checkpoint(trained: Trained, data: Data) -> None:
    """Checks that parameters and optimizer state, masks included, are restored by orbax."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise SystemExit('the quickstart needs: pip install "sparsejax[examples]"') from error
    path = (OUT / "checkpoint").resolve()
    state = nnx.as_pure(nnx.state((trained.model, trained.optimizer)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state, force=True)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, state)
    fresh = Classifier(WIDTHS, nnx.Rngs(99))
    nnx.update(fresh, restored[0])
    if accuracy(fresh, data) != accuracy(trained.model, data):
        raise SystemExit("the restored network differs from the saved one")
    console.print("checkpoint: saved and restored, same accuracy")


NEXT = """\
next: look at quickstart/report.html, read README.md or a notebook
      print(sj.plan(model, sj.NM(2, 4))) of your network
      print(sj.advise(trained=True, training=False)) for a method"""


def versions() -> str:
    """The versions that a report of an error needs."""
    packages = ("sparsejax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    found |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    return "\n".join(f"{name} {version}" for name, version in found.items())


def main() -> None:
    """Trains, prints, verifies, and writes a report, a picture and a checkpoint."""
    parser = argparse.ArgumentParser(
        "python -m sparsejax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--versions", action="store_true", help="print versions, train nothing")
    if parser.parse_args().versions:
        print(versions())
        return
    OUT.mkdir(exist_ok=True)
    data = load_data()
    trained = train_all(data)
    reports = show(trained, data)
    two_of_four = trained["2:4, SR-STE"]
    assert two_of_four.plan is not None
    check_compressed(two_of_four.model, two_of_four.plan, data)
    check_checkpoint(trained["pruned 90 %, ERK"], data)
    masks = {
        name: t.masks["layers"][0]["kernel"] for name, t in trained.items() if t.masks is not None
    }
    figure = sj.reporting.plot_masks(masks)
    figure.savefig(OUT / "masks.png", dpi=120)
    sj.reporting.save_reports(OUT / "report.html", reports, {"masks of the first layer": figure})
    console.print(f"[bold]{OUT}/[/bold]: report.html, masks.png, checkpoint/")
    console.print(NEXT, highlight=False)


if __name__ == "__main__":
    main()
