"""The section on frequency surgery says what the record holds."""

import dataclasses
from pathlib import Path

from mi_massive import SurgeryResult, load_result
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.surgery import surgery_section
from mi_massive.report.text import number

RECORD = Path(__file__).parents[1] / "experiments/records/surgery_smollm2-135m-instruct.json"


def record() -> SurgeryResult:
    result = load_result(RECORD)
    assert isinstance(result, SurgeryResult)
    return result


def test_arms_distances_and_norms_stand_in_tables() -> None:
    result = record()
    section = surgery_section(result, title="t")
    assert [p.id for p in section.pictures] == ["position-shares", "bands-treated"]
    assert "Tasks of 12 and 24 examples are asked under each of 24 such arms" in section.question
    norms, arms, distances = section.tables
    assert [row[0] for row in norms.rows] == ["q", "k", "v"]
    assert norms.rows[2][-1] == "undefined undefined"  # nothing of v is massive in a pair
    by_arm = {row[0]: row for row in arms.rows}
    assert set(by_arm) == {arm.name for arm in result.arms}
    damage = result.effects.of("band 0 removed")["added_cross_entropy"]
    assert by_arm["band 0 removed"][1].startswith(f"{number(damage.effect)} [")
    change = result.cell("band 0 removed", "passkey_128_6", "options").change
    assert by_arm["band 0 removed"][4].startswith(f"{number(change.effect)} [")
    assert len(distances.rows) == len(result.distances)


def test_arms_that_were_left_out_are_named() -> None:
    result = dataclasses.replace(record(), left_out=("massive removed",))
    section = surgery_section(result, title="t")
    assert "Nothing is massive where these would act: massive removed." in section.question
    assert "Nothing is massive" not in surgery_section(record(), title="t").question


def test_the_page_has_the_section_and_the_table_of_cells() -> None:
    from test_report import bare

    assert 'id="surgery"' not in render_page(bare())
    results = bare(surgery=record())
    page = render_page(results)
    assert 'id="surgery"' in page
    assert "What is each rotary frequency for?" in page
    assert len(frames(results)["surgery"]) == len(record().cells)
