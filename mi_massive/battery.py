"""The small disruption experiment of the default report: a few tasks, arms and doses.

Answers C4 and C5 roughly, on any decoder, in minutes: a pass key to find, the same questions
closed-book, open-book and against the facts, and letters to read or capitals to recall. Everything
comes with the package. `experiments/table1.py` is the large one.

Does not show: small effects. With so few examples a score is known to within a fifth.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from mi_massive._checks import require_in_range
from mi_massive.arms import Arm, make_arms
from mi_massive.disruption import DisruptionConfig, DisruptionResult, run_disruption
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.prompts import tokenize_prompts
from mi_massive.scores import EvaluationConfig
from mi_massive.tasks import TASKS as TASK_SOURCES
from mi_massive.tasks import Task, load_task

TASKS: Final = (
    *("passkey_128_6", "pairs_open_book", "pairs_counterfactual", "letters"),
    *("pairs_closed_book", "letters_recall"),
)
"""Contextual ones first."""
GENERATED: Final = ("passkey_128_6",)
"""Answered in words too; the others by their options alone."""


def battery_arms() -> tuple[Arm, ...]:
    """Treatment and random control at three doses, the others at the largest."""
    others = ("sink_preserving", "sink_only", "smallest", "same_band")
    others += ("norm_matched", "effect_matched")
    return (*make_arms(("paper", "random"), ks=(1, 2, 4)), *make_arms(others, ks=(4,)))


def load_tasks(
    model: HookedModel,
    names: Sequence[str] = TASKS,
    *,
    data: Path | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> list[Task]:
    """Tasks by name, their lengths counted by the model's own tokenizer.

    Args:
        model: From `load_model`.
        names: Keys of `mi_massive.tasks.TASKS`.
        data: For tasks of the hub: a file that stands in for it, or a folder of `TASK.jsonl`.
            Without it the hub is asked.
        limit: Examples of each; None takes the task's own number.
        chat: Whether they will be asked in the chat template, which then counts as well.

    Returns:
        The tasks in the order of their names.

    Raises:
        UnsupportedModelError: If the model is an encoder or has no head.
        ValueError: If the model has no tokenizer, or a task cannot be made (see `load_task`).
    """
    if not (model.is_causal and model.has_head):
        raise UnsupportedModelError(
            f"{model.name} must be a decoder with a language-modelling head to answer tasks, "
            "got none"
        )
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to ask tasks, got none")
    encode = cast(Any, model.tokenizer).encode

    def count(text: str) -> int:
        if chat:
            return len(tokenize_prompts(model.tokenizer, [text], chat=True).input_ids[0])
        return len(encode(text, add_special_tokens=False))

    def rows(name: str) -> Path | None:
        stands_in = name in TASK_SOURCES and TASK_SOURCES[name].hub is not None
        if not stands_in or data is None or not data.is_dir():
            return data if stands_in else None
        file = data / f"{name}.jsonl"
        if not file.exists():
            raise FileNotFoundError(
                f"data must be a file, or a folder that holds {name}.jsonl, got {data} without it"
            )
        return file

    return [load_task(name, data=rows(name), limit=limit, count_tokens=count) for name in names]


def run_battery(
    model: HookedModel,
    *,
    n_examples: int = 10,
    batch_size: int = 8,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> DisruptionResult:
    """Run every arm on every task of the battery.

    Args:
        model: From `load_model`; a decoder with a language-modelling head and a tokenizer.
        n_examples: Examples of each task.
        batch_size: Prompts of a batch.
        cells: Folder that keeps finished cells; see `run_disruption`.
        on_progress: Called with the number of cells finished; there are `n_cells()`.

    Raises:
        UnsupportedModelError: If the model is an encoder or has no head.
        ValueError: If a task does not fit the model's context.
    """
    require_in_range("n_examples", n_examples, low=2, high=1 << 20, unit="examples")
    asking = EvaluationConfig(readouts=("generation", "options"), batch_size=batch_size)
    return run_disruption(
        model,
        load_tasks(model, limit=n_examples),
        battery_arms(),
        config=DisruptionConfig(
            evaluation=asking, generated=GENERATED, n_neutral=6, neutral_length=64
        ),
        cells=cells,
        on_progress=on_progress,
    )


def n_cells() -> int:
    """Cells of a battery: tasks times arms, the intact model included."""
    return len(TASKS) * (1 + len(battery_arms()))
