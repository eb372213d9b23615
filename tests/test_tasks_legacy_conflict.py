"""The published protocol: one false sentence about a city that nobody asks about."""

from mi_massive.tasks import load_task
from mi_massive.tasks.facts import load_facts
from mi_massive.tasks.legacy_conflict import SENTENCE, legacy_conflict


def test_every_question_stands_after_the_same_sentence_and_gold_is_the_worlds_truth() -> None:
    legacy, cities = legacy_conflict(limit=20), load_task("cities", limit=20)
    assert len(legacy.examples) == 20
    for example, plain in zip(legacy.examples, cities.examples, strict=True):
        assert example.prompt == f"{SENTENCE}\n{plain.prompt}"
        assert (example.answer, example.gold, example.id) == (plain.answer, plain.gold, plain.id)
    assert legacy.legacy_grade is cities.legacy_grade
    assert legacy.digest != cities.digest


def test_the_sentence_is_about_no_city_that_is_asked() -> None:
    assert not any(fact.subject in SENTENCE for fact in load_facts("cities"))
