"""Every task alike: gold is graded right and others wrong; a seed gives the same examples."""

import re
from pathlib import Path
from typing import Any

import pandas
import pytest

from mi_massive.tasks import TASKS, Example, Task, load_task

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = {
    "gsm8k": "gsm8k_test.jsonl",
    "aqua": "aqua_rat_test.jsonl",
    "imdb": "imdb_sample.jsonl",
}

needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the hub's data sets are no part of the repository: ../shared/data"
)
NAMES = [pytest.param(name, marks=[needs_data] if name in FILES else []) for name in TASKS]
DRAWN = [param for param in NAMES if param.values[0] not in ("gsm8k", "aqua")]

GSM8K = {"question": "2 and 2?", "answer": "2 + 2 = 4\n#### 4"}
AQUA = {"question": "2 and 2?", "options": ["A)1", "B)2", "C)3", "D)4", "E)5"], "correct": "D"}


def count_words(text: str) -> int:
    return len(text.split())


def build(name: str, **changes: Any) -> Task:
    data = {"data": SHARED / FILES[name]} if name in FILES else {}
    return load_task(name, **({"count_tokens": count_words} | data | changes))


def wrong_answer(example: Example) -> str:
    """Another option, the other class, or another number."""
    if example.gold is None:
        return f"{float(example.answer) + 1:g}"
    return example.options[example.gold - 1].strip()


def write(folder: Path, rows: list[dict[str, Any]], suffix: str = ".json") -> Path:
    path = folder / f"data{suffix}"
    frame = pandas.DataFrame(rows)
    if suffix == ".json":
        frame.to_json(path, orient="records")
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


# --- every task


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_grade_as_correct_and_others_as_wrong(name):
    task = build(name)
    for example in task.examples:
        assert task.grade(example.answer, example) == task.grade(f" {example.answer}.", example)
        assert task.grade(example.answer, example).correct, example
        if example.gold is not None:
            assert task.grade(example.options[example.gold], example).correct, example
        wrong = task.grade(wrong_answer(example), example)
        assert not wrong.correct, example
        assert wrong.extracted is not None, example
        failed = task.grade("", example)
        assert (failed.correct, failed.extracted) == (False, None)


@pytest.mark.parametrize("name", NAMES)
def test_published_graders_accept_the_gold_answer(name):
    task = build(name, limit=20)
    if name.startswith(("pairs", "letters")):  # never published
        assert task.legacy_grade is None
        return
    assert task.legacy_grade is not None
    for example in task.examples:
        # AQuA is graded by the option's text.
        assert task.legacy_grade(example.facts.get("option", example.answer), example).correct


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_what_its_entry_says(name):
    task, source = build(name), TASKS[name]
    assert (task.name, task.kind, task.summary) == (name, source.kind, source.summary)
    assert len(task.examples) <= source.default_limit
    assert all(example.question.strip() and example.group for example in task.examples)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_end_where_the_answer_begins(name):
    for example in build(name, limit=20).examples:
        assert example.prompt == example.prompt.strip()
        assert all(option.startswith(" ") for option in example.options)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_examples(name):
    assert build(name, limit=20, seed=3).digest == build(name, limit=20, seed=3).digest


@pytest.mark.parametrize("name", DRAWN)
def test_another_seed_draws_other_examples(name):
    assert build(name, limit=20, seed=3).digest != build(name, limit=20, seed=4).digest


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_limit_gives_the_first_examples(name):
    assert build(name, limit=6).examples == build(name, limit=20).examples[:6]


# --- refusals


def test_an_unknown_task_is_refused_with_the_known_names():
    known = re.escape(", ".join(TASKS))
    with pytest.raises(ValueError, match=rf"name must be one of {known}, got 'gsm'; choose one"):
        load_task("gsm")


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit must be finite and positive, got 0"):
        load_task("cities", limit=0)


def test_data_for_a_task_that_has_its_own_are_refused():
    message = r"data must be None for cities, whose data come with the package, got x\.jsonl; load"
    with pytest.raises(ValueError, match=message):
        load_task("cities", data="x.jsonl")


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].needs_tokenizer])
def test_a_task_measured_in_tokens_asks_for_the_tokenizer(name):
    message = rf"count_tokens must be given for {name}, .* got None; pass the tokenizer's count"
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_a_missing_column_is_named_beside_those_present(tmp_path):
    path = write(tmp_path, [{"question": "2 and 2?", "gold": "4"}])
    message = (
        r"data must have the columns \['question', 'answer'\], got \['question', 'gold'\] at "
        r"item 1 of .*data\.json; add or rename \['answer'\]"
    )
    with pytest.raises(ValueError, match=message):
        load_task("gsm8k", data=path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_column_of_a_table_is_named(tmp_path, suffix):
    path = write(tmp_path, [{"text": "good"}], suffix)
    message = rf"data must have the columns \['text', 'label'\], got \['text'\] at .*data\{suffix};"
    with pytest.raises(ValueError, match=message):
        load_task("imdb", data=path)


def test_rows_that_are_no_objects_are_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('"2 and 2?"\n')
    message = r"data must hold one object a row, got str at line 1 of .*data\.jsonl"
    with pytest.raises(ValueError, match=message):
        load_task("gsm8k", data=path)


def test_a_text_file_cannot_stand_in_for_a_data_set(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("2 and 2?")
    with pytest.raises(ValueError, match=r"data must end in \.jsonl, .* got .*data\.txt; convert"):
        load_task("gsm8k", data=path)


def test_a_missing_file_is_refused():
    with pytest.raises(FileNotFoundError, match="data must be an existing file or folder, got no"):
        load_task("gsm8k", data="nowhere.jsonl")


# --- the hub, and what stands in for it


def test_without_data_and_hub_the_file_to_give_is_described(monkeypatch):
    import datasets

    def unreachable(name: str, config: str, *, split: str) -> None:
        raise ConnectionError(f"no {name}/{config}/{split}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = (
        r"data must be a file \(\.jsonl, \.json, \.csv, \.parquet\) with the columns question, "
        r"options, correct for aqua, got None, and the hub does not give deepmind/aqua_rat "
        r"\(raw, test\); pass data=FILE or connect"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_task("aqua")


def test_the_hub_is_asked_for_the_right_set_and_split(monkeypatch):
    import datasets

    asked = []

    def load(name: str, config: str, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([GSM8K])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_task("gsm8k").examples[0].answer == "4"
    assert asked == [("openai/gsm8k", "main", "test")]


def test_every_format_gives_the_same_task(tmp_path):
    import datasets

    (tmp_path / "saved").mkdir()
    datasets.Dataset.from_list([AQUA, AQUA]).save_to_disk(tmp_path / "saved")
    paths = [write(tmp_path, [AQUA, AQUA], suffix) for suffix in (".json", ".parquet")]
    digests = {load_task("aqua", data=path).digest for path in [*paths, tmp_path / "saved"]}
    in_csv = AQUA | {"options": '["A)1", "B)2", "C)3", "D)4", "E)5"]'}
    digests.add(load_task("aqua", data=write(tmp_path, [in_csv, in_csv], ".csv")).digest)
    assert len(digests) == 1
