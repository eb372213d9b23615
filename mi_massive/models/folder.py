"""A local Hugging Face folder: can this folder be loaded, safely and without a network?

Only file names, JSON and the headers of safetensors files are read: the check costs milliseconds.
It does not show that the architecture can be analysed, nor that the weights belong to the config.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from mi_massive.models.errors import UnsupportedModelError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
)


def require_model_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise unless `folder` holds a config, complete safetensors weights and a tokenizer.

    Args:
        folder: The folder to look at.
        trust_remote_code: Whether its own Python files may run; they must be there then.

    Raises:
        ValueError: If something is missing or damaged; the message names it and says what to do.
        UnsupportedModelError: If the weights are pickles, which can run any code when loaded, or
            if the model needs code of its own and `trust_remote_code` is False.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"a model folder must contain config.json, got none in {folder}; give the folder that "
            "`save_pretrained` wrote"
        )
    _require_code(folder, _json_object(config), trust_remote_code=trust_remote_code)
    for shard in _weight_files(folder):
        _require_intact(shard)
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        wanted = ", ".join(" with ".join(names) for names in _TOKENIZERS[:4])
        raise ValueError(
            f"a model folder must contain a tokenizer ({wanted}), got none in {folder}; save it "
            "there with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, every shard of the index included."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        names = [path.name for path in folder.iterdir() if path.is_file()]
        raise no_weights_error(str(folder), names, load=str(folder), save=str(folder))
    shards = sorted(set(_json_object(index).get("weight_map", {}).values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        named = ", ".join(missing) if missing else "an index that names no shard"
        raise ValueError(
            f"every shard in {_INDEX} must be in {folder}, got no {named}; download it again"
            if missing
            else f"{index} must name the weight files, got {named}; download it again"
        )
    return [folder / name for name in shards]


def no_weights_error(place: str, names: Iterable[str], *, load: str, save: str) -> ValueError:
    """The error for a model without safetensors; pickles get the lines that convert them.

    Args:
        place: The folder or hub model, as the sentence shall call it.
        names: Files that are there.
        load: What `from_pretrained` takes to load the pickle.
        save: The folder that the converted model shall go to.
    """
    found = sorted(names)
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if pickles:
        return UnsupportedModelError(
            f"weights must be safetensors, got the pickle {pickles[0]} in {place}, which could run "
            "any code when loaded; in an environment that you trust run `from transformers import "
            f"AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({load!r})"
            f".save_pretrained({save!r}, safe_serialization=True)`"
        )
    others = [name for name in found if name.endswith(".safetensors")]
    got = f"only {', '.join(others)}" if others else "no weights at all"
    return ValueError(
        f"a model must have model.safetensors or {_INDEX}, got {got} in {place}; give a model with "
        "its own weights, not an adapter or a tokenizer"
    )


def _require_intact(shard: Path) -> None:
    """Raise unless the file's header describes exactly the bytes that follow it."""
    try:
        with safe_open(str(shard), framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{shard} must be a complete safetensors file, got {str(error)!r}; download it again"
        ) from error


def _require_code(folder: Path, config: dict[str, Any], *, trust_remote_code: bool) -> None:
    """Raise if the model is defined by Python files that may not run, or that are not there."""
    own: dict[str, Any] = config.get("auto_map") or {}
    if not own:
        return
    # Imported here: reading the table of known architectures loads most of transformers.
    from transformers import CONFIG_MAPPING

    if not trust_remote_code:
        model_type = config.get("model_type")
        if model_type in CONFIG_MAPPING:
            return
        raise UnsupportedModelError(
            f"a model must be one that transformers knows, got model_type {model_type!r} with "
            f"Python code of its own in {folder}; read that code, then pass trust_remote_code=True"
        )
    # "other/repository--module.Class" names code elsewhere, which transformers fetches itself.
    classes = [name for name in own.values() if isinstance(name, str) and "--" not in name]
    for module in sorted({name.split(".")[0] for name in classes}):
        if not (folder / f"{module}.py").is_file():
            raise ValueError(
                f"a model with its own code must contain {module}.py, got none in {folder}; "
                "download it again with trust_remote_code=True"
            )


def _json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a broken file is one sentence."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got {str(error)!r}; download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return cast(dict[str, Any], value)
