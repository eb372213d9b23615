import pytest

from mi_massive.presets import PRESETS
from mi_massive.published import FIGURE3, PUBLISHED, TABLE1, published_for
from mi_massive.tasks import TASKS


def test_every_published_score_is_of_a_task_and_a_preset_that_exist():
    assert {score.task for score in PUBLISHED} <= set(TASKS)
    assert {score.preset for score in PUBLISHED} <= set(PRESETS)
    assert len({(score.model, score.task) for score in PUBLISHED}) == len(PUBLISHED) == 33


def test_scores_are_shares_as_printed():
    for score in PUBLISHED:
        for share in (score.intact, score.non_massive_disrupted, score.massive_disrupted):
            assert 0 <= share <= 1
    qwen = next(s for s in published_for("aqua") if s.model == "Qwen2.5-7B")
    printed = (qwen.intact, qwen.non_massive_disrupted, qwen.massive_disrupted)
    assert printed == (0.5669, 0.5728, 0.1968)
    assert TABLE1["Qwen2.5-7B"]["aqua"] == (56.69, 57.28, 19.68)
    gemma = published_for("imdb")[0]
    assert (gemma.model, gemma.massive_disrupted) == ("Gemma2-9B", 0.018)


@pytest.mark.parametrize("kind", ["contextual", "parametric"])
def test_the_published_claim_is_in_the_published_numbers(kind):
    """Contextual tasks lose most of their score, parametric ones far less, uncorrected."""
    scores = [s for s in PUBLISHED if TASKS[s.task].kind == kind]
    lost = [1 - score.massive_disrupted / score.intact for score in scores]
    assert all(x > 0.6 for x in lost) if kind == "contextual" else all(x < 0.35 for x in lost)


def test_in_figure_3_massive_disruption_repeats_itself_and_is_improbable():
    assert set(FIGURE3) <= set(TASKS)
    for measures in FIGURE3.values():
        intact, others, massive = measures["diversity"]
        assert massive < 0.7 * min(intact, others)
        intact, others, massive = measures["perplexity"]
        assert massive > 1.7 * max(intact, others)


def test_a_task_that_was_not_published_has_no_scores():
    assert published_for("pairs_open_book") == ()
    assert len(published_for("passkey_1024_48")) == 3
