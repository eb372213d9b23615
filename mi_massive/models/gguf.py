"""A GGUF file as a Hugging Face folder: dequantized once, kept as float32 safetensors.

The first load costs 20 to 60 seconds for 0.1 to 0.5 billion parameters, and four bytes a parameter
on the disk; later loads cost a checksum of the file. The folder holds the config, the tokenizer
with its chat template, and weights that equal the directly loaded ones bit for bit.

Dequantized weights are still the rounded ones: nothing here undoes the rounding, and every result
says so through `weights_note`.
"""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

import torch
from safetensors import SafetensorError

from mi_massive.models.cache import cached_folder, disk_full_error
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.gguf_header import GgufHeader, read_header
from mi_massive.models.gguf_repair import repair_rope, repair_tokenizer, require_faithful

CONVERTER_VERSION: Final = 1
"""Counted up whenever the same file would give another folder."""

_RECORD = "mi_massive_source.json"
_FLOAT32_BYTES = 4
_MARGIN_BYTES = 64_000_000


def file_sha256(path: Path) -> str:
    """Checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def converted_folder(sha256: str) -> str:
    """Name of the cached folder for a GGUF file with this checksum."""
    return f"gguf-{sha256}-v{CONVERTER_VERSION}"


def convert_gguf(path: Path, *, sha256: str) -> Path:
    """Return the cached Hugging Face folder made from a GGUF file; convert it the first time.

    Args:
        path: The GGUF file.
        sha256: Its checksum, from `file_sha256`.

    Raises:
        ValueError: If the file is not GGUF, truncated or damaged.
        UnsupportedModelError: If transformers has no faithful place for what the file holds.
        OSError: If the disk has no room.
    """
    header = read_header(path)
    size = header.n_weights * _FLOAT32_BYTES + _MARGIN_BYTES
    return cached_folder(
        converted_folder(sha256), lambda folder: _convert(header, sha256, folder), size=size
    )


def read_weights_note(folder: Path) -> str:
    """How the weights of a converted folder were stored in the GGUF file."""
    return str(json.loads((folder / _RECORD).read_text(encoding="utf-8"))["weights_note"])


def _convert(header: GgufHeader, sha256: str, folder: Path) -> None:
    """Write config, tokenizer, record and, last, the weights into `folder`."""
    with _quiet_transformers():
        model, tokenizer = _load(header)
        # Marks of the quantized file: with them the folder would be read as still quantized.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        tokenizer.save_pretrained(folder)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:
            # safetensors wraps the operating system's error and keeps its text alone.
            if "No space left" in str(error):
                raise disk_full_error(folder.parent) from error
            raise
    record = {
        "file": header.path.name,
        "sha256": sha256,
        "converter_version": CONVERTER_VERSION,
        "weights_note": header.weights_note,
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _load(header: GgufHeader) -> tuple[Any, Any]:
    """Load model and tokenizer through transformers, repaired and checked against the file."""
    # transformers takes a second to import, and a cached folder does without it.
    import transformers

    source, name = str(header.path.parent), header.path.name
    auto_config = cast(Any, transformers.AutoConfig)
    auto_model = cast(Any, transformers.AutoModelForCausalLM)
    auto_tokenizer = cast(Any, transformers.AutoTokenizer)
    # Before 5.17 there is no choice and no such class: every GGUF file is dequantized.
    has_choice = hasattr(transformers, "GgufConfig")
    unpack = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_choice else {}
    try:
        config = auto_config.from_pretrained(source, gguf_file=name)
        repair_rope(config, header)
        tokenizer = auto_tokenizer.from_pretrained(source, gguf_file=name)
        repair_tokenizer(tokenizer, header)
        model, info = auto_model.from_pretrained(
            source,
            gguf_file=name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **unpack,
        )
    except UnsupportedModelError:
        raise
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            f"a GGUF file must hold a decoder that transformers can read, got architecture "
            f"{header.architecture!r} in {header.path} ({reason}); load the model from its Hugging "
            "Face folder instead"
        ) from error
    require_faithful(model, sorted(info["missing_keys"]), header)
    return model, tokenizer


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Switch off transformers' progress bars and notes, and put the user's settings back after."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    reader = cast(Any, modeling_gguf_pytorch_utils)
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # The dequantizing loop takes tqdm directly and knows no switch.
        with patch.object(reader, "tqdm", partial(reader.tqdm, disable=True)):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
