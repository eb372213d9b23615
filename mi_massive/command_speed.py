"""How long commands take in processes of their own: an import, a whole report.

Commands are run in turn within one run (A B, A B, ...) and compared within a round, as for
`measure_speed`. What a first run compiles or reads into the page cache is not counted: one round
goes first.
Does not show the speed of another machine: quote ratios, or name the machine.
"""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range, require_not_empty
from mi_massive._columns import seconds_frame
from mi_massive._cores import n_cores
from mi_massive.records import command_line, package_versions
from mi_massive.speed import in_turn
from mi_massive.stats import Estimate, estimate

_SHOWN: Final = 300
"""Characters of a failed command's messages in the error."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CommandSpeedResult:
    """Times of commands, each in a fresh process."""

    ways: tuple[str, ...]
    commands: tuple[str, ...]
    """What was run, as a shell would read it."""
    seconds: Float[Tensor, "round way"] = field(repr=False)
    """Wall time of each command in each round, from start to exit."""
    ratios: tuple[Estimate, ...]
    """Median over rounds of each command's time divided by that of the last one."""
    n_cores: int
    """Cores that the processes could use."""
    n_threads: str
    """OMP_NUM_THREADS as the processes saw it; empty where each chose for itself."""
    versions: dict[str, str]
    command: str
    """The command that measured."""

    def to_frame(self) -> Any:
        """Times as a data frame (pandas), one row a way and round."""
        return seconds_frame(self.ways, self.seconds)


def measure_commands(
    commands: Mapping[str, Sequence[str]], *, n_rounds: int = 9, warm_up: bool = True
) -> CommandSpeedResult:
    """Time each command in turn; the last one is what the others are divided by.

    Args:
        commands: Program and arguments, by the name of the way.
        n_rounds: Rounds that are counted.
        warm_up: Whether one round more goes first. Without it the first round counts, as for a
            command too long to run twice.

    Raises:
        ValueError: If there is no command or no round.
        RuntimeError: If a command fails, with the end of what it wrote.
    """
    require_not_empty("commands", commands, remedy="name at least one")
    require_in_range("n_rounds", n_rounds, low=1, high=1000, unit="rounds")
    ways = {name: partial(_run, command) for name, command in commands.items()}
    seconds = torch.tensor(in_turn(ways, n_rounds, warm_up=warm_up))
    ratios = (seconds / seconds[:, -1:]).double().numpy()
    return CommandSpeedResult(
        ways=tuple(ways),
        commands=tuple(_as_typed(command) for command in commands.values()),
        seconds=seconds,
        ratios=tuple(estimate(ratio, n_of="rounds", statistic="median") for ratio in ratios.T),
        n_cores=n_cores(),
        n_threads=os.environ.get("OMP_NUM_THREADS", ""),
        versions=package_versions(),
        command=command_line(),
    )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"{_as_typed(command)} must exit with 0, got {done.returncode}: "
            f"{done.stderr.strip()[-_SHOWN:]}"
        )


def _as_typed(command: Sequence[str]) -> str:
    """The command with its program's file name: folders of one machine say nothing elsewhere."""
    return shlex.join([Path(command[0]).name, *command[1:]])
