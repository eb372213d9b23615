import json
import re
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
import sample_results as sample
import torch

from mi_massive import viz
from mi_massive.presets import PRESETS
from mi_massive.scores import INTACT
from mi_massive.viz import patterns as patterns_module
from mi_massive.viz import save as save_module
from mi_massive.viz.arms import STYLES
from mi_massive.viz.base import DARK, over_head_mean
from mi_massive.viz.patterns import (
    circuitsvis_bundle,
    display_token,
    json_for_html,
    patterns_data,
    script_for_html,
)

N_TRACES_PER_PANEL = 5
CELLS, FLAGS, UNDEFINED, BEYOND, MASSIVE = range(N_TRACES_PER_PANEL)


@pytest.fixture(scope="module")
def result():
    return sample.concentration_result()


@pytest.fixture(scope="module")
def with_nan():
    return sample.concentration_with_nan()


def planted(layer, head, dimension, value):
    q = torch.ones(sample.N_LAYERS, sample.N_HEADS, sample.D_HEAD)
    q[layer, head, dimension] = value
    return sample.concentration_result(q=q)


def legend(figure):
    return {trace.name for trace in figure.data if trace.showlegend and trace.name}


def trace(figure, panel, kind):
    return figure.data[panel * N_TRACES_PER_PANEL + kind]


# --- heads --------------------------------------------------------------------------------------


def test_heads_show_a_planted_dimension_at_its_head_and_column_in_its_layer_only():
    figure = viz.plot_heads(planted(3, 2, 17, 33.0), layer=3)
    mean = (sample.D_HEAD - 1 + 33.0) / sample.D_HEAD
    cells = trace(figure, 0, CELLS).z
    assert cells[2][17] == pytest.approx(33.0 / mean, rel=5e-3)
    assert max(max(row) for at, row in enumerate(cells) if at != 2) == pytest.approx(1.0)
    assert list(trace(figure, 0, MASSIVE).x), list(trace(figure, 0, MASSIVE).y) == ([17], ["2"])
    other = next(frame for frame in figure.frames if frame.name == "4")
    assert max(max(row) for row in other.data[CELLS].z) == pytest.approx(1.0)


def test_head_multiples_equal_the_norm_over_the_plain_mean(result):
    for part in (result.q, result.k, result.v):
        torch.testing.assert_close(
            over_head_mean(part), part.norms / part.norms.mean(dim=-1, keepdim=True)
        )


def test_every_layer_has_a_frame_that_changes_every_trace(result):
    figure = viz.plot_heads(result)
    assert [frame.name for frame in figure.frames] == [str(block) for block in result.layers]
    assert all(len(frame.data) == len(figure.data) for frame in figure.frames)
    assert [step.label for step in figure.layout.sliders[0].steps] == list(map(str, result.layers))
    shown = [frame.data[CELLS].z[0][0] for frame in figure.frames]
    assert len(set(shown)) > sample.N_LAYERS / 2


def test_keys_and_values_keep_their_own_number_of_heads(result):
    figure = viz.plot_heads(result)
    assert [len(trace(figure, panel, CELLS).z) for panel in range(3)] == [9, 3, 3]


def test_undefined_cells_are_grey_crossed_and_counted(with_nan):
    figure = viz.plot_heads(with_nan, layer=4)
    assert set(trace(figure, 0, CELLS).z[2]) == {None}
    assert set(trace(figure, 0, FLAGS).z[2]) == {0.0}
    assert set(trace(figure, 0, UNDEFINED).y) == {"2"}
    assert len(trace(figure, 0, UNDEFINED).x) == sample.D_HEAD
    assert "undefined: 64 of 28,800 cells" in legend(figure)


def test_cells_beyond_the_range_are_marked_with_their_true_value_and_counted(result):
    figure = viz.plot_heads(result, layer=29, color_max=6.0)
    values = over_head_mean(result.q)[29]
    beyond = (values > 6).nonzero().tolist()
    assert beyond
    marks = trace(figure, 0, BEYOND)
    assert sorted(zip(marks.y, marks.x, strict=True)) == sorted((str(h), d) for h, d in beyond)
    head, dimension = beyond[0]
    assert trace(figure, 0, CELLS).z[head][dimension] is None
    assert trace(figure, 0, FLAGS).z[head][dimension] == 1.0
    shown = trace(figure, 0, FLAGS).text[head][dimension]
    assert float(shown.split(" ")[0]) == pytest.approx(float(values[head, dimension]), rel=5e-3)
    n = sum(int((over_head_mean(part) > 6).sum()) for part in (result.q, result.k, result.v))
    assert f"beyond the range (> 6): {n:,} cells" in legend(figure)


