"""What a release says of itself: a section in the changelog for its version, a whole citation."""

import re
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

import mi_massive

ROOT = Path(__file__).parent.parent
SECTION = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)
SECTIONS = SECTION.findall((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_is_that_of_the_installed_package() -> None:
    assert mi_massive.__version__ == version("mi-massive")


def test_the_version_has_a_section_in_the_changelog() -> None:
    installed = Version(version("mi-massive"))
    dates = dict(SECTIONS)
    under_way = installed.is_devrelease and "unreleased" in dates.values()
    assert under_way or installed.base_version in dates


def test_sections_are_newest_first_and_only_the_first_is_unreleased() -> None:
    versions = [Version(number) for number, _ in SECTIONS]
    assert versions == sorted(set(versions), reverse=True)
    assert "unreleased" not in [date for _, date in SECTIONS[1:]]


def test_the_citation_has_what_its_format_requires() -> None:
    cited = citation()
    assert cited["cff-version"] == "1.2.0"
    assert cited["title"] == mi_massive.__name__
    assert cited["message"]
    assert [author["name"] for author in cited["authors"]] == ["The mi_massive authors"]
    assert cited["license"] == metadata("mi-massive")["License-Expression"]


def test_the_citation_names_the_paper() -> None:
    (paper,) = citation()["references"]
    assert paper["authors"][0]["family-names"] == "Jin"
    assert paper["year"] == 2025
    assert [found["value"] for found in paper["identifiers"]] == ["arXiv:2502.01563"]
