"""Yes/no questions: balanced, both questions of a fact together, on data that fit the templates."""

from collections import Counter
from string import Formatter

import pytest
from test_tasks_registry import build

from mi_massive.tasks import load_task
from mi_massive.tasks.facts import CATEGORIES, load_facts
from mi_massive.tasks.pairs import DATA_FILES


@pytest.mark.parametrize("category", DATA_FILES)
def test_the_data_files_fill_their_templates(category):
    facts = load_facts(category)
    assert len(facts) >= 100
    assert len({(fact.relation, fact.subject) for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.answer != fact.counterfactual
        assert fact.question.endswith("?")
        assert {name for _, name, _, _ in Formatter().parse(fact.question) if name} == {
            *("subject", "object")
        }
        assert fact.asserted("X") == f"{fact.cloze.format(subject=fact.subject)} X."


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_even_prefix_asks_each_fact_twice(category):
    task = load_task(category)
    assert len(task.examples) == 200
    for i in range(0, 200, 2):
        pair = task.examples[i : i + 2]
        assert {example.answer for example in pair} == {"yes", "no"}
        assert len({example.group for example in pair}) == 1
        assert len({example.facts["statement"] for example in pair}) == 1
    assert len({example.group for example in task.examples}) == 100
    assert {example.answer for example in task.examples[::2]} == {"yes", "no"}  # no fixed order


@pytest.mark.parametrize("category", CATEGORIES)
def test_yes_asks_for_the_true_object_and_no_for_the_other(category):
    known = {f"{fact.relation}/{fact.subject}": fact for fact in load_facts(category)}
    for example in load_task(category).examples:
        fact = known[example.group]
        asked = fact.answer if example.answer == "yes" else fact.counterfactual
        question = fact.question.format(subject=fact.subject, object=asked)
        assert example.prompt == f"Question: {question} Answer yes or no.\nAnswer:"
        assert example.gold is not None
        assert example.options[example.gold] == f" {example.answer.capitalize()}"
        assert example.facts["object"] == fact.answer
        assert example.facts["statement"] == fact.asserted(fact.answer)


@pytest.mark.parametrize("category", CATEGORIES)
def test_relations_take_turns(category):
    counts = Counter(example.facts["relation"] for example in load_task(category).examples)
    assert max(counts.values()) - min(counts.values()) <= 12  # a relation may run out
    first = load_task(category, limit=2 * len(counts)).examples
    assert len({example.facts["relation"] for example in first}) == len(counts)


def test_guessing_gives_one_half():
    task = build("cities")
    assert task.chance == task.options_chance == 1 / 2
    always = [task.grade("Yes.", example).correct for example in task.examples]
    assert sum(always) / len(always) == 1 / 2


def test_more_questions_than_there_are_facts_gives_them_all():
    assert len(load_task("cities", limit=9999).examples) == 2 * len(load_facts("cities"))