def test_nothing_is_beyond_the_default_range_and_the_range_is_written_at_the_bar(result):
    figure = viz.plot_heads(result)
    axis = figure.layout.coloraxis
    highest = max(float(over_head_mean(part).max()) for part in (result.q, result.k, result.v))
    assert (axis.cmin, axis.cmax) == (0, pytest.approx(highest))
    assert (axis.colorbar.tickvals[0], axis.colorbar.tickvals[-1]) == (0, axis.cmax)
    assert not any("beyond" in name for name in legend(figure))


def test_a_model_without_one_finite_norm_still_gives_a_figure_of_undefined_cells():
    nothing = torch.full((2, 3, 8), torch.nan)
    figure = viz.plot_heads(sample.concentration_result(q=nothing, k=nothing, v=nothing))
    assert figure.layout.coloraxis.cmax == 1
    assert "undefined: 144 of 144 cells" in legend(figure)


def test_a_layer_that_is_not_there_is_refused(result):
    with pytest.raises(ValueError, match=r"layer must be one of \[0, 1, .*block indices\), got 30"):
        viz.plot_heads(result, layer=30)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_colour_range_without_width_is_refused(result, value):
    with pytest.raises(ValueError, match="color_max must be finite and positive"):
        viz.plot_layers(result, color_max=value)


# --- layers -------------------------------------------------------------------------------------


def test_layers_show_the_largest_head_or_the_mean_over_heads():
    result = planted(5, 1, 40, 33.0)
    peak = over_head_mean(result.q)[5, 1, 40].item()
    largest = viz.plot_layers(result, over_heads="max")
    mean = viz.plot_layers(result, over_heads="mean")
    expected = over_head_mean(result.q)[5, :, 40].mean().item()
    assert trace(largest, 0, CELLS).z[5][40] == pytest.approx(peak, rel=5e-3)
    assert trace(mean, 0, CELLS).z[5][40] == pytest.approx(expected, rel=5e-3)


def test_one_undefined_head_makes_its_layer_undefined_not_smaller(with_nan):
    figure = viz.plot_layers(with_nan, over_heads="mean")
    assert set(trace(figure, 0, UNDEFINED).y) == {"4"}
    assert "undefined: 64 of 5,760 cells" in legend(figure)


# --- curve --------------------------------------------------------------------------------------


def test_the_curve_and_its_interval_are_those_of_the_result(result):
    figure = viz.plot_curve(result)
    high, low, line = figure.data[:3]
    assert list(line.y) == pytest.approx(result.q.curve.tolist(), rel=1e-3)
    assert list(high.y) == pytest.approx(result.q.curve_high.tolist(), rel=1e-3)
    assert list(low.y) == pytest.approx(result.q.curve_low.tolist(), rel=1e-3)
    assert low.fill == "tonexty"


def test_an_undefined_layer_is_a_gap_in_the_curve_and_counted(with_nan):
    line = viz.plot_curve(with_nan).data[5]
    assert line.y[7] is None
    assert line.name == "Keys (undefined layers: 1)"


def test_the_control_stands_beside_the_model_on_the_same_scale(result):
    figure = viz.plot_curve(result, control=sample.control_result())
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    assert [a.text for a in figure.layout.annotations[:2]] == [
        "<b>smollm2-135m-instruct</b>",
        "<b>Control: all-minilm-l6-v2</b>",
    ]
    assert list(figure.data[11].x) == list(range(6))


def test_the_first_layer_is_marked_only_where_there_is_one(result):
    assert viz.plot_curve(result).layout.shapes[0].x0 == 0
    assert viz.plot_curve(sample.control_result()).layout.shapes == ()


def test_a_model_name_is_shown_as_text_and_not_as_markup():
    result = sample.concentration_result(model="<a href='https://x.test'>&</a>")
    title = viz.plot_curve(result).layout.annotations[0].text
    assert title == "<b>&lt;a href='https://x.test'&gt;&amp;&lt;/a&gt;</b>"


