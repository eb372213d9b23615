"""GSM8K, AQuA and IMDB on the real files, and rows that are refused."""

import json
import re
from collections import Counter

import pytest
from test_tasks_registry import AQUA, FILES, GSM8K, SHARED, build, needs_data, write

from mi_massive.tasks import load_task
from mi_massive.tasks.imdb import MAX_WORDS

# --- the real files


@needs_data
def test_gsm8k_takes_the_first_1000_rows_with_normalised_answers():
    task = build("gsm8k")
    lines = (SHARED / FILES["gsm8k"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:1000]]
    assert len(task.examples) == 1000
    for example, row in zip(task.examples, rows, strict=True):
        assert row["question"].strip() in example.prompt
        assert example.answer == row["answer"].split("####")[1].strip().replace(",", "")
        assert task.grade(row["answer"], example).correct
        assert task.grade(f"So 3 of 7. The answer is ${example.answer}.00.", example).correct
    assert (task.chance, task.options_chance, task.max_new_tokens) == (0, 0.25, 256)


@pytest.mark.parametrize("gold", ["4", "0", "18", "1234", "-10", "-3", "2.5", "3/4"])
def test_gsm8k_sets_the_right_number_against_three_of_as_many_digits(tmp_path, gold):
    rows = [GSM8K | {"answer": f"#### {gold}"}] * 20
    path = write(tmp_path, rows)
    task = load_task("gsm8k", data=path)
    golds = set()
    for example in task.examples:
        numbers = [task.grade(option, example).extracted for option in example.options]
        assert example.options == tuple(f" The answer is {number}." for number in numbers)
        assert len(set(numbers)) == 4
        assert {re.sub(r"\d", "0", number) for number in numbers} == {re.sub(r"\d", "0", gold)}
        assert example.gold == numbers.index(gold)
        golds.add(example.gold)
    assert len(golds) > 1  # the right one stands in no fixed place
    assert len({example.options for example in task.examples}) > 10
    again = load_task("gsm8k", data=path, seed=5)
    assert again.digest == task.digest


@needs_data
def test_gsm8k_has_negative_answers_which_the_published_grader_takes_for_positive():
    task = build("gsm8k", limit=1319)
    negative = [example for example in task.examples if example.answer.startswith("-")]
    assert [example.answer for example in negative] == ["-10", "-3"]
    assert task.legacy_grade is not None
    for example in negative:
        text = f"The answer is {example.answer[1:]}."
        assert task.legacy_grade(text, example).correct
        assert not task.grade(text, example).correct


@needs_data
def test_aqua_shows_all_options_of_all_254_rows():
    task = build("aqua")
    lines = (SHARED / FILES["aqua"]).read_text(encoding="utf-8").splitlines()
    assert len(task.examples) == len(lines) == 254
    for example, line in zip(task.examples, lines, strict=True):
        row = json.loads(line)
        assert all(option.split(")", 1)[1].strip() in example.prompt for option in row["options"])
        assert example.answer == row["correct"]
        assert example.options == (" A", " B", " C", " D", " E")
        assert task.grade(f"The answer is {row['correct']}.", example).correct
    assert task.chance == task.options_chance == 1 / 5


@needs_data
def test_imdb_draws_both_classes_by_turns():
    task = build("imdb")
    assert len(task.examples) == 50
    for i in range(0, 50, 2):
        assert {example.answer for example in task.examples[i : i + 2]} == {"negative", "positive"}
    assert len({example.answer for example in task.examples[::2]}) == 2  # no fixed order
    assert Counter(e.answer for e in build("imdb", limit=7).examples).most_common()[1][1] == 3


@needs_data
def test_imdb_keeps_the_label_of_its_review_and_cuts_it():
    lines = (SHARED / FILES["imdb"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for example in build("imdb").examples:
        row = rows[int(example.id.split("/")[1])]
        words = row["text"].replace("<br />", " ").split()
        assert example.answer == ("negative", "positive")[row["label"]]
        assert example.prompt.startswith(f"Review: {' '.join(words[:MAX_WORDS])}\nQuestion:")
        assert "<br" not in example.prompt


# --- refusals


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", GSM8K | {"question": ""}, r"question must be a text that is not empty, got ''"),
        ("gsm8k", GSM8K | {"answer": "four"}, r"answer must be a number or end in '#### number'"),
        ("aqua", AQUA | {"correct": "F"}, r"correct must be one letter of ABCDE, got 'F' at item"),
        ("aqua", AQUA | {"correct": "AB"}, r"correct must be one letter of ABCDE, got 'AB'"),
        ("aqua", AQUA | {"options": ["A)1", "B)2"]}, r"options must be 5 texts, got 2 at item 1"),
        ("aqua", AQUA | {"options": "A)1"}, r"options must be a list of texts, got 'A\)1' at item"),
        (
            "aqua",
            AQUA | {"options": ["B)1", "A)2", "C)3", "D)4", "E)5"]},
            r"options must begin with 'A\)' in its place, got 'B\)1' at item 1",
        ),
        (
            "imdb",
            {"text": "good", "label": 2},
            r"label must be 0 \(negative\) or 1 \(positive\), g",
        ),
        ("imdb", {"text": "bad", "label": 0}, r"label must take both values 0 and 1, got no 1 \(p"),
    ],
)
def test_damaged_rows_are_refused_with_their_place(tmp_path, name, row, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, data=write(tmp_path, [row]))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_labels_may_be_numbers_or_digits(tmp_path, suffix):
    rows = [{"text": "bad", "label": 0}, {"text": "good", "label": 1}, {"text": "x", "label": 1}]
    task = load_task("imdb", data=write(tmp_path, rows, suffix))
    assert {example.answer for example in task.examples} == {"negative", "positive"}
    assert len(task.examples) == 2  # as many of one class as of the other


def test_a_plain_number_is_an_answer_too(tmp_path):
    path = write(tmp_path, [GSM8K | {"answer": "$1,000"}])
    assert load_task("gsm8k", data=path).examples[0].answer == "1000"
