"""The site says what there is: every name, record, page and command. `make docs` builds it."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import mi_massive
from mi_massive import viz
from mi_massive.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    if "_build" not in path.parts and "jupyter_execute" not in path.parts
)
NAMES = [path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES]
USAGE_ERROR = typer.BadParameter.__base__  # of the click that typer brings
SHELL = [*PAGES, ROOT / "README.md"]


def text_of(page: Path) -> str:
    """A page's text; of a notebook its cells, code fenced as on the other pages."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    fences = {"code": "```{code-cell} python\n%s\n```", "markdown": "%s"}
    cells = json.loads(text)["cells"]
    return "\n".join(fences[cell["cell_type"]] % "".join(cell["source"]) for cell in cells)


def executed(page: Path) -> Iterator[ast.Module]:
    """The page's blocks of Python."""
    for block in re.findall(r"```\{code-cell\} python\n(.*?)```", text_of(page), re.DOTALL):
        yield ast.parse(block)


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks, and whole commands within a line of text."""
    blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(mi-massive [a-z]+ [^`]+)`", text_of(page))
    return [line for line in [*lines, *inline] if line.startswith("mi-massive ")]


def parse(line: str) -> None:
    """Give a command to the application's own parser, which runs nothing."""
    _, name, *arguments = shlex.split(line, comments=True)
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[name]
    command.make_context(name, arguments).close()


@pytest.mark.parametrize("name", mi_massive.__all__)
def test_every_public_name_is_in_the_api_reference(name: str) -> None:
    documented = [(DOCS / "api" / page.name).read_text("utf-8") for page in DOCS.glob("api/*.md")]
    found = re.findall(rf"^\.\. auto\w+:: {name}$", "\n".join(documented), re.MULTILINE)
    assert len(found) == 1


@pytest.mark.parametrize("name", viz.__all__)
def test_every_figure_is_in_the_api_reference(name: str) -> None:
    assert f".. autofunction:: {name}\n" in (DOCS / "api" / "viz.md").read_text("utf-8")


def test_every_record_and_every_script_with_one_is_on_the_page_of_reproduction() -> None:
    page = (DOCS / "reproduce.md").read_text("utf-8")
    records = {path.name for path in (ROOT / "experiments" / "records").glob("*.json")}
    assert set(re.findall(r"\(\.\./experiments/records/([^)]+)\)", page)) == records
    named = set(re.findall(r"python (experiments/\w+\.py)", page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_for_machines_lists_every_page_once() -> None:
    listed = re.findall(
        r"^- \[(.+)\]\(\1\.html\): \S", (DOCS / "llms.txt").read_text("utf-8"), re.M
    )
    assert sorted(listed) == sorted(NAMES)


@pytest.mark.parametrize("page", SHELL, ids=lambda page: page.stem)
def test_every_command_shown_is_understood(page: Path) -> None:
    for line in commands(page):
        parse(line)


@pytest.mark.parametrize(
    "line", ["mi-massive bands --no-such-option", "mi-massive report --out", "mi-massive nothing"]
)
def test_a_planted_wrong_command_is_found(line: str) -> None:
    with pytest.raises((KeyError, USAGE_ERROR)):
        parse(line)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_import_only_what_is_public(page: Path) -> None:
    hidden = [
        f"{node.module}.{alias.name}"
        for block in executed(page)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mi_massive")
        for alias in node.names
        if "._" in f".{node.module}.{alias.name}" or (node.module or "").count(".") > 1
    ]
    assert hidden == []
