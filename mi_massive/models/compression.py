"""Quantized copies of a model: round to nearest, GPTQ, AWQ and SmoothQuant on one set of texts.

The methods are those of llmcompressor (the extra `quantize`), run on the CPU or an accelerator on
a copy of the weights. The result is kept as a Hugging Face folder under a hash of weights,
arguments and versions: plain weights on their grid where weights alone are rounded, so that every
analysis treats them as any other model; compressed where activations are rounded too, because
unpacked weights would lose that without a word. Costs seconds for round to nearest and SmoothQuant,
and for 0.1 billion parameters minutes for GPTQ and AWQ.

Does not show speed or memory: rounded weights are computed with as floating-point numbers.
"""

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mi_massive._checks import require_in_range
from mi_massive.models.base import HookedModel
from mi_massive.models.cache import cached_folder
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import load_model
from mi_massive.models.oneshot import (
    linear_layers,
    quiet_library,
    require_extra,
    rounded_weights,
    run_oneshot,
)
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.quantization_schemes import QuantizationScheme, require_divides

COMPRESSION_VERSION: Final = 1
"""Counted up whenever the same arguments would give another model."""

_MARK: Final = "mi_massive_quantization"
"""Entry of a configuration that says how its weights were rounded."""
_VERSIONED: Final = ("llmcompressor", "compressed-tensors", "torch", "transformers")


def quantize(
    model: HookedModel | str | Path,
    *,
    method: str,
    bits: int | None = None,
    group: int = 64,
    activation_bits: int | None = None,
    calibration: TokenizedPrompts | Sequence[str] | Sequence[Sequence[int]] | None = None,
    n_calibration: int = 16,
    calibration_length: int = 256,
    seed: int = 0,
    cache: Path | None = None,
) -> HookedModel:
    """Round the weights of all linear layers but the language-modelling head.

    Args:
        model: From `load_model`, or what it takes.
        method: `rtn` (round to nearest), `gptq`, `awq` or `smoothquant`.
        bits: Of a weight, 2 to 8; None is 8 with activations, which smoothquant always has, else 4.
        group: Inputs that share a scale; not used with activations, where an output has one.
        activation_bits: 8 rounds each token's inputs of a layer too (`rtn`; always `smoothquant`).
        calibration: Texts or token ids that the method looks at; round to nearest needs none.
        n_calibration: Windows taken from them, fewer where they hold fewer.
        calibration_length: Tokens of a window.
        seed: Of the order in which texts are joined before they are cut into windows.
        cache: Folder of quantized models; None is the one of converted models.

    Returns:
        The quantized model. Its note says method and bits, and what the weights were before. The
        original is left as it is.

    Raises:
        ValueError: If an argument does not fit the method or the model, or the calibration is
            missing or shorter than one window.
        UnsupportedModelError: If the model is quantized already, was wrapped, or has an
            architecture that the method does not know.
        RuntimeError: If the extra is not installed, or the method left a layer as it was.
        OSError: If the disk has no room.
    """
    if method == "smoothquant" and activation_bits is None:
        activation_bits = 8
    scheme = QuantizationScheme(
        method=method,
        bits=bits or (4 if activation_bits is None else 8),
        group=None if activation_bits is not None else group,
        activation_bits=activation_bits,
    )
    require_extra()
    held = model if isinstance(model, HookedModel) else load_model(model)
    _require_quantizable(held, scheme)
    windows = None
    if scheme.calibrates:
        windows = calibration_windows(
            held, calibration, n=n_calibration, length=calibration_length, seed=seed
        )
        n, length = windows.shape
        scheme = dataclasses.replace(scheme, n_calibration=n, calibration_length=length, seed=seed)
    key = _key(held, scheme, windows)
    size = 5 * sum(weight.numel() for weight in held.plain.parameters())
    folder = cached_folder(
        f"quantized-{method}-{key}",
        lambda part: _build(held, scheme, windows, part),
        size=size,
        root=cache,
    )
    return _load(folder, held, scheme, key)


def require_quantizable(
    model: HookedModel,
    schemes: Sequence[QuantizationScheme],
    calibration: TokenizedPrompts | Sequence[str] | Sequence[Sequence[int]] | None,
) -> None:
    """Raise what `quantize` would for any of the schemes, before anything is computed."""
    require_extra()
    for scheme in schemes:
        _require_quantizable(model, scheme)
        n, length = scheme.n_calibration, scheme.calibration_length
        if scheme.calibrates:
            calibration_windows(model, calibration, n=n, length=length, seed=scheme.seed)


def quantization_of(model: HookedModel) -> dict[str, Any] | None:
    """Scheme and `bits_per_weight` of a model from `quantize`; None for others."""
    return getattr(model.plain.config, _MARK, None)


