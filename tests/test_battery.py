"""The battery of the report: its tasks fit the model's own tokenizer, and every arm is run."""

import copy
import json
from pathlib import Path

import pytest
from tiny_models import FAMILIES, llama

from mi_massive import battery
from mi_massive.battery import battery_arms, load_tasks, n_cells, run_battery
from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.presets import PRESETS
from mi_massive.prompts import tokenize_prompts


@pytest.fixture(scope="module", name="model")
def fixture_model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    """A model that can read 512 tokens; its tokenizer counts words."""
    return load_model(llama(max_position_embeddings=512).save(tmp_path_factory.mktemp("llama")))


def test_lengths_are_counted_by_the_models_own_tokenizer(model: HookedModel) -> None:
    (task,) = load_tasks(model, ("passkey_128_6",), limit=4)
    assert len(task.examples) == 4
    for example in task.examples:
        assert 100 <= len(model.tokenizer.encode(example.prompt, add_special_tokens=False)) <= 128


def test_in_a_chat_the_template_counts_as_well(model: HookedModel) -> None:
    chatting = copy.copy(model)
    chatting.tokenizer = copy.deepcopy(model.tokenizer)
    chatting.tokenizer.chat_template = (
        "{% for m in messages %}" + "t1 " * 30 + "{{ m['content'] }} t2 t3{% endfor %}"
    )
    (task,) = load_tasks(chatting, ("passkey_128_6",), limit=4, chat=True)
    for example in task.examples:
        asked = tokenize_prompts(chatting.tokenizer, [example.question], chat=True).input_ids[0]
        # a question ends in other words than the prompt without a template
        assert 100 <= len(asked) <= 128 + 8


def test_a_folder_without_the_rows_is_named(model: HookedModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a folder that holds gsm8k.jsonl, got .* without"):
        load_tasks(model, ("gsm8k",), data=tmp_path)


def test_rows_come_from_a_file_or_a_folder_of_files(model: HookedModel, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(3)]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for data in (file, tmp_path):
        task, own = load_tasks(model, ("gsm8k", "letters"), data=data, limit=2)
        assert [example.answer for example in task.examples] == ["0", "2"]
        assert len(own.examples) == 2  # a task of the package needs no file


def test_every_arm_is_run_on_every_task(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(battery, "TASKS", ("letters", "letters_recall"))
    monkeypatch.setattr(
        battery, "load_tasks", lambda m, limit: load_tasks(m, battery.TASKS, limit=limit)
    )
    steps: list[int] = []
    result = run_battery(model, n_examples=2, on_progress=steps.append)
    assert sum(steps) == n_cells() == 2 * (1 + len(battery_arms()))
    assert [arm.name for arm in result.arms] == [arm.name for arm in battery_arms()]
    assert {cell.score.n for cell in result.cells} == {2}
    assert result.judged is not None
    assert result.judged.name == "paper k=4"  # the dose that has a matched control


def test_the_papers_edit_stands_beside_every_control_at_its_dose() -> None:
    beside = {arm.preset for arm in battery_arms() if arm.k == 4 and arm.role == "control"}
    assert beside == {name for name, entry in PRESETS.items() if entry.role == "control"}


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    encoder = load_model(FAMILIES["bert"].save(tmp_path))
    with pytest.raises(UnsupportedModelError, match="must be a decoder with a language-modelling"):
        run_battery(encoder)
