"""One run of llmcompressor on a model in memory: its recipe, its guards, and what it rounded.

The only place that imports llmcompressor and compressed-tensors, at the moment they are needed.
Both print, warn, set environment variables and look at the disk as a program of their own; all of
that is kept inside the run.
"""

import importlib
import io
import os
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import quiet_loading
from mi_massive.quantization_schemes import QuantizationScheme

_LIBRARIES: Final = ("llmcompressor", "compressed_tensors")
_running: Final = threading.Lock()  # llmcompressor keeps one session for the whole process


def require_extra() -> None:
    """Raise RuntimeError unless the extra `quantize` is installed."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"the extra 'quantize' must be installed to quantize a model, got no {missing[0]}; run "
            "`pip install 'mi-massive[quantize]'`"
        )


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Linear layers by name, without the language-modelling head."""
    head = model.get_output_embeddings()
    named: dict[str, nn.Module] = dict(model.named_modules())
    return {n: m for n, m in named.items() if isinstance(m, nn.Linear) and m is not head}


@contextmanager
def quiet_library() -> Generator[None, None, None]:
    """Keep what the libraries print, warn and set away from the program; one run at a time."""
    disabled = {"LLM_COMPRESSOR_LOG_DISABLED": "true", "TOKENIZERS_PARALLELISM": "false"}
    with (
        _running,
        patch.dict(os.environ, disabled),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        quiet_loading(),
    ):
        warnings.simplefilter("ignore")
        logger: Any = importlib.import_module("loguru").logger
        for name in _LIBRARIES:
            logger.disable(name)
        if not _knows_level(logger, "METRIC"):  # what the library defines where it may print
            logger.level("METRIC", no=38)
        yield


def _knows_level(logger: Any, name: str) -> bool:
    try:
        logger.level(name)
    except ValueError:
        return False
    return True


def run_oneshot(
    model: PreTrainedModel,
    scheme: QuantizationScheme,
    windows: Int[Tensor, "window pos"] | None,
    *,
    name: str,
    folder: Path,
) -> None:
    """Let llmcompressor work on `model` in place, inside `quiet_library`.

    Args:
        model: Weights of full precision on the CPU.
        scheme: What to do.
        windows: What the method looks at; None for round to nearest.
        name: Of the model, for errors.
        folder: Made for the run; saving the model needs it too.

    Raises:
        UnsupportedModelError: If the method does not know the architecture.
    """
    library: Any = importlib.import_module("llmcompressor")
    cache: Any = importlib.import_module("llmcompressor.pipelines.cache").IntermediatesCache
    # It looks the configuration up on the disk, and pins memory without asking for an accelerator.
    model.config.save_pretrained(folder)
    model.config.name_or_path = str(folder)
    unpinned: Any = patch.object(cache, "pin_memory", _leave_unpinned)
    guard: Any = nullcontext() if torch.accelerator.is_available() else unpinned
    data: dict[str, Any] = {}
    if windows is not None:
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
        loader = torch.utils.data.DataLoader(cast(Any, rows), batch_size=1)
        sizes = {"num_calibration_samples": len(windows), "max_seq_length": windows.shape[1]}
        # With a loader the tokenizer is not used, only asked for.
        data = {"dataset": loader, "processor": object(), **sizes}
    try:
        with guard:
            library.oneshot(model=model, recipe=_recipe(model, scheme), **data)
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            f"{name} must have an architecture that {scheme.method} of llmcompressor knows, got a "
            f"{type(model).__name__} ({reason})"
        ) from error


def _leave_unpinned(cache: Any, batch_index: int, input_names: Any = None) -> None:
    """In place of pinning, which has no use on a CPU."""


def rounded_weights(model: PreTrainedModel) -> dict[str, Float[Tensor, "output input"]]:
    """Weights of the linear layers as the model computes with them, after `run_oneshot`.

    Raises:
        RuntimeError: If a layer was left out.
    """
    forward: Any = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    rounded: dict[str, Tensor] = {}
    for name, layer in linear_layers(model).items():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None:
            raise RuntimeError(f"every linear layer must be quantized, got none at {name}")
        weight = layer.weight.detach()
        value = forward.forward_quantize(layer, weight, "weight", scheme.weights)
        rounded[name] = value.detach().cpu()
    return rounded


def _recipe(model: Any, scheme: QuantizationScheme) -> list[Any]:
    """Modifiers of llmcompressor for a scheme."""
    quantization: Any = importlib.import_module("llmcompressor.modifiers.quantization")
    transform: Any = importlib.import_module("llmcompressor.modifiers.transform")
    arguments: Any = importlib.import_module("compressed_tensors.quantization")
    inputs = None
    if scheme.activation_bits is None:
        strategy = {"strategy": "group", "group_size": scheme.group, "symmetric": False}
    else:
        strategy = {"strategy": "channel", "symmetric": True}
        inputs = arguments.QuantizationArgs(
            num_bits=scheme.activation_bits, strategy="token", symmetric=True, dynamic=True
        )
    layers = arguments.QuantizationScheme(
        targets=["Linear"],
        weights=arguments.QuantizationArgs(num_bits=scheme.bits, **strategy),
        input_activations=inputs,
    )
    head = model.get_output_embeddings()
    kept = [name for name, module in model.named_modules() if module is head]
    where: dict[str, Any] = {"config_groups": {"all": layers}, "ignore": kept}
    if scheme.method == "gptq":
        return [quantization.GPTQModifier(**where)]
    rounding = quantization.QuantizationModifier(**where)
    if scheme.method == "awq":
        return [transform.AWQModifier(), rounding]
    return [transform.SmoothQuantModifier(), rounding] if scheme.calibrates else [rounding]