# --- wavelengths --------------------------------------------------------------------------------


def test_energy_planted_in_one_pair_peaks_at_its_wavelength():
    result = sample.bands_result()
    share = torch.full_like(result.q.energy_share, 0.5 / (sample.N_PAIRS - 1))
    share[..., 20] = 0.5
    figure = viz.plot_wavelengths(replace(result, q=replace(result.q, energy_share=share)))
    line = figure.data[0]
    at = max(range(sample.N_PAIRS), key=lambda pair: line.y[pair])
    assert line.y[at] == 0.5
    assert line.x[at] == pytest.approx(sample.WAVELENGTHS[20].item(), rel=1e-3)


def test_the_training_context_is_marked_in_every_panel_or_not_at_all():
    result = sample.bands_result()
    assert [s.x0 for s in viz.plot_wavelengths(result).layout.shapes] == [8192] * 3
    assert viz.plot_wavelengths(replace(result, training_context=None)).layout.shapes == ()


def test_layers_of_different_wavelengths_are_never_averaged_together():
    result = sample.bands_result()
    waves = result.wavelengths.clone()
    waves[::6] *= 100
    waves[::6, 30:] = torch.nan
    names = [t.name for t in viz.plot_wavelengths(replace(result, wavelengths=waves)).data[:3]]
    assert not any("mean of all layers" in name for name in names)
    assert [name.split(",")[0] for name in names[:2]] == ["5 layers", "25 layers"]


def test_undefined_heads_and_resting_pairs_are_counted_in_the_legend():
    result = sample.bands_result()
    share, waves = result.k.energy_share.clone(), result.wavelengths.clone()
    share[3, 1] = torch.nan
    waves[:, -1] = torch.inf
    changed = replace(result, k=replace(result.k, energy_share=share), wavelengths=waves)
    name = viz.plot_wavelengths(changed).data[0].name
    assert name == "mean of all layers (left out: 1 undefined heads, 1 pairs that never turn)"


# --- halves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "dimensions"), [("half_split", (5, 37)), ("interleaved", (10, 11))]
)
def test_the_two_members_of_a_planted_pair_peak_at_the_same_place(layout, dimensions):
    q = torch.ones(sample.N_LAYERS, sample.N_HEADS, sample.D_HEAD)
    for dimension in dimensions:
        q[2, :, dimension] = 20.0
    symmetry = replace(sample.symmetry_result(), layout=layout)
    figure = viz.plot_halves(
        symmetry, sample.concentration_result(q=q), n_pairs=sample.N_PAIRS, layer=2
    )
    first, second = figure.data[1].y, figure.data[3].y
    assert max(range(32), key=lambda pair: first[pair]) == 5
    assert list(first) == list(second)


def test_halves_leave_dimensions_out_that_do_not_rotate():
    q = torch.ones(sample.N_LAYERS, sample.N_HEADS, sample.D_HEAD)
    q[..., 60] = 20.0
    figure = viz.plot_halves(sample.symmetry_result(), sample.concentration_result(q=q), n_pairs=16)
    assert len(figure.data[1].y) == 16
    assert max(figure.data[1].y) < 1


def test_halves_of_two_models_or_too_many_pairs_are_refused(result):
    symmetry = sample.symmetry_result()
    with pytest.raises(ValueError, match=r"must be of the same model, got 'smollm2.*' and 'other'"):
        viz.plot_halves(symmetry, sample.concentration_result(model="other"), n_pairs=32)
    with pytest.raises(ValueError, match="n_pairs must be between 1 and 32"):
        viz.plot_halves(symmetry, result, n_pairs=33)


# --- patterns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", ["</script>", "<!--", "<img src=x onerror=alert(1)>", "&lt;", "&#60;", "a\u2028b", ""]
)
def test_no_token_can_become_markup(token):
    shown = display_token(token)
    assert not re.search(r"<[a-zA-Z/!?]|&[a-zA-Z0-9#]", shown)
    assert shown.replace("\u2060", "") == (token or "∅")
    assert not re.search(r"[<>&\u2028\u2029]", json_for_html([token]))
    assert json.loads(json_for_html([token])) == [token]


def test_a_script_cannot_end_its_element_early():
    text = script_for_html('a = "</script><!--";\r\nb')
    assert "</script" not in text
    assert "<!--" not in text
    assert "\r" not in text


