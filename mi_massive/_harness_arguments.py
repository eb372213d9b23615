"""What the arguments of the harness's model mean: the model to load and the edit to make.

They come from one line such as `pretrained=smollm2-135m-instruct,preset=paper,k=4`, so all that
cannot mean anything is refused here, before a task is loaded.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from mi_massive._choices import blocks_of
from mi_massive._sources import make_disruptor
from mi_massive.arms import Arm, match_arms
from mi_massive.disruption import DisruptionConfig
from mi_massive.interventions import Intervention
from mi_massive.models import HookedModel, load_model
from mi_massive.models.load import DTYPES
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.presets import PRESETS, preset
from mi_massive.prompts import default_passages, tokenize_prompts

Layers = int | str | Sequence[int] | None

OWN: Final = (
    *("pretrained", "preset", "k", "seed", "layers", "device", "dtype", "revision"),
    *("trust_remote_code", "batch_size"),
)
PASSED_ON: Final = (
    *("add_bos_token", "prefix_token_id", "max_length", "truncation"),
    *("chat_template_args", "enable_thinking", "think_end_token"),
)
"""Arguments that mean what they mean to the harness's own model `hf`."""
_NUMBERS: Final = {
    "k": (1, 4),
    "seed": (0, 1),
    "batch_size": (1, 8),
    "max_length": (1, 512),
    "prefix_token_id": (0, 1),
}
"""Arguments that are a whole number: the least, and one to try."""
_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "pretrained": ((str, HookedModel), "the name of a model (in quotes if need be)"),
    "intervention": ((Intervention,), "an Intervention, from Python alone"),
    **dict.fromkeys(
        ("preset", "device", "dtype", "revision"), ((str,), "a text (in quotes if need be)")
    ),
    **dict.fromkeys(
        ("trust_remote_code", "add_bos_token", "truncation", "enable_thinking"),
        ((bool,), "true or false"),
    ),
    "layers": ((int, str, list, tuple), "a block such as 3 or a range such as 3-9"),
    "chat_template_args": ((dict,), "a mapping"),
    "think_end_token": ((int, str), "a text or the number of a token"),
}
"""What all others are."""


