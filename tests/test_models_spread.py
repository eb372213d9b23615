"""A model whose layers lie on different devices is the undivided one: captures, edits, answers.

Here the second device is the disk: its layers hold no weights (`meta`) but while they run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, token_ids

from mi_massive import (
    HookedModel,
    capture_norms,
    disrupt,
    evaluate,
    load_model,
    make_arms,
    tokenize_prompts,
)
from mi_massive.models import load
from mi_massive.records import text_of
from mi_massive.scores import EvaluationConfig
from mi_massive.tasks import load_own_task

MODULES = (
    *("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"),
    *("model.rotary_emb", "lm_head"),
)
SPLITS = {
    name: {module: "disk" if module in on_disk else "cpu" for module in MODULES}
    for name, on_disk in {
        "last block on disk": ("model.layers.1", "model.norm"),
        "embedding and first block on disk": ("model.embed_tokens", "model.layers.0"),
    }.items()
}


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama().save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", name="whole")
def fixture_whole(folder: Path) -> HookedModel:
    return load_model(folder)


@pytest.fixture(scope="module", name="split", params=SPLITS.values(), ids=SPLITS.keys())
def fixture_split(
    folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HookedModel:
    offloaded = tmp_path_factory.mktemp("offloaded")
    split = load_model(folder, device_map=request.param, offload_folder=offloaded)
    places = {weight.device.type for weight in split.plain.parameters()}
    assert places == {"cpu", "meta"}
    return split


def test_captured_norms_are_those_of_the_undivided_model(
    whole: HookedModel, split: HookedModel
) -> None:
    prompts = tokenize_prompts(whole.tokenizer, ["t1 t2 t3 t4 t5 t6", "t9 t8 t7"])
    expected, found = capture_norms(whole, prompts), capture_norms(split, prompts)
    for name in ("q", "k", "v"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_an_edit_gives_the_logits_of_the_undivided_model(
    whole: HookedModel, split: HookedModel
) -> None:
    (arm,), ids = make_arms(["paper"], ks=[2]), token_ids()
    logits: list[torch.Tensor] = []
    for model in (whole, split):
        with torch.no_grad(), disrupt(model, arm.intervention):
            logits.append(model.plain(ids).logits)
    with torch.no_grad():
        assert not torch.equal(logits[0], whole.plain(ids).logits)
    assert torch.equal(*logits)


# transformers compares the devices of ids and embedding, which has none where it lies on disk.
@pytest.mark.filterwarnings("ignore:You are calling .generate")
def test_answers_under_an_edit_are_those_of_the_undivided_model(
    whole: HookedModel, split: HookedModel, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"id": "a", "prompt": "t1 t2 t3", "answer": "t4", "kind": "contextual", '
        '"options": ["t4", "t5"]}\n'
    )
    task, (arm,) = load_own_task(path), make_arms(["paper"], ks=[2])
    config = EvaluationConfig(readouts=("generation", "options"), max_new_tokens=4)
    expected, found = (
        evaluate(model, task, intervention=arm.intervention, config=config)
        for model in (whole, split)
    )
    assert text_of(found.answers[0]) == text_of(expected.answers[0])


def test_hook_points_show_and_edit_what_those_of_the_undivided_model_do(
    whole: HookedModel, split: HookedModel
) -> None:
    ids = token_ids()
    site = "blocks.1.attn.hook_rot_k"
    outcomes: list[tuple[torch.Tensor, torch.Tensor]] = []
    for model in (whole, split):
        seen: list[torch.Tensor] = []

        def double(key: torch.Tensor, hook: object) -> torch.Tensor:
            seen.append(key.clone())  # noqa: B023 - called before the next turn
            return 2 * key

        logits = model.run_with_hooks(ids, fwd_hooks=[(site, double)])
        outcomes.append((seen[0], logits))
    for expected, found in zip(*outcomes, strict=True):
        assert torch.equal(found, expected)


def test_auto_is_short_for_an_automatic_map(
    folder: Path, whole: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, asked = load._load_weights, list[dict[str, Any]]()

    def watched(*args: Any) -> Any:
        asked.append(args[-1])
        return inner(*args)

    monkeypatch.setattr(load, "_load_weights", watched)
    spread = load_model(folder, device="auto")
    assert [given["device_map"] for given in asked] == ["auto"]
    with torch.no_grad():
        assert torch.equal(spread.plain(token_ids()).logits, whole.plain(token_ids()).logits)