def test_views_carry_one_bundle_rounded_values_and_no_address():
    html = viz.view_patterns(sample.patterns_result())
    assert html.count("var CircuitsVis=") == 1
    assert "unpkg" not in html
    assert "sourceMappingURL" not in html
    assert len(html) < len(circuitsvis_bundle()) + 60_000
    data = patterns_data(sample.patterns_result())
    weights = [w for p in data["patterns"] for row in p["weights"] for w in row]
    assert all(float(f"{w:.3g}") == w for w in weights)


def test_a_head_seen_in_q_and_in_k_gives_two_strips_and_one_pattern():
    data = patterns_data(sample.patterns_result())
    assert [p["label"] for p in data["patterns"]] == ["L9H3", "L20H6"]
    assert data["strips"][1]["label"] == "L9H3, k dimension 25"
    limit = data["strips"][0]["limit"]
    assert limit == pytest.approx(max(map(abs, data["strips"][0]["values"])))


def test_the_upper_triangle_is_masked_only_for_causal_attention():
    result = sample.patterns_result()
    even = torch.full((len(result.tokens),) * 2, 1 / len(result.tokens))
    both = replace(result, heads=tuple(replace(view, pattern=even) for view in result.heads))
    assert patterns_data(result)["causal"] is True
    assert patterns_data(both)["causal"] is False


def test_too_many_weights_undefined_values_and_no_head_are_refused(monkeypatch):
    result = sample.patterns_result()
    monkeypatch.setattr(patterns_module, "MAX_WEIGHTS", 1000)
    expected = (
        r"at most 1,000 attention weights, got 2,178 \(2 heads x 33 x 33 tokens\); show fewer"
    )
    with pytest.raises(ValueError, match=expected):
        viz.view_patterns(result)
    monkeypatch.undo()
    broken = result.heads[0].activations.clone()
    broken[3] = torch.nan
    with pytest.raises(ValueError, match="activations of L9H3, q dimension 57 must be finite"):
        viz.view_patterns(replace(result, heads=(replace(result.heads[0], activations=broken),)))
    with pytest.raises(ValueError, match="heads must not be empty"):
        viz.view_patterns(replace(result, heads=()))


def test_two_views_in_one_notebook_are_both_drawn_without_a_request(tmp_path):
    html = "<!DOCTYPE html><meta charset=utf-8>" + 2 * viz.view_patterns(sample.patterns_result())
    file = tmp_path / "notebook.html"
    file.write_text(html, encoding="utf-8")
    with chromium.chromium() as browser, chromium.visit(browser, file) as seen:
        seen.page.wait_for_selector(".mi-patterns[data-rendered] >> nth=1")
        seen.page.wait_for_selector(".mi-patterns canvas >> nth=1")
        assert seen.page.locator(".mi-strip .colored-tokens").count() == 8
        assert seen.requests == []
        assert seen.messages == []


# --- disruption ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disrupted():
    return sample.disruption_result()


def of_panel(figure, panel, **wanted):
    """Traces of one panel whose attributes have these values."""
    axis = f"x{panel + 1}" if panel else "x"
    return [
        t
        for t in figure.data
        if t.xaxis == axis and all(getattr(t, name) == value for name, value in wanted.items())
    ]


def cells_of(result, readout="generation"):
    return {(c.arm, c.task): c for c in result.cells if c.readout == readout}


def bars(trace, axis="x"):
    """Lower and upper ends of a trace's error bars."""
    middle, error = getattr(trace, axis), getattr(trace, f"error_{axis}")
    low = [at - down for at, down in zip(middle, error.arrayminus, strict=True)]
    return low, [at + up for at, up in zip(middle, error.array, strict=True)]


def test_every_preset_has_a_look_of_its_own_that_a_dark_page_repaints():
    assert set(STYLES) == {INTACT, *PRESETS}
    assert len({(look.color, look.symbol) for look in STYLES.values()}) == len(STYLES)
    assert len({look.symbol for look in STYLES.values()}) == len(STYLES)
    assert {look.color for look in STYLES.values()} <= set(DARK)


