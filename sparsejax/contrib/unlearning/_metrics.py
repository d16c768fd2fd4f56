"""Metrics of unlearning: accuracies and membership inference."""

import importlib
from typing import Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ..._arguments import checked
from ._features import check_predictions

Attack = Literal["threshold", "svc"]


class UnlearningReport(NamedTuple):
    """Metrics of an unlearned network, as fractions in [0, 1].

    Args:
      unlearning: UA, 1 - accuracy on the forget set; NaN if that is empty.
      retain: RA, accuracy on the retain set.
      test: TA, accuracy on the test set.
      membership: MIA-Efficacy, the fraction of the forget set that an attack classifies as
        non-members.
    """

    unlearning: float
    retain: float
    test: float
    membership: float

    def gap(self, other: "UnlearningReport") -> float:
        """Mean absolute difference over the four metrics, for example to a retrained network."""
        return float(np.mean(np.abs(np.subtract(self, other))))


@checked()
def unlearning_report(
    forget: tuple[Float[ArrayLike, "f classes"], Int[ArrayLike, " f"]],
    retain: tuple[Float[ArrayLike, "r classes"], Int[ArrayLike, " r"]],
    test: tuple[Float[ArrayLike, "t classes"], Int[ArrayLike, " t"]],
    *,
    attack: Attack = "threshold",
) -> UnlearningReport:
    r"""UA, RA, TA and MIA-Efficacy of a network, from its probabilities.

    Each argument is (probabilities, labels). The attack learns to distinguish the first `|test|`
    retained samples from the test set by the probability of the true class. The goal is the report
    of a network retrained without the forget set at the same sparsity (`report.gap(retrained)`);
    larger values are not better. To evaluate the forgetting of a class, exclude it from `test`.

    Args:
      forget: Probabilities and labels of the samples to forget.
      retain: Probabilities and labels of the rest of the training set.
      test: Probabilities and labels of the test set.
      attack: As in `membership_attack`.

    Returns:
      An `UnlearningReport`.

    Raises:
      ValueError: If `retain` or `test` is empty, lengths differ, a label is not a class, or the
        entries of a row are not finite, negative, or do not sum to 1 (within 0.02, for bfloat16).

    Reference:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023 (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unlearning import unlearning_report
      >>> sure, unsure = jnp.array([[1.0, 0.0]]), jnp.array([[0.4, 0.6]])
      >>> label = jnp.array([0])
      >>> unlearning_report((unsure, label), (sure, label), (unsure, label))
      UnlearningReport(unlearning=1.0, retain=1.0, test=0.0, membership=1.0)
    """
    parts = {"forget": forget, "retain": retain, "test": test}
    found = {name: check_predictions(name, *part) for name, part in parts.items()}
    for name in ("retain", "test"):
        if not found[name][1].size:
            raise ValueError(f"unlearning_report: {name} is empty.")
    accuracy = {n: float(np.mean(p.argmax(-1) == y)) for n, (p, y) in found.items() if y.size}
    true = {n: p[np.arange(y.size), y] for n, (p, y) in found.items()}
    n = min(true["retain"].size, true["test"].size)
    efficacy = (
        membership_attack(true["retain"][:n], true["test"][:n], true["forget"], attack=attack)
        if true["forget"].size
        else float("nan")
    )
    return UnlearningReport(
        1 - accuracy.get("forget", float("nan")), accuracy["retain"], accuracy["test"], efficacy
    )


@checked()
def membership_attack(
    members: Float[ArrayLike, "m *features"],
    others: Float[ArrayLike, "n *features"],
    targets: Float[ArrayLike, "t *features"],
    *,
    attack: Attack = "threshold",
) -> float:
    r"""The fraction of the targets that a membership inference attack classifies as non-members.

    "threshold" classifies confidences at or above a threshold as members; the threshold has the
    best balanced accuracy on members and others (the lowest in case of ties). "svc" is
    scikit-learn's support vector machine with an RBF kernel, C = 3 and gamma = 1 / features, as in
    the paper (extra `examples`), on at most 10,000 samples; it takes one feature or several columns
    (`membership_features`).

    Args:
      members: Confidences in training samples, or other features of them.
      others: Confidences in samples outside the training set.
      targets: Confidences in the samples to classify.
      attack: "threshold" or "svc".

    Returns:
      A fraction; the goal is that of a retrained network.

    Raises:
      ValueError: If an array is empty or not finite, `attack` is not one of the two names, or
        "threshold" receives several columns.
      ImportError: If `attack="svc"` and scikit-learn is missing.

    Reference:
      Yeom et al., Privacy Risk in Machine Learning, 2018 (arXiv 1709.01604); Jia et al., 2023
      (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unlearning import membership_attack
      >>> members, others = jnp.array([0.9, 0.8]), jnp.array([0.5, 0.4])
      >>> membership_attack(members, others, jnp.array([0.3, 0.95]))
      0.5
    """
    a, b, t = (np.asarray(x, np.float64) for x in (members, others, targets))
    if not (a.size and b.size and t.size):
        raise ValueError(
            "membership_attack: members, others and targets must not be empty, got sizes "
            f"{a.size}, {b.size} and {t.size}."
        )
    for name, x in (("members", a), ("others", b), ("targets", t)):
        if not np.isfinite(x).all():
            raise ValueError(f"membership_attack: {name} {x.shape} must be finite numbers.")
    if attack not in ("threshold", "svc"):
        raise ValueError(f"membership_attack: attack={attack!r} must be 'threshold' or 'svc'.")
    if attack == "threshold" and a.ndim > 1:
        raise ValueError(
            f"membership_attack: members {a.shape} must be one confidence for each sample for "
            "attack='threshold'; pass attack='svc' for several columns."
        )
    return float(np.mean(t < _threshold(a, b)) if attack == "threshold" else _svc(a, b, t))


def _threshold(members: np.ndarray, others: np.ndarray) -> float:
    candidates = np.unique(np.concatenate([members, others]))
    members, others = np.sort(members), np.sort(others)
    above = members.size - np.searchsorted(members, candidates, "left")
    below = np.searchsorted(others, candidates, "left")
    # In integers: rounded fractions would decide between thresholds of equal accuracy.
    return float(candidates[np.argmax(above * others.size + below * members.size)])


def _svc(members: np.ndarray, others: np.ndarray, targets: np.ndarray) -> float:
    try:
        svm = importlib.import_module("sklearn.svm")
    except ImportError as error:
        raise ImportError(
            "attack='svc' needs scikit-learn: pip install 'sparsejax[examples]'."
        ) from error
    members, others = members[:5000], others[:5000]  # quadratic in the samples
    columns = lambda x: x.reshape(len(x), -1)  # noqa: E731
    x = columns(np.concatenate([members, others]))
    y = np.repeat([1, 0], [len(members), len(others)])
    machine = svm.SVC(C=3, gamma=1 / x.shape[1], kernel="rbf").fit(x, y)
    return float(np.mean(machine.predict(columns(targets)) == 0))
