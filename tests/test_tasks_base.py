"""Tasks and examples: what is refused, what the digest holds, and the floor of guessing."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest

from mi_massive.tasks import Example, Grade, Task
from mi_massive.tasks.scoring import grade_named


def build_example(**changes: Any) -> Example:
    fields: dict[str, Any] = {"id": "a", "prompt": "2 + 2 =", "question": "2 + 2?", "answer": "4"}
    return Example(**(fields | changes))


def build_task(*examples: Example, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "sums",
        "kind": "contextual",
        "version": 1,
        "summary": "Sums.",
        "examples": examples,
        "grade": grade_named,
        "chance": 0.0,
        "max_new_tokens": 4,
    }
    return Task(**(fields | changes))


TWO = {"options": (" 4", " 5"), "gold": 0}
FOUR = {"options": (" 1", " 2", " 3", " 4"), "gold": 3}


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " \n"}, r"prompt must not be empty, got ' \\n' at 'a'; fill it"),
        ({"answer": ""}, r"answer must not be empty, got '' at 'a'; fill it"),
        ({"id": ""}, r"id must not be empty, got '' at ''; fill it"),
        ({"prompt": "2 + 2 = "}, r"prompt must not end in a space, got '2 \+ 2 = ' at 'a'; rem"),
        ({"options": (" 4", " 5")}, r"gold must be between 0 and 1 \(options\), got None at 'a'"),
        ({**TWO, "gold": 2}, r"gold must be between 0 and 1 \(options\), got 2 at 'a'; count from"),
        ({**TWO, "gold": -1}, r"gold must be between 0 and 1 \(options\), got -1 at 'a'"),
        ({"gold": 0}, r"gold must be None without options, got 0 at 'a'; give options"),
        ({"options": (" 4",), "gold": 0}, r"options must be at least two different texts, got"),
        ({"options": (" 4", " 4"), "gold": 0}, r"options must be at least two different texts"),
        ({"options": (" 4", " "), "gold": 0}, r"options must be at least two different texts"),
    ],
)
def test_an_example_that_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_example(**changes)


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        ("", {}, r"examples of task sums must not be empty; give at least one, or a larger limit"),
        ("aba", {}, r"id must be unique in task sums, got 'a' again at examples\[2\]; rename it"),
        ("a", {"chance": 1.5}, r"chance must be between 0 and 1, got 1.5; it is a share"),
        ("a", {"chance": math.nan}, r"chance must be between 0 and 1, got nan"),
        ("a", {"version": 0}, r"version must be finite and positive, got 0"),
        ("a", {"max_new_tokens": 0}, r"max_new_tokens must be finite and positive, got 0"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(ids, changes, message):
    with pytest.raises(ValueError, match=message):
        build_task(*(build_example(id=name) for name in ids), **changes)


def test_a_correct_answer_that_was_not_found_is_refused():
    with pytest.raises(ValueError, match="extracted must be the answer found in the text"):
        Grade(correct=True, extracted=None)


# --- the digest


def test_the_digest_is_sha256_of_name_version_and_examples_as_compact_json():
    task = build_task(build_example(facts={"b": "2", "a": "1"}))
    listed = '["sums",1,[["a","2 + 2 =","2 + 2?","4",[],null,"","",[["a","1"],["b","2"]]]]]'
    assert task.digest == hashlib.sha256(listed.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "b"},
        {"prompt": "2 + 3 ="},
        {"question": "2 + 3?"},
        {"answer": "5"},
        TWO,
        {"condition": "open_book"},
        {"group": "g"},
        {"facts": {"a": "1"}},
    ],
)
def test_the_digest_changes_with_every_field_of_an_example(changes):
    before = build_task(build_example())
    assert build_task(build_example(**changes)).digest != before.digest


def test_the_digest_changes_with_name_version_and_order_but_not_with_the_grading():
    task = build_task(build_example(), build_example(id="b"))
    turned = replace(task, examples=task.examples[::-1])
    others = [replace(task, name="x"), replace(task, version=2), turned, task.first(1)]
    assert len({task.digest, *(other.digest for other in others)}) == 5
    assert replace(task, max_new_tokens=9, legacy_grade=grade_named).digest == task.digest


# --- views


def test_the_floor_of_options_is_their_mean_reciprocal_number():
    task = build_task(build_example(**TWO), build_example(id="b", **FOUR), build_example(id="c"))
    assert task.options_chance == (1 / 2 + 1 / 4) / 2
    assert math.isnan(build_task(build_example()).options_chance)


def test_the_first_n_examples_keep_their_order():
    task = build_task(*(build_example(id=name) for name in "cab"))
    assert [example.id for example in task.first(2).examples] == ["c", "a"]
    assert task.first(9) == task
    with pytest.raises(ValueError, match="n must be finite and positive, got 0"):
        task.first(0)