def test_task_scores_stand_at_the_score_with_its_interval_tasks_of_a_kind_together(disrupted):
    figure = viz.plot_task_scores(disrupted, readout="generation")
    assert [a.text for a in figure.layout.annotations] == [
        *("<b>Contextual tasks</b>", "<b>Parametric tasks</b>"),
        *("passkey_128_6", "pairs_open_book", "gsm8k", "pairs_closed_book", "cities · at chance"),
    ]
    cells = cells_of(disrupted)
    for panel, tasks in enumerate((("passkey_128_6", "pairs_open_book", "gsm8k"), sample.MEMORY)):
        (dots,) = of_panel(figure, panel, name="paper k=8")
        scores = [cells["paper k=8", task].score for task in tasks]
        assert list(dots.x) == pytest.approx([score.effect for score in scores], rel=1e-3)
        low, high = bars(dots)
        assert low == pytest.approx([score.low for score in scores], abs=1e-3)
        assert high == pytest.approx([score.high for score in scores], abs=1e-3)
        assert list(dots.y) == sorted(dots.y)


def test_the_intact_model_is_the_first_row_of_every_task_and_chance_runs_through_all(disrupted):
    figure = viz.plot_task_scores(disrupted, readout="options")
    for panel, floors in ((0, [0.25, 0.5]), (1, [0.5, 0.5])):
        (chance,) = of_panel(figure, panel, name="chance")
        (first,) = of_panel(figure, panel, name=INTACT)
        others = [t for t in of_panel(figure, panel, mode="markers") if t.name != INTACT]
        assert list(chance.x[::3]) == list(chance.x[1::3]) == floors
        for task in range(2):
            top, bottom = chance.y[3 * task : 3 * task + 2]
            rows = [y for t in others for y in t.y if y is not None and top < y < bottom]
            assert len(rows) == len(disrupted.arms)
            assert top < first.y[task] < min(rows)
            assert max(rows) < bottom
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1] == 0


def test_seeds_of_a_preset_share_a_row_and_other_arms_do_not(disrupted):
    figure = viz.plot_task_scores(disrupted, readout="generation")
    (seeds,) = of_panel(figure, 0, name="random k=4 (2 seeds)")
    assert len(seeds.y) == 2 * 3
    assert len(set(seeds.y)) == 3
    (other,) = of_panel(figure, 0, name="smallest k=4")
    assert set(other.y).isdisjoint(seeds.y)


def test_an_undefined_score_is_crossed_and_counted_and_never_a_dot(disrupted):
    figure = viz.plot_task_scores(disrupted, readout="generation")
    (dots,) = of_panel(figure, 0, name=sample.UNDEFINED_ARM)
    assert len(dots.x) == 2
    (cross,) = of_panel(figure, 0, name="undefined: 1 point")
    assert cross.hovertext == (f"gsm8k, {sample.UNDEFINED_ARM}<br>undefined",)
    (left,) = of_panel(figure, 0, name="norm_matched k=4")
    gap = left.y[2] - left.y[1]
    assert cross.y[0] == pytest.approx(dots.y[1] + gap)
    assert "undefined: 1 point" in legend(figure)


def test_only_the_arms_asked_for_are_shown_and_unknown_ones_refused(disrupted):
    figure = viz.plot_task_scores(disrupted, readout="options", arms=["smallest k=2"])
    assert legend(figure) == {INTACT, "smallest k=2", "chance"}
    assert not any(name.startswith("undefined") for name in legend(figure))
    with pytest.raises(ValueError, match=r"arms must be among paper k=4, .*got 'paper k=3'"):
        viz.plot_task_scores(disrupted, readout="options", arms=["paper k=3"])


@pytest.mark.parametrize("plot", [viz.plot_task_scores, viz.plot_dose, viz.plot_sink])
def test_a_read_out_that_was_not_run_is_refused(disrupted, plot):
    few = replace(disrupted, cells=tuple(c for c in disrupted.cells if c.readout == "options"))
    with pytest.raises(ValueError, match=r"readout must be one of options, got 'generation'"):
        plot(few, readout="generation")


def test_a_users_task_name_is_shown_as_text_and_not_as_markup(disrupted):
    name = "<a href='https://x.test'>&</a>"
    cells = tuple(replace(c, task=name) if c.task == "cities" else c for c in disrupted.cells)
    figure = viz.plot_task_scores(replace(disrupted, cells=cells), readout="generation")
    shown = "&lt;a href='https://x.test'&gt;&amp;&lt;/a&gt;"
    assert figure.layout.annotations[-1].text == f"{shown} · at chance"
    hovered = [text for t in figure.data for text in t.hovertext or () if "x.test" in text]
    assert len(hovered) == 1 + len(disrupted.arms)
    assert not any("<a" in text for text in hovered)


