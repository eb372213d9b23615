"""The section on conflict: what every arm says stands in the figure, the tables and the frame."""

import pytest
from sample_conflict import BACK, DESTROYED, N, conflict_result

from mi_massive.report.conflict import conflict_section
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.scores import INTACT


def test_the_tables_tell_falling_back_from_losing_both() -> None:
    section = conflict_section(conflict_result(), title="t")
    known, *by_readout = section.tables
    assert known.rows[0][:3] == ("country_capital", "60", "20")
    table = by_readout[1]
    assert "object of the relation" in table.caption
    assert [row[0] for row in table.rows[:3]] == [INTACT, BACK.name, DESTROYED.name]
    column = {name: [row[i] for row in table.rows[:3]] for i, name in enumerate(table.head)}
    shares = {
        "follows the context": ["0.833", "0", "0"],
        "keeps memory": ["0.167", "1", "0"],
        "fact closed-book": ["1", "1", "0"],
        "lost both": ["0", "0", "1"],
    }
    for name, expected in shares.items():
        assert [cell.partition(" ")[0] for cell in column[name]] == expected, name
    (figure,) = section.pictures
    assert figure.id == "conflict"


def test_every_cell_is_in_the_table_of_numbers() -> None:
    from test_report import bare

    result = conflict_result()
    frame = frames(bare(conflict=result))["conflict"]
    assert len(frame) == len(result.cells)
    whole = frame[frame["relation"].isna() & frame["style"].isna()]
    chosen = whole[whole["readout"] == "candidates"].set_index("arm")
    assert chosen.loc[BACK.name, "keeps"] == 1.0
    assert chosen.loc[BACK.name, "to_memory"] == 1.0
    assert chosen.loc[BACK.name, "to_memory_n"] == 10
    assert chosen.loc[DESTROYED.name, "lost_both"] == 1.0
    assert chosen.loc[INTACT, "follows"] == pytest.approx(10 / N)


def test_the_page_has_the_section_only_with_a_result() -> None:
    from test_report import bare

    assert 'id="conflict"' not in render_page(bare())
    page = render_page(bare(conflict=conflict_result()))
    assert "When prompt and memory disagree, which does the model follow?" in page
    noted = render_page(bare(notes=("conflict: The model has no head.",)))
    assert "The model has no head." in noted


def test_conflicts_of_another_model_are_refused() -> None:
    from test_report import bare

    with pytest.raises(ValueError, match="results must be of one model"):
        bare(conflict=conflict_result("other"))
