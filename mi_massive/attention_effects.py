"""How far an intervention moves the attention, and how much general damage it does.

Answers, on neutral text: the share of attention that the first token gets (the sink), the change of
the attention in nats, and the cross-entropy of the text, with and without the intervention, prompt
by prompt. Costs one pass an arm with the eager kernel, over prompts of one length together, with
their patterns in all layers in memory.

Does not show: whether the change is for the worse. The dimensions of a prompt are chosen on the
whole of it, as in the paper, so its cross-entropy is not that of a causal reader.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive.capture import provenance_of
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models.attention import watching_patterns
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate

_TINY: Final = torch.finfo(torch.float32).tiny
_MOST_PROMPTS: Final = 16
_MOST_WEIGHTS: Final = 2**27
"""Prompts of a pass, and attention weights of all its layers, at most; one prompt may have more."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class EffectsResult(Brief):
    """What each arm does to the attention and to the text's cross-entropy, prompt by prompt."""

    arms: tuple[str, ...]
    """`intact` first."""
    sink_mass: Float[Tensor, "arm prompt layer"] = field(repr=False)
    """Attention on the first token, mean over heads and all later queries; 0..1."""
    attention_kl: Float[Tensor, "arm prompt layer"] = field(repr=False)
    """KL of the attention from that of the intact model, in nats, mean over heads and queries.

    0 for `intact`.
    """
    cross_entropy: Float[Tensor, "arm prompt"] = field(repr=False)
    """Mean negative log-probability of each next token, in nats."""
    layers: tuple[int, ...]
    """Block index of each entry of the layer axis."""
    strengths: dict[str, float]
    """Strength of each arm's replacement."""
    provenance: Provenance

    def of(self, arm: str) -> dict[str, Estimate]:
        """Sink mass, KL and cross-entropy of one arm with intervals over prompts.

        `added_cross_entropy` is paired with the intact model and tested (sign flips).

        Raises:
            ValueError: If there is no such arm.
        """
        if arm not in self.arms:
            raise ValueError(f"arm must be one of {', '.join(self.arms)}, got {arm!r}")
        index = self.arms.index(arm)
        loss = _array(self.cross_entropy)
        return {
            "sink_mass": _over_prompts(_array(self.sink_mass[index].mean(dim=-1))),
            "attention_kl": _over_prompts(_array(self.attention_kl[index].mean(dim=-1))),
            "cross_entropy": _over_prompts(loss[index]),
            "added_cross_entropy": _over_prompts(loss[index] - loss[0], null=0.0),
        }

    def to_frame(self) -> Any:
        """The measures as a data frame (pandas), one row an arm and prompt, means over layers."""
        import pandas as pd

        sink, kl = self.sink_mass.mean(dim=-1), self.attention_kl.mean(dim=-1)
        rows = [
            {
                "arm": arm,
                "prompt": prompt,
                "sink_mass": float(sink[row, prompt]),
                "attention_kl": float(kl[row, prompt]),
                "cross_entropy": float(self.cross_entropy[row, prompt]),
            }
            for row, arm in enumerate(self.arms)
            for prompt in range(self.cross_entropy.shape[1])
        ]
        return pd.DataFrame(rows)

    def added_beyond(self, arm: str, controls: Sequence[str]) -> Estimate:
        """Cross-entropy under an arm minus the mean of others, paired and tested as `of` does."""
        loss = _array(self.cross_entropy)
        others = loss[[self.arms.index(control) for control in controls]].mean(axis=0)
        return _over_prompts(loss[self.arms.index(arm)] - others, null=0.0)


