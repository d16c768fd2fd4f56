"""Plots: what is drawn, that nothing global is touched, and what is said without matplotlib."""

import builtins
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import metrics, reporting

PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (16, 8)), "bias": jnp.ones(8)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (8, 1200))},
}
PLAN = sj.plan(PARAMS, {"a/kernel": sj.NM(2, 4), "b/kernel": sj.Unstructured(0.9)})
MASKS = PLAN.masks(sj.masks.magnitude(PARAMS))


def rendered(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return len(file.getvalue())


def test_masks():
    figure = reporting.plot_masks(MASKS, columns=2)
    assert [a.get_title(loc="left") for a in figure.axes] == ["a/kernel", "b/kernel"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown == 0, np.asarray(MASKS["a"]["kernel"]))
    large = np.asarray(figure.axes[1].images[0].get_array())
    assert large.shape == (8, 400) and abs(large.mean() - 0.9) < 1e-6
    assert rendered(figure) > 1000
    with pytest.raises(ValueError, match="no masks"):
        reporting.plot_masks({"kernel": None})


def test_masks_keep_their_order_and_square_cells():
    masks = {"z": {"kernel": jnp.ones((8, 32), bool)}, "a": {"kernel": jnp.ones((16, 8), bool)}}
    figure = reporting.plot_masks(masks)
    assert [a.get_title(loc="left") for a in figure.axes] == ["z/kernel", "a/kernel"]
    figure.canvas.draw()
    for axes, (rows, columns) in zip(figure.axes, ((8, 32), (16, 8))):
        axes.apply_aspect()
        box = axes.bbox
        assert box.height / rows == pytest.approx(box.width / columns, rel=0.02)
        title = axes.title.get_window_extent()
        assert title.y1 <= figure.bbox.y1


def test_results_over_sparsity():
    curves = {"a": {0.9: [0.8, 1.0], 0.5: 0.95}, "b": {0.0: 1.0}}
    axes = reporting.plot_tradeoff(curves, ylabel="R2", baseline=0.97).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [2, 10])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.95, 0.9])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.5", "0.9"]
    assert axes.get_ylabel() == "R2"
    for wrong in ({}, {"a": {}}, {"a": {1.0: 0.5}}):
        with pytest.raises(ValueError, match="curves"):
            reporting.plot_tradeoff(wrong)


def test_sparsity_of_plans_and_reports():
    report = reporting.report(PARAMS, MASKS, PLAN)
    for shown in (PLAN, report):
        figure = reporting.plot_sparsity(shown)
        widths = [bar.get_width() for bar in figure.axes[0].patches]
        np.testing.assert_allclose(widths, [0.5, 0.9])
        assert rendered(figure) > 1000


def test_training():
    zeros = jnp.asarray(np.random.default_rng(0).permutation(128).reshape(16, 8))
    history = {100 * i: {"a": {"kernel": zeros >= 16 * i, "bias": None}} for i in range(5)}
    figure = reporting.plot_training(history, {"accuracy": [0.1, 0.5, 0.7, 0.8, 0.8]})
    titles = [a.get_title(loc="left") for a in figure.axes]
    assert titles == ["sparsity", "flips per weight", "explored R_s", "accuracy"]
    x, y = figure.axes[0].lines[0].get_data()
    assert x.tolist() == [0, 100, 200, 300, 400]
    np.testing.assert_allclose(y, np.arange(5) / 8)
    assert rendered(figure) > 1000
    with pytest.raises(ValueError, match="2 values for 5 steps"):
        reporting.plot_training(history, {"accuracy": [0.1, 0.2]})


@pytest.mark.slow
def test_reliability():
    p = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (200, 4)))
    curve = metrics.reliability(p, jnp.arange(200) % 4)
    figure = reporting.plot_reliability({"dense": curve, "sparse": curve})
    ece = float(metrics.expected_calibration_error(p, jnp.arange(200) % 4))
    assert figure.axes[0].get_title(loc="left") == f"dense   ECE {ece:.3f}"
    assert len(figure.axes) == 4 and rendered(figure) > 1000
    perfect = metrics.reliability(jnp.array([[1.0, 0.0]]), jnp.array([0]))
    assert rendered(reporting.plot_reliability(perfect)) > 1000


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'sparsejax\[examples\]'"):
        reporting.plot_masks(MASKS)


def test_importing_is_light_and_pyplot_stays_out():
    code = (
        "import sys, sparsejax.reporting as m, jax.numpy as jnp\n"
        "heavy = {'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.plot_masks({'kernel': jnp.eye(4, dtype=bool)})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
