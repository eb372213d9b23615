import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import chromium
import pandas as pd
import pytest
import sample_results as sample
import torch
from chromium import visit
from sample_conflict import conflict_result
from sample_patching import attribution_result, patched_patterns, patching_result
from sample_surgery import surgery_result
from sample_twins import twins_result

import mi_massive.report as report_module
from mi_massive import load_result
from mi_massive.bands import BandsConfig
from mi_massive.disruption import INTACT, DisruptionConfig
from mi_massive.published import published_for
from mi_massive.report import (
    ReportResults,
    build_report,
    control_tables,
    disruption,
    disruption_tables,
    folder,
    published,
    tables,
)
from mi_massive.report.page import render_page
from mi_massive.report.text import interval, number, p_value
from mi_massive.viz import patterns as patterns_module

SEED_7 = BandsConfig(seed=7)
EVIL = (
    "</script><script>window.hit=1</script>",
    "<img src=x onerror='window.hit=2'>",
    "<!--",
    "&lt;b&gt;",
    "a\u2028b\u2029c",
)


def record(name: str) -> Any:
    records = Path(__file__).parents[1] / "experiments/records"
    return load_result(records / f"{name}_smollm2-135m-instruct.json")


def results(**changes) -> ReportResults:
    fields = {
        "scoreboard": sample.scoreboard_result(),
        "concentration": sample.concentration_with_nan(),
        "bands": sample.bands_result(),
        "symmetry": sample.symmetry_result(),
        "patterns": sample.patterns_result(),
        "control": sample.control_result(),
        "notes": ("The default prompts are English prose.", "patterns: Chosen by largest norm."),
        "disruption": sample.disruption_result(),
        "conflict": conflict_result(),
        "patching": (patching_result(), patching_result("massive")),
        "attributions": (attribution_result(),),
        "quantization": record("state_quantization"),
        "quantized": record("quantization"),
        "surgery": surgery_result(),
        "twins": (twins_result(),),
        "patched_patterns": patched_patterns(),
    }
    return ReportResults(**(fields | changes))


