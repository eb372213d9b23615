"""The section on patching: every result has its picture and table, and says what it cannot show."""

import pytest
from sample_patching import attribution_result, patched_patterns, patching_result

from mi_massive._patch_report import view_for_report
from mi_massive.report import ReportResults
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.patching import patching_section
from mi_massive.viz.patterns import circuitsvis_bundle


def test_every_result_has_a_picture_but_single_pairs_and_every_one_a_table() -> None:
    results = [patching_result(g) for g in ("layer", "head", "massive", "pair")]
    section = patching_section(
        results, title="t", attributions=(attribution_result(),), patterns=patched_patterns()
    )
    assert [p.id for p in section.pictures] == ["patching-0", "patching-1", "patching-2"]
    counts = section.tables[0]
    assert counts.rows[1] == ("rot_q by head, denoising", "one at a time", "5", "2", "24", "1")
    largest = section.tables[2]
    assert largest.rows[0] == (*("0", "0", "last", "0.750", "[0.650, 0.850]", "0", "0.001", "yes"),)
    assert largest.rows[1][-1] == "no"  # as large as its placebo
    agreement, top = section.tables[-2:]
    assert agreement.rows[0] == ("Pearson, random cells", "0.900", "[0.500, 0.990]", "3 cells")
    assert top.rows[0][:6] == ("5", "1", "1", "last", "0.700", "0.600")
    assert top.rows[2][5] == "undefined"
    assert section.tokens is not None
    assert '"runs"' in section.tokens
    assert "with the head’s own rot_q of the clean run" in section.tokens_reading
    assert patching_section(results, title="t").tokens_reading == ""


@pytest.fixture(scope="module", name="bare")
def fixture_bare() -> ReportResults:
    from test_report import bare

    return bare()


def test_the_page_has_the_section_only_with_a_result(bare: ReportResults) -> None:
    from test_report import bare as make

    assert 'id="patching"' not in render_page(bare)
    page = render_page(make(patching=(patching_result(),), patched_patterns=patched_patterns()))
    assert 'id="patching"' in page
    assert "Which parts carry the answer?" in page
    assert circuitsvis_bundle() in page  # also without the view of massive dimensions
    assert circuitsvis_bundle() not in render_page(make(patching=(patching_result(),)))
    noted = render_page(make(notes=("patching: No pair had a difference.",)))
    assert 'id="patching"' in noted
    assert "No pair had a difference." in noted


def test_saved_patches_without_whole_heads_get_a_note_in_the_place_of_the_view() -> None:
    found = view_for_report(None, [patching_result("massive")], quiet=True)
    (note,) = found.pop("notes")
    assert note.startswith("patching: The patches are saved results. No patch of whole heads")
    assert found == {}


def test_a_patch_of_another_model_is_refused() -> None:
    from test_report import bare as make

    with pytest.raises(ValueError, match="results must be of one model"):
        make(patching=(patching_result(model="other"),))


def test_every_cell_of_every_patch_is_in_the_table() -> None:
    from test_report import bare as make

    patches = (patching_result("layer"), patching_result("head"))
    made = frames(make(patching=patches, attributions=(attribution_result(),)))
    assert len(made["patching"]) == 6 + 24
    assert set(made["patching"]["granularity"]) == {"layer", "head"}
    estimates = made["attribution"]
    assert len(estimates) == 8
    assert estimates["estimated"].tolist() == pytest.approx([i / 10 for i in range(8)])
    # The three of the sample and the three of the top, one of them in both and undefined there.
    assert estimates["exact"].notna().tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    assert set(estimates["granularity"]) == {"pair"}
