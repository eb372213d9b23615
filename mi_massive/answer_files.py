"""Every answer of an experiment in a file of lines: what was asked, what was said, how it counts.

Answers the question that scores leave open: what did the model say? One JSON object a line, written
as each task is finished, so that a killed run leaves what it has.

Does not show: anything that is not in the result itself; a resumed run writes kept answers again.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mi_massive.scores import TaskResult
from mi_massive.tasks.base import Task

_COLUMNS = frozenset({"arm", "task", "asked", "text", "log_probs"})
"""Of every row, by which a file of answers is known."""


def require_answers(path: Path) -> None:
    """Raise ValueError if a file is there that is none of answers: it would be lost."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline().strip()
        row: object = json.loads(first) if first else dict.fromkeys(_COLUMNS)
    except ValueError:  # no JSON, no text
        row = None
    if not (isinstance(row, dict) and set(cast(dict[str, object], row)) >= _COLUMNS):
        raise ValueError(
            f"answers must go to a new file or one of earlier answers, got {path}, which holds "
            "something else; choose another name"
        )


class AnswerFile:
    """Takes results as `run_disruption(on_result=...)` gives them and appends their answers."""

    def __init__(self, path: str | Path, tasks: Sequence[Task]) -> None:
        """Begin the file anew.

        Args:
            path: Where to write; its folder is made.
            tasks: Those that are asked, for the text of their questions.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If the file holds something else than answers; it stays as it is.
        """
        require_answers(Path(path))
        self._path = Path(path)
        self._asked = {(task.name, e.id): e for task in tasks for e in task.examples}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("", encoding="utf-8")

    def __call__(self, arm: str, result: TaskResult) -> None:
        """Append one line an answer."""
        lines = [json.dumps(row) for row in self._rows(arm, result)]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _rows(self, arm: str, result: TaskResult) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for answer in result.answers:
            example = self._asked[result.task, answer.id]
            rows.append(
                {
                    "arm": arm,
                    "task": result.task,
                    "task_version": result.version,
                    "id": answer.id,
                    "asked": example.question if result.config.chat else example.prompt,
                    "text": answer.text,
                    "extracted": answer.extracted,
                    "correct": answer.correct,
                    "options": list(example.options),
                    "gold": answer.gold,
                    # JSON has no infinity and no NaN
                    "log_probs": [p if math.isfinite(p) else None for p in answer.log_probs],
                }
            )
        return rows
