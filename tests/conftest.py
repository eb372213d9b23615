"""Fixtures of several files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mi_massive import cli


class Answer(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, called as a user calls it: in this process."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["mi-massive", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sweep on a tiny random model."""
    from sample_sweep import build_grid  # late: it loads transformers

    return build_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def undisturbed(grid: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that sweep when nothing goes wrong."""
    from sample_sweep import N_CELLS

    from mi_massive.sweep import run_sweep

    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_sweep(grid, folder).done == N_CELLS
    return folder
