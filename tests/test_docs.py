"""The site says what there is: every name, record, page and command. `make docs` builds it."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from chromium import DESKTOP, PHONE, chromium, visit
from typer.main import get_command

import mi_massive
from mi_massive import sweep, viz
from mi_massive.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = DOCS / "_build" / "html"
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    if "_build" not in path.relative_to(DOCS).parts
)
NAMES = [path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES]
ANALYSES = sorted((DOCS / "analyses").glob("*.md"))
NO_EXPERIMENT = {"experiments/picture.py", "experiments/readme_table.py"}
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


def prose(page: Path) -> str:
    """The page's text without blocks, code, link targets and sources."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+", "", text)


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks, and whole commands within a line of text."""
    blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(mi-massive [a-z-]+ [^`]+)`", text_of(page))
    return [line for line in [*lines, *inline] if line.startswith("mi-massive ")]


def parse(line: str) -> None:
    """Give a command to the application's own parser, which runs nothing."""
    _, name, *arguments = shlex.split(line, comments=True)
    if arguments != ["--help"]:  # which ends the application
        subcommands()[name].make_context(name, arguments).close()


def subcommands() -> dict[str, Any]:
    """The application's subcommands by name."""
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands


@pytest.mark.parametrize("name", mi_massive.__all__)
def test_every_public_name_is_in_the_api_reference(name: str) -> None:
    documented = [(DOCS / "api" / page.name).read_text("utf-8") for page in DOCS.glob("api/*.md")]
    found = re.findall(rf"^\.\. auto\w+:: {name}$", "\n".join(documented), re.MULTILINE)
    assert len(found) == 1


@pytest.mark.parametrize("name", sweep.__all__)
def test_every_name_of_sweeps_is_in_the_api_reference(name: str) -> None:
    page = (DOCS / "api" / "scale.md").read_text("utf-8")
    assert len(re.findall(rf"^\.\. auto\w+:: {name}$", page, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", viz.__all__)
def test_every_figure_is_in_the_api_reference(name: str) -> None:
    assert f".. autofunction:: {name}\n" in (DOCS / "api" / "viz.md").read_text("utf-8")


def test_every_record_and_every_experiment_is_on_the_page_of_reproduction() -> None:
    page = (DOCS / "reproduce.md").read_text("utf-8")
    records = {path.name for path in (ROOT / "experiments" / "records").glob("*.json")}
    assert set(re.findall(r"\(\.\./experiments/records/([^)]+)\)", page)) == records
    scripts = {f"experiments/{path.name}" for path in (ROOT / "experiments").glob("[!_]*.py")}
    assert set(re.findall(r"python (experiments/\w+\.py)", page)) == scripts - NO_EXPERIMENT


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    page = (DOCS / "cli.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `mi-massive ([\w-]+)` \|", page, re.M)) == sorted(subcommands())


@pytest.mark.parametrize("page", ANALYSES, ids=lambda page: page.stem)
def test_an_analysis_says_what_it_answers_how_to_read_it_and_what_could_fool(page: Path) -> None:
    parts = re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", text_of(page), re.M)
    kept = ("What it answers", "How to read it", "What could fool you", "Source")
    assert [name for name in dict.fromkeys(parts) if name in kept] == list(kept)


@pytest.mark.parametrize("page", [*ANALYSES, DOCS / "tutorial.ipynb"], ids=lambda page: page.stem)
def test_measured_numbers_come_from_executed_code(page: Path) -> None:
    assert re.findall(r"\d*\.\d+|\d+ ?%", prose(page)) == []


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
def test_lines_of_code_fit_the_column(page: Path) -> None:
    blocks = re.findall(r"```(?:sh|\{code-cell\} python)\n(.*?)```", text_of(page), re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 100] == []


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


# --- the built site, in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def built(name: str) -> Path:
    path = SITE / f"{name}.html"
    assert path.exists(), f"{path} must exist; run make docs"
    return path


@pytest.mark.site
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_a_page_draws_all_without_a_network(
    browser: Any, name: str, size: dict[str, int], scheme: str
) -> None:
    with visit(browser, built(name), size=size, scheme=scheme) as seen:
        seen.draw_everything()
        undrawn = seen.page.query_selector_all(".plot:not(:has(.main-svg))")
        assert (len(undrawn), seen.messages, seen.overflow()) == (0, [], 0)
    assert [url for url in seen.requests if not url.startswith(SITE.resolve().as_uri())] == []


@pytest.mark.site
def test_figures_follow_the_sites_own_switch_of_colours(browser: Any) -> None:
    with visit(browser, built("analyses/bands"), scheme="dark") as seen:
        seen.draw_everything()
        ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        dark = seen.page.evaluate(ink)
        seen.page.evaluate("document.body.dataset.theme = 'light'")
        seen.page.wait_for_timeout(500)
        assert seen.page.evaluate(ink) != dark


@pytest.mark.site
def test_every_record_linked_can_be_fetched_from_the_site(browser: Any) -> None:
    with visit(browser, built("reproduce")) as seen:
        targets = seen.page.eval_on_selector_all(
            "a.download", "links => links.map(link => link.getAttribute('href'))"
        )
        assert len(targets) >= len(list((ROOT / "experiments" / "records").glob("*.json")))
        assert [target for target in targets if not (SITE / target).exists()] == []