def bare(model="smollm2-135m-instruct", **changes) -> ReportResults:
    """A report without figures that take long: the folder's tests need no more."""
    few = sample.norms(2, 2, peak=9.0, seed=1)
    fields = {
        "scoreboard": sample.scoreboard_result(model),
        "concentration": sample.concentration_result(q=few, model=model),
        "bands": None,
        "symmetry": None,
        "patterns": None,
        "control": None,
        "notes": ("bands: The model has no rotary position embeddings.",),
    }
    return ReportResults(**(fields | changes))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return build_report(results(), tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def browser():
    with chromium.chromium() as started:
        yield started


# --- the page in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(browser, page):
    """The page on a desktop, light, with everything drawn."""
    with visit(browser, page) as seen:
        seen.draw_everything()
        yield seen
        assert seen.requests == []
        assert seen.messages == []


def test_the_page_draws_everything_without_a_request_or_a_console_message(drawn):
    find = drawn.page.locator
    assert find("table.scoreboard tbody tr").count() == len(sample.scoreboard_result().claims)
    assert find(".plot .canvas:has(svg.main-svg)").count() == find(".plot").count() == 21
    assert find(".mi-strip .colored-tokens").count() == 4
    assert find(".mi-patterns canvas").count() == 1 + 3  # one head; one in three runs
    assert drawn.page.evaluate("document.querySelector('.mi-patterns canvas').width") > 200
    assert drawn.overflow() == 0
    assert drawn.requests == []
    assert drawn.messages == []


def test_the_slider_is_reached_and_moved_by_keyboard_and_changes_the_layer(drawn):
    cell = "document.querySelector('#figure-heads .canvas').data[0].z[0][0]"
    crossed = "document.querySelector('#figure-heads .canvas').data[2].x.length"
    before = drawn.page.evaluate(cell)
    drawn.page.focus("#layer-heads")
    for _ in range(sample.N_LAYERS // 2 - 4):  # from the middle layer
        drawn.page.keyboard.press("ArrowLeft")
    drawn.page.wait_for_selector("#figure-heads[data-layer='4']")
    assert drawn.page.evaluate(cell) != before
    assert drawn.page.evaluate(crossed) == sample.D_HEAD
    grey = "document.querySelector('#figure-heads .canvas')._fullData[1].visible"
    assert drawn.page.evaluate(grey) is True
    assert drawn.page.locator("#layer-heads").get_attribute("aria-valuetext") == "layer 4"
    assert drawn.page.locator("#figure-heads output").inner_text() == "4"


def test_a_slider_moved_faster_than_it_draws_shows_the_last_layer(drawn):
    drawn.page.evaluate(
        """() => { const slider = document.querySelector('#layer-heads');
          for (const at of [0, 1, 2, 3, 0, 1]) {
            slider.value = at; slider.dispatchEvent(new Event('input')); } }"""
    )
    drawn.page.wait_for_selector("#figure-heads[data-layer='1']")
    drawn.page.wait_for_timeout(100)
    assert drawn.page.locator("#figure-heads").get_attribute("data-layer") == "1"
    assert drawn.messages == []


def test_figures_keep_their_height_when_the_window_changes(drawn):
    heights = "() => Array.from(document.querySelectorAll('.canvas')).map(box => box.scrollHeight)"
    before = drawn.page.evaluate(heights)
    drawn.page.set_viewport_size({"width": 900, "height": 700})
    drawn.page.wait_for_function("() => document.querySelector('.canvas')._fullLayout.width < 900")
    assert drawn.page.evaluate(heights) == before
    assert min(before) > 300
    assert drawn.overflow() == 0
    drawn.page.set_viewport_size(chromium.DESKTOP)


def test_choosing_another_head_draws_its_pattern(drawn):
    drawn.page.get_by_label("L20H6", exact=True).check()
    card = "[aria-label='Attention pattern of L20H6'] canvas"
    assert drawn.page.wait_for_selector(card).is_visible()


def test_text_has_enough_contrast_on_a_light_ground(drawn):
    pairs = drawn.page.evaluate(_CONTRAST)
    assert len(pairs) > 50
    assert [pair for pair in pairs if pair["ratio"] < 4.5] == []


def test_the_first_stop_of_the_keyboard_is_the_skip_link(browser, page):
    with visit(browser, page) as seen:
        seen.page.keyboard.press("Tab")
        focused = "document.activeElement"
        assert seen.page.evaluate(f"{focused}.getAttribute('href')") == "#scoreboard"
        assert seen.page.evaluate(f"{focused}.getBoundingClientRect().left") >= 0


def test_a_phone_has_no_sideways_scroll_and_stacked_panels(browser, page):
    with visit(browser, page, size=chromium.PHONE) as seen:
        seen.draw_everything()
        assert seen.overflow() == 0
        layout = "document.querySelector('#figure-heads .canvas')._fullLayout"
        assert seen.page.evaluate(f"{layout}.xaxis2.domain") == [0, 1]
        tops = seen.page.evaluate(
            f"[1, 2, 3].map(i => {layout}['yaxis' + (i > 1 ? i : '')]._offset)"
        )
        assert tops == sorted(tops)
        assert tops[0] < tops[2]
        scores = "document.querySelector('#figure-task-scores-generation .canvas')"
        names = seen.page.evaluate(
            f"Array.from({scores}.querySelectorAll('.annotation')).map("
            "node => [node.textContent, node.getBoundingClientRect().right])"
        )
        assert {"passkey_128_6", "cities · at chance"} <= {name for name, _ in names}
        assert max(right for _, right in names) <= chromium.PHONE["width"]
        overlaps = seen.page.evaluate(_LEGEND_OVER_PLOT)
        assert overlaps == []
        assert seen.messages == []


def test_a_dark_reader_gets_a_dark_page_and_repainted_figures_also_when_it_changes(browser, page):
    color = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('#figure-curve .canvas').data[2].line.color"
    with visit(browser, page, scheme="dark") as seen:
        seen.draw_everything()
        assert seen.page.evaluate(color) == "rgb(22, 23, 25)"
        assert seen.page.evaluate(line) == "#56b4e9"
        assert [pair for pair in seen.page.evaluate(_CONTRAST) if pair["ratio"] < 4.5] == []
        seen.page.emulate_media(color_scheme="light")
        seen.page.wait_for_function(f"() => {line} === '#0072b2'")
        assert seen.page.evaluate(color) == "rgb(255, 254, 252)"
        assert seen.messages == []


def test_without_script_the_scoreboard_and_tables_are_there(browser, page):
    with visit(browser, page, java_script_enabled=False) as seen:
        text = seen.page.locator("body").inner_text()
        assert "RoPE causes the concentration." in text
        assert "inconclusive" in text
        assert "This figure needs script; the tables hold the numbers." in text
        assert seen.page.locator("table.plain").count() > 5


def test_text_from_model_and_user_stays_text(browser, tmp_path):
    model = EVIL[0] + EVIL[1]
    tokens = EVIL + sample.TOKENS
    source = sample.provenance(model)
    evil = results(
        scoreboard=sample.scoreboard_result(model),
        concentration=sample.concentration_result(model=model),
        bands=replace(sample.bands_result(), provenance=source),
        symmetry=replace(sample.symmetry_result(), provenance=source),
        patterns=replace(sample.patterns_result(tokens), provenance=source),
        disruption=evil_disruption(model),
        conflict=conflict_result(model),
        patching=(evil_patching(model),),
        attributions=(),
        quantization=None,
        quantized=None,
        surgery=surgery_result(model),
        twins=(),
        patched_patterns=patched_patterns(model=model, tokens=EVIL),
        notes=(EVIL[0] + "\ud800", f"bands: {EVIL[1]}"),
    )
    with visit(browser, build_report(evil, tmp_path / "evil")) as seen:
        seen.draw_everything()
        assert seen.page.evaluate("window.hit") is None
        assert EVIL[0] in seen.page.locator("h1").inner_text()
        shown = seen.page.locator(".colored-tokens").first.inner_text().replace("\u2060", "")
        for token in EVIL[:4]:
            assert token.replace(" ", "\u00a0") in shown
        assert EVIL[1] in seen.page.locator("#figure-task-scores-generation").inner_text()
        assert EVIL[1] in seen.page.locator("#disruption table").nth(1).inner_text()
        assert EVIL[1] in seen.page.locator("#patching table").nth(1).text_content()
        assert seen.page.locator("main img").count() == 0
        assert seen.requests == []
        assert seen.messages == []


def evil_patching(model):
    """A group of positions with a name that would be markup."""
    result = patching_result("layer", model=model)
    return replace(result, labels={**result.labels, "group": (EVIL[0], EVIL[1])})


def evil_disruption(model):
    """A user's own task with a name that would be markup."""
    result = sample.disruption_result(model=model, ks=(4,))
    cells = tuple(replace(c, task=EVIL[1]) if c.task == "gsm8k" else c for c in result.cells)
    contrasts = tuple(replace(c, contextual_tasks=(EVIL[1],)) for c in result.contrasts)
    return replace(result, cells=cells, contrasts=contrasts)


# --- the page as text ---------------------------------------------------------------------------


def test_the_page_is_small_self_contained_and_carries_each_library_once(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 8_000_000
    assert text.count("var CircuitsVis=") == 1
    assert text.count("* plotly.js v") == 1
    assert "default-src 'none'" in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe|script)[^>]+(src|href)=\"(?!data:)", markup)


def test_the_same_results_give_the_same_page():
    assert render_page(bare()) == render_page(bare())


def test_an_absent_section_says_why():
    text = render_page(bare())
    assert text.count("This part is not in this report.") == 4
    assert "The model has no rotary position embeddings." in text
    assert text.count("The run gave no reason.") == 3
    assert "var CircuitsVis=" not in text


def test_results_of_two_models_are_refused():
    with pytest.raises(ValueError, match="must be of one model, got 'other' and 'smollm2"):
        bare("other", scoreboard=sample.scoreboard_result())


def test_token_views_beyond_their_limit_are_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns_module, "MAX_WEIGHTS", 1000)
    with pytest.raises(ValueError, match="at most 1,000 attention weights"):
        build_report(bare(patterns=sample.patterns_result()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.4242, "3.42"),
        (-0.41, "−0.410"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (7.0, "7"),
        (0.00012, "1.20e−04"),
        (-2.4e-19, "0"),
        (math.nan, "undefined"),
        (math.inf, "∞"),
    ],
)
def test_numbers_have_three_significant_digits(value, shown):
    assert number(value) == shown


