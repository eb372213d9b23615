"""Which conflicts a model has: single tokens of its tokenizer, and facts that it gives unaided."""

from pathlib import Path

import pytest
from test_conflict import make_set
from tiny_models import FAMILIES, llama

from mi_massive import known_conflicts, load_conflicts, load_model
from mi_massive.conflict import ConflictConfig, run_conflict
from mi_massive.models import HookedModel, UnsupportedModelError
from mi_massive.tasks.conflicts import ConflictSet


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(llama().save(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", name="conflicts")
def fixture_conflicts(model: HookedModel) -> ConflictSet:
    return make_set(model)


def test_known_conflicts_are_those_that_the_experiment_counts(
    model: HookedModel, conflicts: ConflictSet
) -> None:
    found = known_conflicts(model, conflicts, batch_size=3)
    planted = [c.id for i, c in enumerate(conflicts.conflicts) if i % 4]
    assert [conflict.id for conflict in found] == planted
    config = ConflictConfig(n_neutral=2, neutral_length=24, n_resamples=50)
    assert run_conflict(model, conflicts, (), config=config).n_known == len(found)


def test_no_more_than_the_limit_and_none_where_nothing_is_known(
    model: HookedModel, conflicts: ConflictSet
) -> None:
    every = known_conflicts(model, conflicts)
    assert known_conflicts(model, conflicts, limit=5, batch_size=1) == every[:5]
    assert known_conflicts(model, conflicts, known="two_answers") != ()
    assert known_conflicts(model, make_set(model, known=False)) == ()
    with pytest.raises(ValueError, match="limit must be finite and positive, got 0"):
        known_conflicts(model, conflicts, limit=0)


def test_a_tokenizer_that_knows_no_object_is_refused(model: HookedModel) -> None:
    # It knows 64 words.
    with pytest.raises(ValueError, match="encode must give one token for at least one fact"):
        load_conflicts(model, limit=4)


def test_an_encoder_cannot_be_asked(conflicts: ConflictSet, tmp_path: Path) -> None:
    encoder = load_model(FAMILIES["bert"].save(tmp_path))
    with pytest.raises(
        UnsupportedModelError, match="must be a decoder with a language-modelling head"
    ):
        known_conflicts(encoder, conflicts)
    with pytest.raises(UnsupportedModelError, match="must be a decoder with a language-modelling"):
        load_conflicts(encoder)
