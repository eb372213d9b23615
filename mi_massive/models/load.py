"""From a model's name to a `HookedModel`."""

import contextlib
import logging
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from mi_massive.models.base import HookedModel
from mi_massive.models.checkpoint import Checkpoint, resolve_checkpoint
from mi_massive.models.errors import UnsupportedModelError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SPREAD: Final = "auto"
"""Device of a model whose layers lie on several: those that this process sees."""

WITH_IMAGES: Final = ("llava", "qwen2_vl")
"""Model types that read images as well, whose language tower is served, on texts alone."""


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    device_map: str | Mapping[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> HookedModel:
    """Load a model by built-in name, hub id, Hugging Face folder or GGUF file.

    Args:
        name_or_path: `smollm2-135m-instruct`, `owner/name`, a folder or a `.gguf` file.
        device: Where to run, such as `cpu` or `cuda`; `auto` is short for `device_map="auto"`.
        device_map: Instead of `device`, for a model larger than one GPU: `auto` spreads its layers
            over the GPUs, then memory; a mapping names a device for each module (`accelerate`).
        offload_folder: Where layers go that the map puts on `disk`.
        dtype: Type of the weights; norms are accumulated in float32 whatever it is.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether the model's own Python files may run.

    Returns:
        The model with its hook points, tokenizer and measured geometry.

    Raises:
        ValueError: If the name means nothing, the files are incomplete or damaged, or there is no
            such device.
        UnsupportedModelError: If the model is of a kind that cannot be served, with what is
            missing.
        OSError: If a download failed or the disk is full.
    """
    if device == SPREAD:
        device, device_map = "cpu", device_map or SPREAD
    place = require_device(device)
    spread: dict[str, Any] = {}
    if device_map is not None:
        spread = {"device_map": device_map, "offload_folder": offload_folder}
    checkpoint = resolve_checkpoint(
        name_or_path, revision=revision, trust_remote_code=trust_remote_code
    )
    config = cast(Any, AutoConfig).from_pretrained(
        checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
    )
    is_causal = _is_causal(config, checkpoint)
    model, has_head = _load_weights(checkpoint, config, is_causal, dtype, spread)
    tokenizer = cast(Any, AutoTokenizer).from_pretrained(
        checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
    )
    return HookedModel.from_transformers(
        (model if spread else cast(Any, model).to(device=place)).eval(),
        tokenizer,
        name=checkpoint.name,
        folder=checkpoint.folder,
        revision=checkpoint.revision,
        weights_note=checkpoint.weights_note,
        is_causal=is_causal,
        has_head=has_head,
    )


def require_device(device: str | torch.device) -> torch.device:
    """The device, if this machine and this build of torch have it.

    Raises:
        ValueError: If they do not.
    """
    place = require_known_device(device)
    present = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (place.index or 0) >= present.get(place.type, 1):
        raise ValueError(
            f"device must be on this machine and in this build of torch, got {str(place)!r}; "
            "use cpu"
        )
    return place


def require_known_device(device: str | torch.device) -> torch.device:
    """The device, whether it is on this machine or not.

    Raises:
        ValueError: If torch knows none of this name.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be one that torch knows, such as cpu, cuda, cuda:1 or mps, got {device!r}"
        ) from error


def _is_causal(config: Any, checkpoint: Checkpoint) -> bool:
    """True for a decoder, False for an encoder; anything else is refused."""
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{checkpoint.name} must be a decoder or an encoder, got the encoder-decoder "
            f"{config.model_type}; its cross-attention has no rotary geometry to analyse"
        )
    architecture = (config.architectures or [""])[0]
    decodes = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        return False
    if config.model_type in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WITH_IMAGES):
        return True
    if "auto_map" in vars(config):
        return True
    raise UnsupportedModelError(
        f"{checkpoint.name} must be a language model that transformers can load, got the model "
        f"type {config.model_type!r} ({architecture or 'no architecture named'})"
    )


def _load_weights(
    checkpoint: Checkpoint, config: Any, is_causal: bool, dtype: torch.dtype, spread: dict[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its language-modelling head came from the checkpoint."""
    kind = AutoModelForCausalLM if is_causal else AutoModelForMaskedLM
    loader = cast(Any, AutoModelForImageTextToText if config.model_type in WITH_IMAGES else kind)
    # transformers' SDPA ignores the soft cap on attention logits that such a model was trained
    # with.
    softcapped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    with quiet_loading():
        model, report = loader.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **({"attn_implementation": "eager"} if softcapped else {}),
            **spread,
        )
    missing = sorted(report["missing_keys"])
    body = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(body)]
    if lost:
        raise UnsupportedModelError(
            f"the checkpoint of {checkpoint.name} must hold every weight of "
            f"{type(model).__name__}, got none for {lost[0]} and {len(lost) - 1} more"
        )
    return model, not missing


@contextlib.contextmanager
def quiet_loading() -> Generator[None, None, None]:
    """Keep transformers' loading report off the terminal; `_load_weights` checks its content."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