def test_undefined_intervals_and_p_values_say_so():
    assert interval(sample.estimate(math.nan)) == "undefined"
    assert (p_value(math.nan), p_value(0.0002), p_value(0.0312)) == (
        "not tested",
        "< 0.001",
        "0.031",
    )


# --- summary and tables -------------------------------------------------------------------------


def test_the_summary_holds_the_scoreboard_and_writes_undefined_as_null(page):
    document = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))
    assert set(document) == {"model", "claims", "provenance"}
    assert document["model"] == "smollm2-135m-instruct"
    claims = {claim["id"]: claim for claim in document["claims"]}
    first = sample.scoreboard_result().claims[0]
    assert claims["C1"]["effect"] == first.estimate.effect
    assert claims["C1"]["interval"] == [first.estimate.low, first.estimate.high]
    assert {"id", "statement", "verdict", "effect", "interval", "n", "test"} <= set(claims["C1"])
    assert claims["C8c"]["effect"] is None
    assert claims["C8c"]["interval"] == [None, None]
    assert document["provenance"]["prompts_digest"] == "4f1c" * 16


def test_every_result_has_a_table_with_unrounded_numbers(page):
    names = {file.stem for file in page.parent.glob("*.parquet")}
    assert names == {
        "scoreboard",
        "concentration",
        "concentration_layers",
        "dimensions",
        "control",
        "control_layers",
        "bands",
        "symmetry",
        "symmetry_phases",
        "patterns",
        "disruption",
        "disruption_effects",
        "disruption_controls",
        "conflict",
        "patching",
        "attribution",
        "quantization",
        "protection",
        "quantized",
        "quantized_scores",
        "surgery",
        "twins",
        "twin_abilities",
    }
    assert {entry.name for entry in page.parent.iterdir()} == folder.OWN
    frame = pd.read_parquet(page.parent / "concentration.parquet")
    part = sample.concentration_with_nan().q
    one = frame.query("projection == 'q' and layer == 9 and head == 3")
    assert float(one["max_over_mean"].item()) == float(part.max_over_mean[9, 3])
    undefined = frame.query("projection == 'q' and layer == 4 and head == 2")
    assert undefined["max_over_mean"].isna().all()


