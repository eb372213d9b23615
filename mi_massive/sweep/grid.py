"""What a sweep asks for: models, arms, tasks, seeds and layers, in one YAML file or in Python."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

from mi_massive._checks import require_in_range, require_not_empty, require_positive
from mi_massive.arms import Arm
from mi_massive.disruption import DisruptionConfig
from mi_massive.models.load import DTYPES
from mi_massive.presets import PRESETS, preset
from mi_massive.scores import EvaluationConfig, Readout
from mi_massive.tasks import TASKS

OWN_TASK: Final = ".jsonl"
"""Ending of a file that is a task of the user's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridModel:
    """A model of a grid."""

    name: str
    """As `load_model` takes it."""
    revision: str | None = None
    chat: bool = False
    """Ask it in its chat template."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that would be read as this folder."""
        require_not_empty("name of a model", self.name, remedy="name one as load_model takes it")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepGrid:
    """Every model on every task, intact and under every arm."""

    models: tuple[GridModel, ...]
    presets: tuple[str, ...]
    """Arms, by their names in `mi_massive.presets`."""
    tasks: tuple[str, ...]
    """Names of tasks, or `.jsonl` files of one's own."""
    k: tuple[int, ...] | None = None
    """Dimensions of each head; None takes each preset's own number."""
    seeds: tuple[int, ...] = (0,)
    """Of the presets that draw their dimensions."""
    layers: tuple[tuple[int, ...] | None, ...] = (None,)
    """Sets of block indices that are edited; None is all."""
    dtypes: tuple[str, ...] = ("float32",)
    """Types of the weights."""
    limit: int | None = None
    """Examples of each task; None takes the task's own number."""
    data: str | None = None
    """Folder of `TASK.jsonl` in place of the hub's data sets."""
    readouts: tuple[Readout, ...] = ("generation", "options")
    generated: tuple[str, ...] | None = None
    """Tasks to generate answers for; the others are read by their options where they have any."""
    batch_size: int = 8
    max_new_tokens: int | None = None
    n_neutral: int = field(default_factory=lambda: DisruptionConfig().n_neutral)
    """Default passages on which matched controls are matched."""
    neutral_length: int = field(default_factory=lambda: DisruptionConfig().neutral_length)

    def __post_init__(self) -> None:
        """Refuse what names nothing; what lies beside the grid is looked for by `check_grid`."""
        axes = ("models", "presets", "tasks", "seeds", "layers", "dtypes", "readouts")
        for name in (*axes, *(("k",) if self.k is not None else ())):
            values: tuple[object, ...] = getattr(self, name)
            require_not_empty(name, values, remedy="give at least one value, or leave the axis out")
        for name in (*axes, *(n for n in ("k", "generated") if getattr(self, n) is not None)):
            given: tuple[object, ...] = getattr(self, name)
            for value, times in Counter(given).items():
                if times > 1:
                    shown = "all" if value is None else repr(value)
                    raise ValueError(f"{name} must differ, got {shown} twice; leave one out")
        for name in self.presets:
            preset(name)
        for k in self.k or ():
            require_in_range("k", k, low=1, high=1 << 16, unit="dimensions of a head")
        for seed in self.seeds:
            if seed < 0:
                raise ValueError(f"seeds must be 0 or more, got {seed}; choose others")
        self._require_blocks()
        for name in self.dtypes:
            if name not in DTYPES:
                raise ValueError(f"dtypes must be among {', '.join(DTYPES)}, got {name!r}")
        self._require_tasks()
        if self.limit is not None:
            require_positive("limit", self.limit)
        _ = self.evaluation_for(self.models[0])

    def _require_blocks(self) -> None:
        """Refuse sets of layers that no model has, or two that are one."""
        sets = [blocks for blocks in self.layers if blocks is not None]
        for blocks in sets:
            if not blocks or min(blocks) < 0 or len(set(blocks)) < len(blocks):
                raise ValueError(
                    "layers must be sets of different block indices from 0 on, got "
                    f"{list(blocks)}; name at least one block, or all"
                )
            if sum(set(blocks) == set(other) for other in sets) > 1:
                raise ValueError(
                    f"layers must differ, got the blocks {sorted(blocks)} twice; leave one out"
                )

    def _require_tasks(self) -> None:
        for name in self.tasks:
            if name not in TASKS and not name.endswith(OWN_TASK):
                raise ValueError(
                    f"tasks must be among {', '.join(TASKS)} or a {OWN_TASK} file that exists, "
                    f"got {name!r}"
                )
        for name, times in Counter(map(task_name, self.tasks)).items():
            if times > 1:
                raise ValueError(
                    f"tasks must have different names, got {name!r} twice; rename one of the files"
                )
        for name in self.generated or ():
            if name not in self.tasks:
                raise ValueError(
                    f"generated must be among the tasks {', '.join(self.tasks)}, got {name!r}; "
                    "add it to tasks, or leave it out"
                )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm once: a preset that draws nothing has one seed, an undosed one its own k."""
        arms = [
            Arm(
                preset=name,
                k=k if k is not None and PRESETS[name].dosed else PRESETS[name].k,
                seed=seed if PRESETS[name].seeded else 0,
                layers=layers,
            )
            for name, k, layers, seed in product(
                self.presets, self.k or (None,), self.layers, self.seeds
            )
        ]
        return tuple(dict.fromkeys(arms))

    def evaluation_for(self, model: GridModel) -> DisruptionConfig:
        """How this model is asked, as `run_disruption` takes it."""
        return DisruptionConfig(
            evaluation=EvaluationConfig(
                readouts=self.readouts,
                chat=model.chat,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
            ),
            generated=None if self.generated is None else tuple(map(task_name, self.generated)),
            n_neutral=self.n_neutral,
            neutral_length=self.neutral_length,
        )


def task_name(task: str) -> str:
    """The name of a task in results: that of a file of one's own is the file's."""
    return task if task in TASKS else Path(task).stem
