"""Answers are appended as they come, one JSON object a line, whatever they hold."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from builders import build_provenance

from mi_massive.answer_files import AnswerFile
from mi_massive.scores import Answer, EvaluationConfig, TaskResult
from mi_massive.tasks import Example, Task
from mi_massive.tasks.scoring import grade_named

EXAMPLE = Example(
    id="0", prompt="Q: what?\nA:", question="what?", answer="x", options=(" x", " y"), gold=0
)
TASK = Task(
    name="own",
    kind="contextual",
    version=3,
    summary="One question.",
    examples=(EXAMPLE,),
    grade=grade_named,
    chance=0.5,
    max_new_tokens=4,
)
RESULT = TaskResult(
    task="own",
    kind="contextual",
    version=3,
    digest=TASK.digest,
    chance=0.5,
    options_chance=0.5,
    answers=(
        Answer(
            id="0",
            group="0",
            condition="",
            text='two\nlines \u2028 and "x"',
            extracted="x",
            correct=True,
            legacy_correct=None,
            log_probs=(-1.5, -math.inf),
            gold=0,
        ),
    ),
    n_edits=0,
    config=EvaluationConfig(),
    provenance=build_provenance(),
)


def test_each_answer_is_one_line_with_the_question_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    path.parent.mkdir()
    AnswerFile(path, [TASK])("of an earlier run", RESULT)
    write = AnswerFile(path, [TASK])
    write("intact", RESULT)
    assert len(path.read_text().split("\n")) == 2  # there as soon as it is given
    write("paper k=4", replace(RESULT, config=EvaluationConfig(chat=True)))
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["asked"], second["asked"]) == (EXAMPLE.prompt, EXAMPLE.question)
    assert (first["arm"], second["arm"]) == ("intact", "paper k=4")
    assert first["text"] == RESULT.answers[0].text
    assert first["log_probs"] == [-1.5, None]
    assert (first["extracted"], first["correct"], first["task_version"]) == ("x", True, 3)


@pytest.mark.parametrize("text", ['{"prompt": "Q", "answer": "x"}\n', "a note\n", "[1, 2]\n"])
def test_a_file_of_something_else_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="answers must go to a new file or one of earlier answers"):
        AnswerFile(path, [TASK])
    assert path.read_text() == text


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        AnswerFile(tmp_path, [TASK])
