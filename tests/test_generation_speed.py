"""All ways of generation do the same work, and the published way makes the published edit."""

from pathlib import Path

import pytest
import torch
from tiny_models import llama

from mi_massive import HookedModel, disrupt, load_model, load_result, preset, save_result
from mi_massive import generation_speed as module
from mi_massive.generation_speed import PLAIN, WAYS, edited_head_by_head
from mi_massive.models.attention import visiting


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(vocab_size=1000).save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", name="smollm2")
def fixture_smollm2() -> HookedModel:
    return load_model("smollm2-135m-instruct")


def ids(n: int = 3) -> torch.Tensor:
    return torch.randint(1, 1000, (n, 12), generator=torch.Generator().manual_seed(0))


def test_the_published_way_and_ours_write_the_same_answers(folder: Path) -> None:
    ways = module._ways(load_model(folder), ids().tolist(), 5, 2, 3)
    assert tuple(ways) == WAYS
    answers = {way: run() for way, run in ways.items()}
    assert answers["disrupted generate"] == answers["published way"]
    assert answers["disrupted generate"] != answers[PLAIN]
    assert {len(answer) for way in WAYS for answer in answers[way]} == {5}


def test_the_published_edit_gives_the_logits_of_the_preset(folder: Path) -> None:
    model = load_model(folder)
    prompt = ids(1)
    with torch.no_grad():
        with disrupt(model, preset("paper", k=3)) as edits:
            expected = model.plain(prompt).logits
        with visiting(model.plain, lambda seen: edited_head_by_head(seen, 3)):
            found = model.plain(prompt).logits
    assert edits.total > 0
    torch.testing.assert_close(found, expected)


def test_an_answer_that_ends_early_is_refused(folder: Path) -> None:
    model = load_model(folder)
    ways = module._ways(model, ids(1).tolist(), 5, 1, 3)
    second = ways[PLAIN]()[0][1]
    model.plain.generation_config.eos_token_id = second
    with pytest.raises(RuntimeError, match=r"every answer must have 5 tokens to be timed, got 2"):
        ways[PLAIN]()


def test_the_record_relates_every_way_to_plain_generation(
    tmp_path: Path, smollm2: HookedModel
) -> None:
    result = module.measure_generation_speed(
        smollm2,
        n_prompts=2,
        n_tokens_prompt=16,
        n_tokens_new=2,
        batch_size=2,
        n_rounds=2,
    )
    assert result.seconds.shape == (2, len(WAYS))
    plain, ours, published = result.throughput
    assert (plain.effect, plain.low, plain.high) == (1.0, 1.0, 1.0)
    ratios = (result.seconds[:, 0] / result.seconds[:, 1]).double()
    assert ours.effect == pytest.approx(float(ratios.quantile(0.5)))
    assert published.n == 2
    against = (result.seconds[:, 2] / result.seconds[:, 1]).double()
    assert result.speedup.effect == pytest.approx(float(against.quantile(0.5)))
    again = load_result(save_result(result, tmp_path / "speed.json"))
    assert torch.equal(again.seconds, result.seconds)


def test_passages_shorter_than_asked_are_refused(smollm2: HookedModel) -> None:
    with pytest.raises(ValueError, match=r"n_tokens_prompt must not exceed the passages, got 4096"):
        module.measure_generation_speed(smollm2, n_prompts=1, n_tokens_prompt=4096)
    with pytest.raises(ValueError, match=r"n_prompts must be between 1 and 32 \(passages\), got 0"):
        module.measure_generation_speed(smollm2, n_prompts=0)
