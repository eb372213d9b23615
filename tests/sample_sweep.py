"""A grid on a tiny random model, whose cells take a blink each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiny_models import llama

from mi_massive.records import text_of
from mi_massive.sweep import GridModel, InlineEngine, SweepGrid, load_sweep
from mi_massive.sweep.worker import SweepWork

N_CELLS = 10
"""The intact model and four arms, on two tasks."""


def build_grid(folder: Path) -> SweepGrid:
    """Two tasks of one's own, of six questions each, under one treatment and a random control."""
    model = llama().save(folder / "model")
    tasks: list[str] = []
    for name in ("first", "second"):
        rows = [
            {"id": str(i), "prompt": f"t{i} t2 t{3 * i}", "answer": "t4", "kind": "contextual"}
            | {"options": ["t4", "t5"]}
            for i in range(6)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        tasks.append(str(path))
    return SweepGrid(
        models=(GridModel(name=str(model)),),
        presets=("paper", "random"),
        tasks=tuple(tasks),
        k=(2,),
        layers=(None, (0,)),
        readouts=("options",),
    )


def table_text(folder: Path) -> str:
    """The whole table as text."""
    return text_of(load_sweep(folder))


def written(folder: Path) -> dict[str, int]:
    """When each result was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


@dataclass(frozen=True, kw_only=True)
class BoundedEngine:
    """This process, for at most so many cells; then an interrupt, as a user sends it."""

    n_cells: int
    device: str = "cpu"
    n_workers: int = 1
    seen: list[None] = field(default_factory=list[None])

    def run(self, works: Sequence[SweepWork], tick: object) -> list[str]:
        def count() -> None:
            self.seen.append(None)
            if len(self.seen) == self.n_cells:
                raise KeyboardInterrupt

        for work in works:
            InlineEngine().run([work], count)
        return []