def told(model_args: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the harness was told them, each of the kind that it has to be.

    Args:
        model_args: What was asked for by that name.
        beside: What the harness gives by itself; None is left out.

    Raises:
        ValueError: If there is no model, an argument is of a wrong kind or comes twice.
    """
    if model_args.get("pretrained") in (None, ""):
        raise ValueError(
            f"model_args must name a model, got none; add pretrained={DEFAULT_MODEL}, or another"
        )
    given = {name: value for name, value in beside.items() if value is not None}
    for name in given:
        if name in model_args:
            raise ValueError(
                f"{name} must be given once, got {model_args[name]!r} in model_args and "
                f"{given[name]!r} beside them; say --{name} alone"
            )
    return of_kinds({**model_args, **given})


def of_kinds(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose values are of their kinds; None is as if left out.

    Raises:
        ValueError: If one is not.
    """
    found = dict(given)
    for name, value in given.items():
        if value is None:
            continue
        if name in _NUMBERS:
            found[name] = whole_number(name, value)
        elif name in _KINDS:
            types, words = _KINDS[name]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise ValueError(f"{name} must be {words}, got {value!r}; correct it")
    return found


def require_known(options: Mapping[str, Any]) -> None:
    """Raise ValueError if an argument beside our own is none of the harness's that are served."""
    for name in options:
        if name not in PASSED_ON:
            raise ValueError(
                f"model_args must be among {', '.join(OWN + PASSED_ON)}, got {name!r}; leave it "
                "out, or run the harness's own model hf"
            )


def require_sense(
    name: str | None,
    *,
    k: int | None,
    seed: int | None,
    layers: Layers,
    intervention: Intervention | None,
) -> None:
    """Raise ValueError if an argument means nothing beside the others."""
    given = {"k": k, "seed": seed, "layers": layers}
    idle = next((key for key, value in given.items() if value is not None), None)
    if intervention is not None:
        if name is not None or idle is not None:
            raise ValueError(
                f"an intervention must come alone, got it with {idle or 'preset'}; say all in it"
            )
        return
    if name is None:
        if idle is not None:
            raise ValueError(
                f"{idle} must come with a preset, got {given[idle]!r} without; add preset=paper, "
                "or leave it out"
            )
        return
    preset(name)
    if k is not None:
        whole_number("k", k)
    entry = PRESETS[name]
    if k is not None and not entry.dosed:
        raise ValueError(
            f"k must be left out for the preset {name!r}, which chooses without it, got {k}; "
            "preset=paper takes the k largest"
        )
    if seed is not None and not entry.seeded:
        raise ValueError(
            f"seed must be left out for the preset {name!r}, which draws nothing, got {seed}"
        )
    if layers is not None and entry.matched_to is not None:
        raise ValueError(
            f"layers must be left out for the preset {name!r}, which is matched to "
            f"{entry.matched_to} in all of them, got {layers!r}"
        )


def loaded(
    pretrained: str | HookedModel,
    *,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> HookedModel:
    """The model that is meant.

    Raises:
        ValueError: If the type of the weights does not exist, or what decides how a model is loaded
            comes with one that is.
    """
    if not isinstance(pretrained, str):
        for name, value in (("device", device), ("dtype", dtype), ("revision", revision)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out with a loaded model, got {value!r}; give it to "
                    "load_model"
                )
        return pretrained
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = device or "cpu"
    if place.startswith("cuda") and not torch.cuda.is_available():
        place = "cpu"  # cuda:0 is what the harness's command asks for where nobody says anything
    return load_model(
        pretrained,
        device=place,
        dtype=DTYPES[dtype or "float32"],
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def chosen_arm(
    model: HookedModel, name: str | None, *, k: int | None, seed: int | None
) -> Arm | None:
    """The named edit, its strength matched where the preset asks for it, as in `run_disruption`.

    Raises:
        ValueError: If the strength cannot be matched on this model.
    """
    if name is None:
        return None
    arm = Arm(preset=name, k=PRESETS[name].k if k is None else k, seed=seed or 0)
    require_ready(model, arm.intervention)
    config = DisruptionConfig()
    neutral = tokenize_prompts(
        model.tokenizer,
        default_passages()[: config.n_neutral],
        max_length=config.neutral_length,
    )
    (matched,) = match_arms(model, (arm,), neutral)
    return matched


def own_tokenizer(model: HookedModel, options: Mapping[str, Any]) -> Any:
    """A copy of the model's tokenizer, for the harness may give it a padding token."""
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    if options.get("add_bos_token") is not None:  # the harness says it while it loads one
        tokenizer.add_bos_token = options["add_bos_token"]
    return tokenizer


def in_layers(intervention: Intervention, layers: Layers) -> Intervention:
    """The same edit in some blocks alone."""
    if layers is None:
        return intervention
    return replace(intervention, where=replace(intervention.where, layers=_blocks(layers)))


def require_ready(model: HookedModel, intervention: Intervention) -> None:
    """Raise ValueError unless the edit fits the model and needs nothing from outside a prompt."""
    needs = {"dataset_mean": "a capture", "resampled": "a donor prompt", "mask": "masks"}
    for choice in (intervention.value.kind, intervention.selection.rule):
        if choice in needs:
            raise ValueError(
                f"an intervention must need nothing but the prompt in the harness, got {choice!r}, "
                f"which needs {needs[choice]}; use mi_massive.disrupt"
            )
    make_disruptor(model, intervention, None, None, None, None, None)


def whole_number(name: str, value: Any) -> int:
    """A number, which the harness's command may give as text."""
    least, example = _NUMBERS[name]
    if not re.fullmatch(r"\d+", str(value)) or int(value) < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}; try {example}"
        )
    return int(value)


def _blocks(layers: int | str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(layers, int):
        return (layers,)
    return blocks_of(layers) if isinstance(layers, str) else tuple(layers)
