"""What a sweep asks for: models, arms, tasks, seeds and layers, in one YAML file or in Python."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, cast

import yaml

from mi_massive._checks import require_not_empty
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
        """Refuse what names nothing, before anything is computed."""
        axes = ("models", "presets", "tasks", "seeds", "layers", "dtypes", "readouts")
        for name in (*axes, *(("k",) if self.k is not None else ())):
            values: tuple[object, ...] = getattr(self, name)
            require_not_empty(name, values, remedy="give at least one value, or leave the axis out")
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{name} must differ, got {value!r} twice; leave one out")
        for name in self.presets:
            preset(name)
        for name in self.dtypes:
            if name not in DTYPES:
                raise ValueError(f"dtypes must be among {', '.join(DTYPES)}, got {name!r}")
        for name in self.tasks:
            if name not in TASKS and not (name.endswith(OWN_TASK) and Path(name).is_file()):
                raise ValueError(
                    f"tasks must be among {', '.join(TASKS)} or a {OWN_TASK} file that exists, "
                    f"got {name!r}"
                )
        _ = self.evaluation_for(self.models[0])

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
            generated=self.generated,
            n_neutral=self.n_neutral,
            neutral_length=self.neutral_length,
        )


def read_grid(path: str | Path) -> SweepGrid:
    """Read a grid from a YAML file.

        models: [smollm2-135m-instruct, {name: owner/model, revision: main, chat: true}]
        presets: [paper, smallest, random]
        k: [1, 4]
        tasks: [passkey_128_6, pairs_open_book]

    Args:
        path: The file. Its keys are the fields of `SweepGrid`; models and files with relative paths
            lie beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML mapping, a key or a name in it is unknown, or a value is of a
            wrong kind.
    """
    path = Path(path)
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be YAML, got {reason!r}; correct it") from error
    given = _mapping(document, SweepGrid, str(path))
    values = {name: _value(name, value, path) for name, value in given.items()}
    try:
        return SweepGrid(**values)
    except TypeError as error:  # the checker of types says which field, and what it got
        raise ValueError(f"{path}: {' '.join(str(error).split())[:400]}") from error


def _mapping(document: Any, kind: type, where: str) -> dict[str, Any]:
    """A mapping whose keys are fields of a dataclass, all required ones among them."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{where} must be a mapping of names to values, got {document!r}")
    given = dict(cast(Mapping[str, Any], document))
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            raise ValueError(
                f"keys of {where} must be among {', '.join(fields)}, got {name!r}; correct it"
            )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ValueError(f"{where} must have the key {name!r}, got none; add it")
    return given


def _value(name: str, value: Any, path: Path) -> Any:
    if value is None and name in _MAY_BE_NONE:
        return None
    if name == "data":
        return _beside(path, value)
    if name not in _AXES:
        return value
    if not isinstance(value, list):
        raise ValueError(f"{name} of {path} must be a list, got {value!r}; write [{value}]")
    entries = cast(list[Any], value)
    if name == "models":
        return tuple(_model(entry, path) for entry in entries)
    if name == "layers":
        return tuple(_layers(entry, path) for entry in entries)
    if name == "tasks":
        return tuple(_beside(path, entry) for entry in entries)
    return tuple(entries)


_MAY_BE_NONE: Final = ("k", "generated", "limit", "data", "max_new_tokens")
_AXES: Final = (
    *("models", "presets", "tasks", "k", "seeds", "layers", "dtypes", "readouts", "generated"),
)


def _layers(entry: Any, path: Path) -> tuple[int, ...] | None:
    if isinstance(entry, list):
        return tuple(cast(list[int], entry))
    if entry != "all":
        raise ValueError(f"layers of {path} must be 'all' or lists of block indices, got {entry!r}")
    return None


def _model(entry: Any, path: Path) -> GridModel:
    given: Any = {"name": entry} if isinstance(entry, str) else entry
    values = _mapping(given, GridModel, f"models of {path}")
    values["name"] = _beside(path, values["name"])
    return GridModel(**values)


def _beside(path: Path, name: Any) -> str:
    """A file or folder by its whole path, which means the same to every worker."""
    found = path.absolute().parent / Path(name).expanduser()
    return str(found.resolve()) if found.exists() else name
