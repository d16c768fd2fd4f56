"""Every answer leads somewhere, and the docs say the same."""

import itertools
import operator
import pickle

import pytest

import sparsejax
from sparsejax import reporting
from sparsejax.reporting._advise import QUESTIONS, RULES

CASES = [
    (dict(trained=True, training=False, hardware="gpu"), "sj.recipes.sparsegpt", "sj.NM(2, 4)"),
    (dict(trained=True, training=False, sparsity=0.3), "sj.masks.magnitude", "sj.Unstructured"),
    (dict(trained=True, training=True), "sj.optim.prune", "sj.Unstructured"),
    (dict(trained=False, training=True, goal="memory"), "sj.optim.rigl", "sj.Unstructured"),
    (
        dict(trained=False, training=True, goal="speed", hardware="gpu"),
        "sj.optim.sr_ste",
        "sj.NM(2, 4)",
    ),
    (
        dict(trained=False, training=True, goal="speed", hardware="cpu"),
        "sj.optim.prune",
        "sj.Channel(s)",
    ),
    (
        dict(trained=True, training=False, goal="many_sparsities"),
        "sj.recipes.sparsity_sweep",
        "sj.Unstructured",
    ),
    (
        dict(trained=True, training=True, goal="accuracy"),
        "sj.recipes.sparse_model_soup",
        "sj.Unstructured",
    ),
    (dict(trained=False, training=True), "sj.optim.prune", "sj.Unstructured"),
]


@pytest.mark.parametrize("answers, use, pattern", CASES)
def test_the_decision_table(answers, use, pattern):
    advice = reporting.advise(**answers)
    assert advice.rules[0].use[0] == use and advice.rules[0].pattern[0] == pattern
    assert use in str(advice) and use in advice._repr_html_()


def test_names_exist_and_what_does_not_is_marked():
    for rule in RULES:
        advice = reporting.Advice((rule,))
        assert advice.names
        for name in advice.names:
            assert operator.attrgetter(name.removeprefix("sj."))(sparsejax)
        assert str(advice).count("(planned)") == len(rule.use) - len(advice.names)


def test_every_case_has_an_answer_and_every_rule_a_case():
    used = set()
    goals = ("accuracy", "memory", "speed", "many_sparsities", None)
    everything = itertools.product(
        (True, False), (True, False), ("gpu", "tpu", "cpu", "any"), (None, 0.3, 0.9), goals
    )
    for trained, training, hardware, sparsity, goal in everything:
        answers = dict(
            trained=trained, training=training, hardware=hardware, sparsity=sparsity, goal=goal
        )
        if not trained and not training:
            with pytest.raises(ValueError, match="trained=True"):
                reporting.advise(**answers)
        else:
            used |= {rule.case for rule in reporting.advise(**answers)}
    assert used == {rule.case for rule in RULES}


def test_wrong_answers_list_the_choices():
    advise = reporting.advise.__wrapped__
    with pytest.raises(ValueError, match="'gpu', 'tpu', 'cpu', 'any'"):
        advise(trained=True, training=True, hardware="fpga")
    with pytest.raises(ValueError, match="goal='size' must be one of"):
        advise(trained=True, training=True, goal="size")
    with pytest.raises(ValueError, match="fraction of zeros"):
        advise(trained=True, training=True, sparsity=90)


def test_the_docs_come_from_the_same_table():
    page = reporting.advice_markdown()
    assert len(QUESTIONS) == 10
    assert all(rule.case in page and rule.reason in page for rule in RULES)
    assert all(question in page and answer in page for question, answer in QUESTIONS)


def test_advice_pickles():
    advice = reporting.advise(trained=True, training=False, hardware="gpu")
    assert pickle.loads(pickle.dumps(advice)) == advice