def test_the_dose_curve_of_a_preset_holds_its_losses_in_the_order_of_k(disrupted):
    figure = viz.plot_dose(disrupted, readout="generation")
    lost = {c.arm: c for c in disrupted.contrasts if c.readout == "generation"}
    arms = [f"paper k={k}" for k in sample.KS]
    added = [disrupted.effects.of(arm)["added_cross_entropy"] for arm in arms]
    for panel, values in enumerate(
        (
            [lost[arm].contextual_loss for arm in arms],
            [lost[arm].parametric_loss for arm in arms],
            added,
        )
    ):
        (line,) = of_panel(figure, panel, name="paper")
        assert list(line.y) == pytest.approx([v.effect for v in values], abs=2e-3)
        low, high = bars(line, "y")
        assert low == pytest.approx([v.low for v in values], abs=2e-3)
        assert high == pytest.approx([v.high for v in values], abs=2e-3)
        assert list(line.x) == pytest.approx(sample.KS, rel=0.1)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.ticktext == ("1", "2", "4", "8")


def test_seeds_are_averaged_and_their_range_is_the_bar(disrupted):
    figure = viz.plot_dose(disrupted, readout="generation")
    (line,) = of_panel(figure, 0, name="random (mean of 2 seeds)")
    at = sample.KS.index(8)
    seeds = [c.contextual_loss.effect for c in disrupted.contrasts if "random k=8" in c.arm][:2]
    assert line.y[at] == pytest.approx(sum(seeds) / 2, rel=1e-3)
    low, high = bars(line, "y")
    assert (low[at], high[at]) == (
        pytest.approx(min(seeds), abs=1e-3),
        pytest.approx(max(seeds), abs=1e-3),
    )
    assert line.hovertext[at].endswith("mean and range of 2 of 2 seeds")


@pytest.mark.parametrize("readout", ["generation", "options"])
def test_the_axes_of_the_dose_curves_hold_every_bar_and_losses_share_one_scale(disrupted, readout):
    figure = viz.plot_dose(disrupted, readout=readout)
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    for panel, axis in enumerate(("yaxis", "yaxis2", "yaxis3")):
        bottom, top = figure.layout[axis].range
        lines = of_panel(figure, panel, mode="lines+markers")
        assert len(lines) == len(sample.DAMAGE)
        for line in lines:
            defined = [at for at, value in enumerate(line.y) if value is not None]
            for at in defined:
                assert bottom < line.y[at] - line.error_y.arrayminus[at]
                assert line.y[at] + line.error_y.array[at] < top


def test_an_undefined_dose_is_a_gap_with_a_cross_and_counted(disrupted):
    figure = viz.plot_dose(disrupted, readout="generation")
    (line,) = of_panel(figure, 2, name="norm_matched")
    assert line.y[-1] is None
    assert None not in line.y[:-1]
    (cross,) = of_panel(figure, 2, name="undefined: 1 point")
    assert cross.x == (pytest.approx(line.x[-1]),)
    assert figure.layout.yaxis3.range[0] < cross.y[0] < figure.layout.yaxis3.range[1]
    assert "undefined: 1 point" in legend(figure)


def test_a_panel_without_a_task_above_chance_says_so(disrupted):
    figure = viz.plot_dose(disrupted, readout="options")
    words = [a for a in figure.layout.annotations if a.text.startswith("no task above chance")]
    assert [a.xref for a in words] == ["x2 domain"]
    assert all(set(t.y) == {None} for t in of_panel(figure, 1))
    assert "undefined: 1 point" in legend(figure)


def test_one_k_alone_still_gives_a_figure():
    one = viz.plot_dose(sample.disruption_result(ks=(4,)), readout="generation")
    assert one.layout.xaxis.ticktext == ("4",)


