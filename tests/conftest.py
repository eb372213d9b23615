"""Fixtures of several files."""

from collections.abc import Callable
from typing import NamedTuple

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
