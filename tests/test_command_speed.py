"""Commands are timed in turn in processes of their own; one that fails is an error."""

import sys
from pathlib import Path

import pytest

from mi_massive import load_result, save_result
from mi_massive.command_speed import measure_commands

PYTHON = sys.executable


def test_the_slower_command_has_the_larger_ratio(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = "open({!r}, 'a').write({!r})"
    commands = {
        name: [PYTHON, "-c", f"import time; time.sleep({nap}); {write.format(str(log), name)}"]
        for name, nap in (("a", 0.5), ("b", 0))
    }
    result = measure_commands(commands, n_rounds=2)
    assert log.read_text() == "ababab"  # in turn, and one round more
    assert result.ways == ("a", "b")
    assert result.seconds.shape == (2, 2)
    assert result.ratios[0].effect > 1
    assert result.ratios[1].effect == 1
    assert result.commands[0].startswith(Path(PYTHON).name + " -c ")
    assert str(Path(PYTHON).parent) not in result.commands[0]
    again = load_result(save_result(result, tmp_path / "commands.json"))
    assert again.commands == result.commands


def test_without_a_warm_up_a_command_runs_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [PYTHON, "-c", f"open({str(log)!r}, 'a').write('x')"]
    result = measure_commands({"once": command}, n_rounds=1, warm_up=False)
    assert log.read_text() == "x"
    assert result.n_cores >= 1


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)must exit with 0, got 1: .*ModuleNotFoundError"):
        measure_commands({"gone": [PYTHON, "-c", "import no_such_module_here"]})


def test_no_command_and_no_round_are_refused() -> None:
    with pytest.raises(ValueError, match="commands must not be empty"):
        measure_commands({})
    with pytest.raises(ValueError, match="n_rounds"):
        measure_commands({"once": [PYTHON, "-c", ""]}, n_rounds=0)