def test_the_table_of_dimensions_holds_every_norm_and_mark_at_its_place(page):
    frame = pd.read_parquet(page.parent / "dimensions.parquet")
    result = sample.concentration_with_nan()
    assert len(frame) == sum(part.norms.numel() for part in (result.q, result.k, result.v))
    assert frame["norm"].isna().sum() == sample.D_HEAD
    for projection, layer, head, dimension in (("q", 9, 3, 57), ("k", 29, 2, 26), ("v", 0, 1, 63)):
        one = frame.query(
            "projection == @projection and layer == @layer and head == @head "
            "and dimension == @dimension"
        )
        part = result.of(projection)
        assert one["norm"].item() == float(part.norms[layer, head, dimension])
        assert one["massive"].item() == bool(part.massive[layer, head, dimension])
    assert frame["massive"].any()
    assert not frame["massive"].all()


def test_tables_by_layer_and_of_phases_are_the_results_own(page):
    result, phases = sample.concentration_with_nan(), sample.symmetry_result().phase_frame()
    layers = pd.read_parquet(page.parent / "concentration_layers.parquet")
    pd.testing.assert_frame_equal(layers, result.layer_frame())
    pd.testing.assert_frame_equal(pd.read_parquet(page.parent / "symmetry_phases.parquet"), phases)


