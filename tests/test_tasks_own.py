"""A user's own file becomes a task, or is refused with the row that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from mi_massive.tasks import load_own_task

OPEN = {"prompt": "The sky is", "answer": "blue", "kind": "parametric"}
CLOSED = OPEN | {"options": ["green", " blue"]}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_options_get_the_space_of_a_word_and_gold_its_index(tmp_path):
    task = load_own_task(write(tmp_path, CLOSED))
    (example,) = task.examples
    assert (task.name, task.kind, task.chance) == ("colours", "parametric", 1 / 2)
    assert (example.options, example.gold) == ((" green", " blue"), 1)
    assert task.grade("It is blue.", example).correct
    assert not task.grade("Green, not blue.", example).correct


def test_after_a_line_break_options_need_no_space(tmp_path):
    task = load_own_task(
        write(tmp_path, CLOSED | {"prompt": "The sky is\n", "options": ["a", "blue"]})
    )
    assert task.examples[0].options == ("a", "blue")


def test_open_answers_are_looked_for_and_numbers_are_the_last_stated(tmp_path):
    words = load_own_task(write(tmp_path, OPEN))
    assert words.grade("Blue, of course", words.examples[0]).correct
    assert words.chance == 0
    numbers = load_own_task(write(tmp_path, OPEN | {"answer": "7"}))
    assert numbers.grade("7 or 8? The answer is 7.00.", numbers.examples[0]).correct
    assert not numbers.grade("7 or 8? The answer is 8.", numbers.examples[0]).correct


def test_the_kind_may_be_given_for_all(tmp_path):
    rows = [{"prompt": "The sky is", "answer": "blue"}]
    assert load_own_task(write(tmp_path, *rows), kind="contextual").kind == "contextual"


def test_named_columns_are_kept_and_others_filled(tmp_path):
    named = OPEN | {"id": "x", "question": "Colour?", "condition": "c", "group": "g"}
    first, second = load_own_task(write(tmp_path, named, OPEN)).examples
    assert (first.id, first.question, first.condition, first.group) == ("x", "Colour?", "c", "g")
    assert (second.id, second.question, second.condition, second.group) == (
        *("1", "The sky is", "", ""),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "The sky is", "kind": "parametric"}],
            r"data must have the columns \['prompt', 'answer', 'kind'\], got \['prompt', 'kind'\] "
            r"at line 1 of .*colours\.jsonl; add or rename \['answer'\]",
        ),
        ([{"prompt": "The sky is", "answer": "blue"}], r"add or rename \['kind'\]"),
        ([OPEN | {"kind": "other"}], r"kind must be one of contextual, parametric, got 'other' at"),
        (
            [OPEN, OPEN | {"kind": "contextual"}],
            r"kind must be the same in every row, got 'contextual' after 'parametric' at line 2",
        ),
        (
            [OPEN, CLOSED | {"answer": "red"}],
            r"answer must be one of the options \['green', 'blue'\], got 'red' at line 2 of .*;",
        ),
        (
            [CLOSED | {"options": [1, 2]}],
            r"options must be a list of texts, got \[1, 2\] at line 1",
        ),
        ([OPEN | {"answer": 4}], r"answer must be a text that is not empty, got 4 at line 1"),
        ([OPEN | {"id": "x"}, OPEN | {"id": "x"}], r"id must be unique in task colours, got 'x'"),
        ([OPEN | {"prompt": "The sky is "}], r"prompt must not end in a space"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_own_task(write(tmp_path, *rows))


def test_a_missing_file_is_refused():
    with pytest.raises(FileNotFoundError, match="data must be an existing file or folder, got now"):
        load_own_task("nowhere")
