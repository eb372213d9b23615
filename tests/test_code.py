"""The code that decides a kept result: what it imports, and neither comments nor layout."""

from pathlib import Path

import pytest

from mi_massive._code import code_digest, code_modules

FILES = {
    "top.py": "from pack.near import f\n\n\ndef run():\n    from pack.inner import late\n",
    "near.py": '"""Near."""\n\n\ndef f(x: int) -> int:\n    """Add."""\n    return x + 1\n',
    "inner/__init__.py": "import pack.inner.deep\n",
    "inner/late.py": "import json\n",
    "inner/deep.py": "DEEP = 1\n",
    "other.py": "from pack.top import run\n",
    "data/texts.jsonl": "{}\n",
}


def write(folder: Path, changed: dict[str, str]) -> str:
    """The digest of a package's module `top` with some files changed."""
    package = folder / "pack"
    for name, text in (FILES | changed).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return code_digest("pack.top", package=package)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"near.py": "def f(x: int) -> int:\n    # a word\n    return (x + 1)\n"}, True),
        ({"other.py": "OTHER = 2\n"}, True),
        ({"near.py": FILES["near.py"].replace("+ 1", "+ 2")}, False),
        ({"inner/late.py": "import re\n"}, False),
        ({"inner/deep.py": "DEEP = 2\n"}, False),
        ({"data/texts.jsonl": '{"text": "more"}\n'}, False),
    ],
    ids=["layout", "not imported", "statement", "imported late", "imported by a package", "data"],
)
def test_the_digest_changes_with_all_that_the_module_does_and_with_nothing_else(
    changed: dict[str, str], same: bool, tmp_path: Path
) -> None:
    before = write(tmp_path / "before", {})
    assert (write(tmp_path / "after", changed) == before) is same


def test_a_sweeps_cells_depend_on_models_tasks_and_edits_and_not_on_views() -> None:
    modules = code_modules("mi_massive.sweep.worker")
    wanted = ("evaluation", "models.load", "tasks.passkey", "_replacements", "sweep.worker")
    assert {f"mi_massive.{name}" for name in wanted} <= set(modules)
    views = ("mi_massive.viz", "mi_massive.report", "mi_massive.cli", "mi_massive.sweep.run")
    assert [name for name in modules if name.startswith(views)] == []


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of mi_massive, got '.*gone'"):
        code_modules("mi_massive.gone")
