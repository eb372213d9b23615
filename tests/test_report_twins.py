"""The section on twins: curves, tables, and what they cannot show."""

import dataclasses
import re

from sample_twins import CONFIG, twin_run, twins_result

from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.twins import contrast_table, twins_section
from mi_massive.twin_arms import TWIN_ARMS


def test_text_twins_have_curves_and_contrasts_and_no_abilities() -> None:
    section = twins_section(twins_result(edits=False), title="t")
    assert [p.id for p in section.pictures] == ["emergence", "emergence-loss"]
    arms, contrasts = section.tables
    assert [row[0] for row in arms.rows] == ["RoPE, theta 1e4", "no position encoding"]
    assert arms.rows[0][1] == "1 [1, 1]"  # the loss
    assert arms.rows[0][4:6] == ("0 [0, 0]", "0 [0, 0]")  # massive dimensions
    assert arms.rows[0][10] == "1.12 [1.12, 1.12]"  # the sink comes after k
    assert arms.rows[1][7] == "did not rise"  # max/mean of q without positions
    assert arms.rows[0][7].count(",") == 2
    assert arms.rows[1][11] == "undefined undefined"  # nothing turns
    assert contrasts.rows[0][:3] == ("RoPE, theta 1e4", "no position encoding", "2.00 [2.00, 2.00]")
    assert "3 seeds" in section.question


def test_twins_of_the_mixture_show_what_disruptions_cost() -> None:
    section = twins_section(twins_result(), title="t")
    assert [p.id for p in section.pictures] == ["emergence", "emergence-loss", "abilities"]
    losses = section.tables[2].rows
    assert [row[1] for row in losses] == ["paper k=1", "random k=1"] * 2
    assert losses[0][2:5] == (
        "0.750 [0.750, 0.750]",
        "0.250 [0.250, 0.250]",
        "0.500 [0.500, 0.500]",
    )
    assert losses[0][6] == "0.250 [0.250, 0.250]"  # beyond as many random dimensions
    assert losses[1][6] == ""  # random is not compared with itself
    rows = section.tables[3].rows
    assert rows[1][:4] == (
        "RoPE, theta 1e4",
        "paper k=1",
        "0.250 [0.250, 0.250]",
        "0.750 [0.750, 0.750]",
    )


def test_a_run_that_stopped_is_named() -> None:
    gone = twin_run(failure="the loss became nan at step 9")
    result = twins_result()
    section = twins_section(dataclasses.replace(result, runs=(gone, *result.runs[1:])), title="t")
    assert "rope, seed 0: the loss became nan at step 9." in section.question


def test_the_page_has_a_section_for_each_corpus_and_the_table_every_step() -> None:
    from test_report import bare as make

    assert 'id="twins"' not in render_page(make())
    results = make(twins=(twins_result(),))
    page = render_page(results)
    assert 'id="twins"' in page
    assert "Does RoPE cause it?" in page
    made = frames(results)["twins"]
    assert len(made) == 6 * 4
    last = made[(made.arm == "rope") & (made.step == 80)].iloc[0]
    assert (round(last.max_over_mean_q, 6), last.loss, last.first_token) == (4.0, 1.0, 0.5)


def test_places_on_the_page_stay_unique_with_several_corpora() -> None:
    from test_report import bare as make

    page = render_page(make(twins=(twins_result(), twins_result(edits=False))))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"twins", "twins-2", "figure-emergence-2", "figure-emergence-loss-2"} <= set(ids)
    assert '<a href="#twins-2">Twins 2</a>' in page


def test_rope_is_set_against_other_rotations_too() -> None:
    config = dataclasses.replace(CONFIG, arms=("rope", "partial_25", "none"))
    runs = tuple(twin_run(arm, seed) for arm in config.arms for seed in range(3))
    table = contrast_table(twins_result(runs=runs, config=config))
    named = [(row[0], row[1]) for row in table.rows]
    rope, part, none = (TWIN_ARMS[arm].statement for arm in config.arms)
    assert named == [(rope, none), (part, none), (rope, part)]
    assert all(len(row) == len(table.head) for row in table.rows)
    rotating = dataclasses.replace(CONFIG, arms=("rope", "partial_25"))
    alone = twins_result(runs=runs[:6], config=rotating)
    assert [(row[0], row[1]) for row in contrast_table(alone).rows] == [(rope, part)]