def measure_effects(
    model: HookedModel,
    prompts: TokenizedPrompts,
    arms: Mapping[str, Intervention],
    *,
    norms: AttentionNorms | None = None,
    means: AttentionNorms | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EffectsResult:
    """Measure the attention and the cross-entropy of neutral text under each arm.

    Args:
        model: From `load_model`; a decoder with a language-modelling head.
        prompts: Neutral texts, from `tokenize_prompts`; patterns grow with the square of a length.
        arms: Interventions by name; `intact` is added.
        norms: A capture that fixes the selections; see `disrupt`.
        means: A capture that the value `dataset_mean` is the mean of; see `disrupt`.
        on_progress: Called with the number of prompts finished since the last call.

    Raises:
        ValueError: If a prompt has fewer than three tokens, or an arm is called `intact`.
        UnsupportedModelError: If the model has no language-modelling head or is an encoder.
    """
    contexts = {
        name: partial(disrupt, model, arm, norms=norms, means=means) for name, arm in arms.items()
    }
    found = measure_contexts(model, prompts, contexts, on_progress=on_progress)
    return replace(found, strengths={name: arm.value.strength for name, arm in arms.items()})


@torch.no_grad()
def measure_contexts(
    model: HookedModel,
    prompts: TokenizedPrompts,
    contexts: Mapping[str, Callable[[], AbstractContextManager[object]]],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> EffectsResult:
    """`measure_effects` of anything that changes the model inside a context.

    Args:
        model: From `load_model`; a decoder with a language-modelling head.
        prompts: Neutral texts, from `tokenize_prompts`; patterns grow with the square of a length.
        contexts: By arm, what opens its context; called once a batch. `intact` is added.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        Effects without strengths.

    Raises:
        ValueError: If a prompt has fewer than three tokens, or an arm is called `intact`.
        UnsupportedModelError: If the model has no language-modelling head or is an encoder.
    """
    if not (model.has_head and model.is_causal):
        raise UnsupportedModelError(
            f"{model.name} must be a decoder with a language-modelling head, got none"
        )
    if "intact" in contexts:
        raise ValueError("arms must not be called 'intact', which is the model itself; rename it")
    for number, ids in enumerate(prompts.input_ids):
        if len(ids) < 3:
            raise ValueError(f"prompts[{number}] must have at least 3 tokens, got {len(ids)}")
    named = {"intact": nullcontext, **contexts}
    n_layers = len(model.geometry.layers)
    shape = (len(named), len(prompts.input_ids))
    sink, moved = torch.zeros(*shape, n_layers), torch.zeros(*shape, n_layers)
    loss = torch.zeros(shape)
    n_heads = sum(layer.n_heads for layer in model.geometry.layers)
    groups = _together(prompts.input_ids, n_heads)
    for columns in groups:
        input_ids = torch.tensor([prompts.input_ids[i] for i in columns], device=model.device)
        intact: list[Tensor] = []
        for row, opened in enumerate(named.values()):
            seen = _Watched(intact if row else None)
            with opened(), watching_patterns(model.plain, seen):
                loss[row, columns] = _run(model, input_ids, seen)
            sink[row, columns] = torch.stack(seen.sink, dim=1)
            moved[row, columns] = torch.stack(seen.kl, dim=1)
            intact = seen.patterns if row == 0 else intact
        if on_progress is not None:
            on_progress(len(columns))
    return EffectsResult(
        arms=tuple(named),
        sink_mass=sink,
        attention_kl=moved,
        cross_entropy=loss,
        layers=model.geometry.blocks,
        strengths={},
        provenance=provenance_of(model, prompts, batch_size=max(map(len, groups))),
    )


def _together(rows: Sequence[Sequence[int]], n_heads: int) -> list[list[int]]:
    """Numbers of the rows of each pass: of one length, so that none is padded."""
    of_length: dict[int, list[int]] = {}
    for number, ids in enumerate(rows):
        of_length.setdefault(len(ids), []).append(number)
    groups: list[list[int]] = []
    for length, numbers in of_length.items():
        n = max(1, min(_MOST_PROMPTS, _MOST_WEIGHTS // (n_heads * length**2)))
        groups += [numbers[start : start + n] for start in range(0, len(numbers), n)]
    return groups


class _Watched:
    """Sums up the patterns of one run, layer by layer, against those of the intact model."""

    def __init__(self, intact: list[Tensor] | None) -> None:
        self._intact = intact
        self.patterns: list[Tensor] = []
        self.sink: list[Float[Tensor, "prompt"]] = []
        self.kl: list[Float[Tensor, "prompt"]] = []

    def __call__(self, block: int, pattern: Float[Tensor, "batch head pos key_pos"]) -> None:
        """Note one layer's attention weights; the first query sees only itself and is left out."""
        later = pattern[:, :, 1:].float()
        self.sink.append(later[..., 0].mean(dim=(1, 2)).cpu())
        if self._intact is None:
            self.patterns.append(later.clone())
            self.kl.append(torch.zeros(len(later)))
            return
        before = self._intact[len(self.kl)]
        logs = before.clamp_min(_TINY).log() - later.clamp_min(_TINY).log()
        self.kl.append((before * logs).sum(dim=-1).mean(dim=(1, 2)).cpu())


def _run(
    model: HookedModel, input_ids: Int[Tensor, "prompt pos"], seen: _Watched
) -> Float[Tensor, "prompt"]:
    """Cross-entropy of each prompt; `seen` has got their patterns."""
    logits = cast(Any, model.plain)(input_ids=input_ids, use_cache=False).logits
    if len(seen.sink) != len(model.geometry.layers):
        raise RuntimeError(
            f"every attention layer must show its pattern, got {len(seen.sink)} of "
            f"{len(model.geometry.layers)}"
        )
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(input_ids), -1).mean(dim=1).cpu()


def _array(values: Tensor) -> Float[np.ndarray, "..."]:
    return values.double().numpy()


def _over_prompts(values: Float[np.ndarray, "prompt"], *, null: float = math.nan) -> Estimate:
    return estimate(values, n_of="prompts", null=null, alternative="two-sided")