def test_every_arm_stands_at_its_sink_and_damage_with_its_k(disrupted):
    figure = viz.plot_sink(disrupted, readout="generation")
    lost = {c.arm: c for c in disrupted.contrasts if c.readout == "generation"}
    arms = [arm.name for arm in disrupted.arms if arm.preset == "sink_preserving"]
    measured = [disrupted.effects.of(arm) for arm in arms]
    (signs,) = of_panel(figure, 0, name="sink_preserving")
    assert signs.text == tuple(str(k) for k in sample.RUN_ORDER)
    assert list(signs.x) == pytest.approx([m["sink_mass"].effect for m in measured], rel=1e-3)
    assert list(signs.y) == pytest.approx(
        [m["added_cross_entropy"].effect for m in measured], abs=2e-3
    )
    _, full, hollow = of_panel(figure, 1, legendgroup="sink_preserving")
    assert list(full.y) == pytest.approx([lost[a].contextual_loss.effect for a in arms], abs=1e-3)
    assert list(hollow.y) == pytest.approx([lost[a].parametric_loss.effect for a in arms], abs=1e-3)
    assert (full.marker.symbol, hollow.marker.symbol) == ("triangle-up", "triangle-up-open")
    upright = [line.x0 for line in figure.layout.shapes if line.x0 == line.x1]
    assert upright == [pytest.approx(sample.INTACT_SINK)] * 2


def test_an_arm_without_a_defined_damage_is_crossed_at_its_sink_and_counted(disrupted):
    figure = viz.plot_sink(disrupted, readout="generation")
    (signs,) = of_panel(figure, 0, name="norm_matched")
    assert "8" not in signs.text
    (cross,) = of_panel(figure, 0, name="undefined: 1 point")
    assert cross.hovertext == (f"{sample.UNDEFINED_ARM}<br>added cross-entropy: undefined",)
    assert cross.x == (pytest.approx(sample.DAMAGE["norm_matched"][2]),)
    assert "undefined: 1 point" in legend(figure)


def test_an_undefined_sink_is_neither_drawn_nor_marked(disrupted):
    nothing = torch.full_like(disrupted.effects.sink_mass, torch.nan)
    broken = replace(disrupted, effects=replace(disrupted.effects, sink_mass=nothing))
    figure = viz.plot_sink(broken, readout="generation")
    assert all(set(t.x) == {None} for t in figure.data if "undefined" not in (t.name or ""))
    assert f"undefined: {3 * len(disrupted.arms)} points" in legend(figure)
    assert json_for_html(figure.to_dict()["data"])


# --- saving -------------------------------------------------------------------------------------


@pytest.fixture
def browser_for_kaleido():
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if viz.find_browser() is None:
        pytest.skip("no Chromium or Chrome found: apt-get install chromium")


def test_figures_are_saved_as_png_and_svg_without_their_slider(
    result, tmp_path: Path, browser_for_kaleido
):
    figure = viz.plot_heads(result)
    png = viz.save_figure(figure, tmp_path / "new" / "heads.png", scale=1.0)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    svg = viz.save_figure(figure, tmp_path / "heads.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "Queries, 9 heads" in svg
    assert "slider-" not in svg
    assert len(figure.layout.sliders) == 1


def test_figures_of_the_disruption_are_saved_as_png_and_svg(
    disrupted, tmp_path: Path, browser_for_kaleido
):
    figure = viz.plot_task_scores(disrupted, readout="options", arms=["paper k=4"])
    svg = viz.save_figure(figure, tmp_path / "scores.svg").read_text(encoding="utf-8")
    assert "pairs_open_book" in svg
    png = viz.save_figure(viz.plot_sink(disrupted, readout="options"), tmp_path / "sink.png")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_unknown_ending_is_refused(result, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of png, svg, .*got 'heads.bmp'"):
        viz.save_figure(viz.plot_curve(result), tmp_path / "heads.bmp")


def test_a_missing_browser_or_kaleido_is_named_with_its_remedy(result, tmp_path, monkeypatch):
    figure = viz.plot_curve(result)
    monkeypatch.setattr(save_module, "find_browser", lambda: None)
    monkeypatch.setattr(save_module, "_kaleido", lambda: None)
    with pytest.raises(RuntimeError, match="needs an installed Chromium or Chrome, found none"):
        viz.save_figure(figure, tmp_path / "curve.png")
    monkeypatch.undo()

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(save_module.importlib, "import_module", absent)
    with pytest.raises(RuntimeError, match=r"needs kaleido, found none; pip install 'mi-massive"):
        viz.save_figure(figure, tmp_path / "curve.png")