def test_the_energy_centre_is_the_median_wavelength_of_the_heads():
    bands = sample.bands_result()
    logs = torch.full((sample.N_LAYERS, sample.N_HEADS), 2.0)
    logs[0] = 5.0
    logs[1, 0] = math.nan
    shown, centres = tables.bands_tables(replace(bands, q=replace(bands.q, centre_of_mass=logs)))
    assert centres.rows[0] == ("q", "100", "269 of 270")
    back = [row for row in shown.rows if row[1] == "k, turned back"]
    assert back[0][2] == number(bands.k_unrotated.low_half_share.effect)
    assert len(back) == 2


def test_the_distance_of_two_clusters_is_shown_by_layer():
    symmetry = sample.symmetry_result()
    apart = torch.full((sample.N_LAYERS, sample.N_HEADS), math.nan)
    apart[3, :3] = torch.tensor([30.0, 32.0, 40.0])
    part = replace(symmetry.q, separation=apart)
    table = tables.symmetry_tables(replace(symmetry, q=part))[1]
    assert table.rows[3][:3] == ("3", "3 of 9", "32")
    assert table.rows[4][:3] == ("4", "0 of 9", "–")


def test_settings_of_the_analyses_stand_in_page_and_summary(page):
    config = json.loads((page.parent / "summary.json").read_text())["provenance"]["config"]
    assert set(config) == {
        "concentration",
        "control",
        "bands",
        "symmetry",
        "disruption",
        "conflict",
        "patching",
    }
    assert config["bands"] == asdict(sample.bands_result().config)
    table = tables.config_table(
        results(bands=replace(sample.bands_result(), config=SEED_7)).configs
    )
    parts = ("concentration", "control", "bands", "symmetry", "disruption", "conflict", "patching")
    assert table.head == ("setting", *parts)
    assert ("seed", "0", "0", "7", "0", "0", "0", "0") in table.rows
    assert ("max_gap", "–", "–", "–", "2", "–", "–", "–") in table.rows
    assert ("chat", "–", "–", "–", "–", "False", "–", "–") in table.rows
    assert "Settings of the analyses" in page.read_text(encoding="utf-8")


# --- disruption ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disrupted():
    return sample.disruption_result()


def shown(estimate):
    return f"{number(estimate.effect)} {interval(estimate)}"


def test_a_report_without_disruption_is_silent_about_it_unless_a_note_speaks():
    assert 'id="disruption"' not in render_page(bare())
    text = render_page(bare(notes=("disruption: The tasks were not to be had.",)))
    assert 'id="disruption"' in text
    assert "The tasks were not to be had." in text


def test_a_disruption_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"must be of one model, got 'smollm2.* and 'other'"):
        bare(disruption=sample.disruption_result(model="other", ks=(4,)))


def test_the_section_asks_shows_and_limits(disrupted):
    section = disruption.disruption_section(disrupted, title="What is lost?")
    assert "arm “paper k=4”" in section.question
    assert [picture.id for picture in section.pictures] == [
        *("task-scores-generation", "task-scores-options"),
        *("dose-generation", "dose-options", "sink"),
    ]
    assert "The other 21 arms are in the tables." in section.pictures[0].reading
    limits = " ".join(section.limits)
    for word in ("small model", "floors", "chosen on the whole", "smallest", "sink"):
        assert word in limits


def test_the_sink_is_drawn_by_the_read_out_that_tells_both_kinds_of_losses(disrupted):
    """Where words were asked of one kind of task alone, options say more."""
    sink = disruption.disruption_section(disrupted, title="").pictures[-1]
    assert "by generated answers" in sink.reading
    untold = sample.estimate(math.nan)
    contrasts = tuple(  # here the options have no loss of parametric tasks
        replace(c, parametric_loss=untold, contextual_loss=untold)
        if c.readout == "generation"
        else c
        for c in disrupted.contrasts
    )
    told = disruption.disruption_section(replace(disrupted, contrasts=contrasts), title="")
    assert "by the most probable option" in told.pictures[-1].reading


def test_one_k_needs_no_dose_curve_and_no_long_tables():
    section = disruption.disruption_section(sample.disruption_result(ks=(4,)), title="")
    assert not any(picture.id.startswith("dose") for picture in section.pictures)
    assert "other" not in section.pictures[0].reading
    assert not any("every arm" in table.caption for table in section.tables)