def calibration_windows(
    model: HookedModel,
    calibration: TokenizedPrompts | Sequence[str] | Sequence[Sequence[int]] | None,
    *,
    n: int,
    length: int,
    seed: int,
) -> Int[Tensor, "window pos"]:
    """Windows of token ids: texts in an order drawn by the seed, joined and cut.

    Raises:
        ValueError: If there is no text, it fills no window, or a window exceeds the context.
    """
    if calibration is None:
        raise ValueError(
            "calibration must hold texts for a method that looks at them, got None; pass texts, or "
            "use method='rtn'"
        )
    require_in_range("n_calibration", n, low=1, high=1 << 20, unit="windows")
    context = model.geometry.training_context or 1 << 20
    require_in_range("calibration_length", length, low=2, high=context, unit="tokens")
    given = calibration
    if not isinstance(given, TokenizedPrompts):
        given = tokenize_prompts(cast(Any, model.tokenizer), given)
    order = np.random.default_rng(seed).permutation(len(given))
    stream = [token for row in order for token in given.input_ids[int(row)]]
    if len(stream) < length:
        raise ValueError(
            f"calibration must fill at least one window of {length} tokens, got {len(stream)} "
            "tokens; pass more text or a smaller calibration_length"
        )
    if max(stream) >= model.n_vocabulary:
        raise ValueError(
            f"calibration must hold token ids below {model.n_vocabulary}, got {max(stream)}; "
            "tokenize with the model's own tokenizer"
        )
    n_whole = min(n, len(stream) // length)
    return torch.tensor(stream[: n_whole * length]).reshape(n_whole, length)


def _require_quantizable(held: HookedModel, scheme: QuantizationScheme) -> None:
    plain = held.plain
    marked = any(
        getattr(plain.config, name, None) is not None for name in ("quantization_config", _MARK)
    )
    if marked:
        raise UnsupportedModelError(
            f"{held.name} must have weights of full precision to be quantized, got a model that is "
            f"quantized already ({held.weights_note or 'as its configuration says'}); load the "
            "original"
        )
    if not (held.is_causal and held.has_head):
        raise UnsupportedModelError(
            f"{held.name} must be a decoder with a language-modelling head to be quantized, got "
            "none"
        )
    layers = linear_layers(plain)
    if not layers:
        raise UnsupportedModelError(
            f"{held.name} must have linear layers of torch to be quantized, got a "
            f"{type(plain).__name__} with none"
        )
    if scheme.group is not None:
        for name, layer in layers.items():
            require_divides(scheme.group, layer.in_features, name)


def _key(held: HookedModel, scheme: QuantizationScheme, windows: Tensor | None) -> str:
    """Hash of everything that the quantized weights depend on."""
    digest = hashlib.sha256()
    for name, weight in held.plain.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    listed: dict[str, Any] = {
        "class": type(held.plain).__name__,
        "scheme": dataclasses.asdict(scheme),
        "windows": None if windows is None else windows.tolist(),
        "note": held.weights_note,
        "versions": {name: version(name) for name in _VERSIONED},
        "compression": COMPRESSION_VERSION,
    }
    digest.update(json.dumps(listed, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _build(
    held: HookedModel,
    scheme: QuantizationScheme,
    windows: Int[Tensor, "window pos"] | None,
    folder: Path,
) -> None:
    """Write the quantized model, its tokenizer and its mark into `folder`."""
    before = {name: layer.weight.detach() for name, layer in linear_layers(held.plain).items()}
    with quiet_library(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(scheme.seed)
        worked = _plain_copy(held)
        run_oneshot(worked, scheme, windows, name=held.name, folder=folder / "base")
        rounded = rounded_weights(worked)
        same = [name for name, weight in before.items() if torch.equal(weight.cpu(), rounded[name])]
        if same:
            raise RuntimeError(
                f"{scheme.method} must change every weight, got {same[0]} and {len(same) - 1} more "
                "as they were"
            )
        if scheme.activation_bits is None:
            plain = _plain_copy(held)
            changed = dict(worked.named_parameters())
            with torch.no_grad():
                for name, weight in plain.named_parameters():
                    weight.copy_(rounded.get(name.removesuffix(".weight"), changed[name]))
            plain.save_pretrained(folder)
        else:
            cast(Any, worked).save_pretrained(folder, save_compressed=True)
        if held.tokenizer is not None:
            cast(Any, held.tokenizer).save_pretrained(folder)
    shutil.rmtree(folder / "base")
    stored = [
        (weight.numel(), scheme.bits_per_weight(weight.shape[1])) for weight in before.values()
    ]
    mark = dataclasses.asdict(scheme) | {
        "bits_per_weight": sum(n * bits for n, bits in stored) / sum(n for n, _ in stored),
        "weights_note": _note(held, scheme),
    }
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {_MARK: mark}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _plain_copy(held: HookedModel) -> PreTrainedModel:
    """The model's own class with its weights, on the CPU, without our taps."""
    config: Any = copy.deepcopy(held.plain.config)
    config._attn_implementation = held.kernel
    model: Any = cast(Any, type(held.plain))(config).to(held.dtype)
    model.load_state_dict(held.plain.state_dict())
    return model.eval()


def _load(folder: Path, held: HookedModel, scheme: QuantizationScheme, key: str) -> HookedModel:
    with quiet_library():
        model = cast(Any, type(held.plain)).from_pretrained(
            folder, dtype=held.dtype, use_safetensors=True, attn_implementation=held.kernel
        )
        model = model.to(device=held.device).eval()
        with torch.no_grad():  # compressed layers unpack in the first run, before any sharing
            model(input_ids=torch.ones(1, 4, dtype=torch.long, device=held.device))
    return HookedModel.from_transformers(
        model,
        held.tokenizer,
        name=held.name,
        folder=folder,
        revision=f"{held.revision or 'in memory'}, quantized {key}",
        weights_note=_note(held, scheme),
    )


def _note(held: HookedModel, scheme: QuantizationScheme) -> str:
    """What was done to the weights, and what had been done before."""
    return scheme.statement + (f"; before that {held.weights_note}" if held.weights_note else "")