def test_the_arms_shown_are_those_at_the_verdicts_k_and_presets_without_it(disrupted):
    lone = replace(disrupted.arms[0], preset="authors_qwen2", k=3)
    added = replace(disrupted, arms=(*disrupted.arms, lone))
    names = [arm.name for arm in disruption_tables.shown_arms(added)]
    assert names == [arm.name for arm in disrupted.arms if arm.k == 4] + ["authors_qwen2 k=3"]


def test_the_judged_arm_stands_beside_every_control_task_by_task(disrupted):
    generated, by_options = control_tables.control_tables(disrupted)
    assert "paper k=4 costs each task more" in generated.caption
    assert [row[1] for row in generated.rows].count("intact") == len(generated.rows) / 2
    assert generated.rows[0][1] == "intact"
    assert generated.rows[-1][1] == "random k=4 (2 seeds)"
    assert all(len(row) == len(generated.head) for row in generated.rows)
    assert "logit difference, nats" in by_options.head
    assert all(len(row) == len(by_options.head) for row in by_options.rows)
    older = replace(disrupted, comparisons=())
    assert control_tables.control_tables(older) == []


@pytest.mark.parametrize("readout", ["generation", "options"])
def test_the_table_of_scores_holds_every_cell_task_by_task(disrupted, readout):
    table = disruption_tables.score_table(disrupted, readout)
    cells = [c for c in disrupted.cells if c.readout == readout]
    rows = {(row[1], row[0]): dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert len(rows) == len(table.rows) == len(cells)
    for cell in cells:
        row = rows[cell.arm, cell.task]
        assert row["chance"] == number(cell.floor)
        assert row["kind"] == cell.kind
        if cell.task == "gsm8k" and cell.arm == sample.UNDEFINED_ARM:
            assert row["share right"] == "undefined"
            continue
        assert row["share right"] == shown(cell.score)
        assert row["n"] == "40 examples"
        if cell.arm == INTACT:
            assert {row["change"], row["p"], row["smallest detectable change"]} == {"–"}
            continue
        assert row["change"] == shown(cell.change)
        assert row["p"] == "0.032"
        smallest = "∞" if cell.task == "gsm8k" else "0.325"
        assert row["smallest detectable change"] == smallest
        lost = "at chance before" if cell.task == "cities" else number(cell.lost_share)
        assert row["lost share"] == lost
        if readout == "generation":
            assert row["no answer found"] == "0.075"
            legacy = "–" if cell.task.startswith("pairs") else shown(cell.legacy_score)
            assert row["score, published grading"] == legacy
            assert row["different 2-grams"] == shown(cell.distinct_2)
        else:
            assert row["right option minus the best other, nats"] == shown(cell.logit_diff)
    tasks = [row[0] for row in table.rows]
    assert tasks == sorted(tasks, key=list(dict.fromkeys(c.task for c in cells)).index)
    assert next(row[1] for row in table.rows if row[0] == "cities") == INTACT


def test_the_table_of_neutral_text_holds_the_estimates_of_every_arm(disrupted):
    names = [arm.name for arm in disrupted.arms]
    table = disruption_tables.effects_table(disrupted, names)
    assert [row[0] for row in table.rows] == [INTACT, *names]
    assert table.folded
    for row in table.rows:
        of, intact = disrupted.effects.of(row[0]), row[0] == INTACT
        assert row[1] == ("–" if intact else "1.90" if "effect_matched" in row[0] else "1")
        assert row[2] == shown(of["sink_mass"])
        assert row[3] == ("–" if intact else shown(of["attention_kl"]))
        if row[0] == sample.UNDEFINED_ARM:
            assert row[4:7] == ("undefined", "undefined", "not tested")
            continue
        assert row[4] == shown(of["cross_entropy"])
        assert row[5] == ("–" if intact else shown(of["added_cross_entropy"]))
        assert row[6] == ("–" if intact else p_value(of["added_cross_entropy"].p_value))
        assert row[7] == "4 prompts"


def test_the_table_of_losses_holds_both_kinds_their_difference_and_the_control(disrupted):
    lost = {(c.arm, c.readout): c for c in disrupted.contrasts}
    names = ["paper k=4", "effect_matched k=4 seed=0"]
    table = disruption_tables.contrast_table(disrupted, names, "generation")
    assert not table.folded
    first = lost["paper k=4", "generation"]
    assert table.rows[0] == (
        "paper k=4",
        *map(shown, (first.contextual_loss, first.parametric_loss, first.contrast)),
        "0.214",
        "effect_matched k=4 seed=0",
        shown(first.beyond_control),
        "0.214",
        shown(disrupted.effects.added_beyond(names[0], names[1:])),
        "80 examples",
    )
    assert table.rows[1][5:9] == ("–", "–", "–", "–")
    undefined = disruption_tables.contrast_table(disrupted, names, "options").rows[0]
    assert undefined[2:5] == ("undefined", "undefined", "not tested")


def test_controls_over_their_seeds_stand_beside_the_treatment(disrupted):
    table = disruption_tables.seeds_table(disrupted)
    spread = disrupted.seed_spreads[0]
    lost = spread.contextual_loss
    first = table.rows[0]
    assert first[:3] == ("random k=4", "paper k=4", "by generated answers")
    drawn = f"{number(lost.median)} [{number(min(lost.drawn))}, {number(max(lost.drawn))}]"
    assert first[3:6] == (drawn, number(lost.treated), p_value(lost.p_value))
    assert first[-1] == "2 seeds"
    (undefined,) = [
        row
        for row in table.rows
        if row[:3] == ("random k=4", "paper k=4", "by the most probable option")
    ]
    assert undefined[6:12] == ("undefined", "undefined", "not tested") * 2


def test_the_tasks_behind_the_losses_and_what_each_preset_does_are_named(disrupted):
    counted = disruption_tables.counted_table(disrupted)
    assert counted.rows == (
        ("by generated answers", "passkey_128_6, pairs_open_book", "pairs_closed_book"),
        ("by the most probable option", "passkey_128_6, pairs_open_book", "none"),
    )
    presets = {row[0]: row[1:] for row in disruption_tables.presets_table(disrupted).rows}
    assert list(presets) == list(sample.DAMAGE)
    assert presets["paper"][:2] == ("treatment", "1, 2, 4, 8")
    assert presets["smallest"][0] == "control"
    assert presets["smallest"][2] == disrupted.arms[8].summary


def test_published_scores_stand_below_measured_ones_and_are_named_so(disrupted):
    table = published.published_table(disrupted)
    assert table is not None
    assert table.folded
    rows = [row for row in table.rows if row[0] == "passkey_128_6"]
    own = {c.arm: c for c in disrupted.cells if c.task == rows[0][0] and c.readout == "generation"}
    scores = [own[arm].score for arm in (INTACT, "smallest k=4", "paper k=4")]
    values = [[float(end) for end in re.findall(r"[\d.]+", cell)] for cell in rows[0][3:6]]
    assert values == [
        pytest.approx([100 * s.effect, 100 * s.low, 100 * s.high], abs=0.06) for s in scores
    ]
    assert rows[0][6] == "paper k=4 against smallest k=4"
    assert [row[2] for row in rows] == [
        *("measured here", "measured here, published grading"),
        *["published for another model"] * 3,
    ]
    assert [row[1] for row in rows[2:]] == [s.model for s in published_for("passkey_128_6")]
    gemma = next(row for row in table.rows if row[:2] == ("gsm8k", "Gemma2-9B"))
    assert gemma[3:] == ("81.3", "81.6", "15.1", "authors_gemma2")
    assert {row[0] for row in table.rows} == {"passkey_128_6", "gsm8k", "cities"}
    pairs = tuple(c for c in disrupted.cells if c.task.startswith("pairs"))
    assert published.published_table(replace(disrupted, cells=pairs)) is None


def test_without_the_papers_own_edit_its_column_is_empty(disrupted):
    arms = tuple(arm for arm in disrupted.arms if arm.preset == "smallest")
    table = published.published_table(replace(disrupted, arms=arms))
    assert table is not None
    assert table.rows[0][4] != "–"
    assert table.rows[0][5:] == ("–", "smallest k=4")


def test_the_parquet_tables_of_the_disruption_are_the_results_own(page, disrupted):
    for name, frame in (
        ("disruption", disrupted.to_frame()),
        ("disruption_effects", disrupted.effects_frame()),
        ("disruption_controls", disrupted.comparisons_frame()),
    ):
        pd.testing.assert_frame_equal(pd.read_parquet(page.parent / f"{name}.parquet"), frame)
    config = json.loads((page.parent / "summary.json").read_text())["provenance"]["config"]
    assert config["disruption"]["n_neutral"] == DisruptionConfig().n_neutral
    assert config["disruption"]["readouts"] == ["generation", "options"]


# --- the folder ---------------------------------------------------------------------------------


def test_a_second_run_on_the_same_model_replaces_the_report_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    build_report(bare(control=sample.control_result()), out)
    assert (out / "control.parquet").exists()
    build_report(bare(), out)
    assert not (out / "control.parquet").exists()
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_another_models_report_is_kept_unless_told_otherwise(tmp_path):
    build_report(bare("first"), tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"got a report on 'first' at .*overwrite=True"):
        build_report(bare("second"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["model"] == "first"
    build_report(bare("second"), tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["model"] == "second"


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_never_deleted(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "figures").mkdir()
    if overwrite:
        build_report(bare(), tmp_path, overwrite=True)
        assert (tmp_path / "report.html").exists()
    else:
        with pytest.raises(FileExistsError, match=r"other files \(figures, thesis.tex\)"):
            build_report(bare(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "figures").is_dir()


def test_a_foreign_file_beside_a_report_is_refused_and_kept(tmp_path):
    build_report(bare(), tmp_path / "out")
    (tmp_path / "out" / "remarks.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"other files \(remarks.md\)"):
        build_report(bare(), tmp_path / "out")
    assert (tmp_path / "out" / "remarks.md").read_text() == "mine"


def test_a_foreign_parquet_file_is_refused_and_kept_whatever_its_name(tmp_path):
    out = tmp_path / "out"
    build_report(bare(), out)
    (out / "dataset.parquet").write_bytes(b"months of work")
    with pytest.raises(FileExistsError, match=r"other files \(dataset.parquet\)"):
        build_report(bare(), out)
    assert (out / "dataset.parquet").read_bytes() == b"months of work"
    build_report(bare("second"), out, overwrite=True)
    assert (out / "dataset.parquet").read_bytes() == b"months of work"
    assert json.loads((out / "summary.json").read_text())["model"] == "second"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileExistsError, match="must be a folder or new, got the file"):
        build_report(bare(), tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("moment", ["while filling", "while swapping"])
def test_an_interrupt_leaves_the_old_report(tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    build_report(bare(), out)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def interrupted(*_):
        raise KeyboardInterrupt

    if moment == "while filling":
        monkeypatch.setattr(report_module, "frames", interrupted)
    else:
        real = folder.os.replace

        def replace_or_stop(source, target):
            if ".new-" in str(source):
                raise KeyboardInterrupt
            real(source, target)

        monkeypatch.setattr(folder.os, "replace", replace_or_stop)
    with pytest.raises(KeyboardInterrupt):
        build_report(bare(notes=("new",)), out)
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


_CONTRAST = """() => {
  const rgb = text => text.match(/[0-9.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => { for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const node of document.querySelectorAll(
      'h1, h2, h3, p, dt, dd, li, th, td, a, span, figcaption, strong, summary, label, output')) {
    if (!node.innerText || !node.innerText.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push({ text: node.innerText.slice(0, 30), ratio });
  }
  return found;
}"""

_LEGEND_OVER_PLOT = """() => Array.from(document.querySelectorAll('#disruption .canvas'))
  .filter(box => {
    const legend = box.querySelector('.legend').getBoundingClientRect();
    return Array.from(box.querySelectorAll('.bglayer, .xtitle')).some(node => {
      const rect = node.getBoundingClientRect();
      return rect.height > 0 && rect.top < legend.bottom && legend.top < rect.bottom;
    });
  }).map(box => box.getAttribute('aria-label').slice(0, 40))"""
