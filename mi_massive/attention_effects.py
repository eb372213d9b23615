"""How far an intervention moves the attention, and how much general damage it does.

Answers, on neutral text: the share of attention that the first token gets (the sink), the change of
the attention in nats, and the cross-entropy of the text, with and without the intervention, prompt
by prompt. Costs one pass a prompt and arm with the eager kernel, with the patterns of all layers of
one prompt in memory.

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
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range, require_positive
from mi_massive.capture import provenance_of
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models.attention import watching_patterns
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.norms import AttentionNorms
from mi_massive.presets import with_strength
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate

_TINY: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EffectsResult:
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
        contexts: By arm, what opens its context; called once a prompt. `intact` is added.
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
    for column, ids in enumerate(prompts.input_ids):
        input_ids = torch.tensor([ids], device=model.device)
        intact: list[Tensor] = []
        for row, opened in enumerate(named.values()):
            seen = _Watched(intact if row else None)
            with opened(), watching_patterns(model.plain, seen):
                loss[row, column] = _run(model, input_ids, seen)
            sink[row, column], moved[row, column] = torch.tensor(seen.sink), torch.tensor(seen.kl)
            intact = seen.patterns if row == 0 else intact
        if on_progress is not None:
            on_progress(1)
    return EffectsResult(
        arms=tuple(named),
        sink_mass=sink,
        attention_kl=moved,
        cross_entropy=loss,
        layers=model.geometry.blocks,
        strengths={},
        provenance=provenance_of(model, prompts, batch_size=1),
    )


def match_effect(
    model: HookedModel,
    prompts: TokenizedPrompts,
    control: Intervention,
    *,
    attention_kl: float,
    norms: AttentionNorms | None = None,
    strengths: tuple[float, float] = (0.0, 64.0),
    tolerance: float = 0.02,
    max_steps: int = 20,
) -> Intervention:
    """Set a control's strength so that it moves the attention as far as a treatment does.

    The KL grows with the strength, first with its square: the search follows the chord between two
    strengths on logarithmic axes, where that is a straight line, and halves in between.

    Args:
        model: From `load_model`.
        prompts: Neutral texts on which the KL is measured, the same for both.
        control: The edit whose strength is set.
        attention_kl: KL of the treatment, in nats, from `measure_effects`.
        norms: See `disrupt`.
        strengths: Where to search.
        tolerance: Relative difference of the KL at which the search ends.
        max_steps: Steps at most, once the aim is bracketed.

    Returns:
        The control at the strength found.

    Raises:
        ValueError: If the largest strength does not move the attention so far, or the search ends
            outside the tolerance.
    """
    require_positive("attention_kl", attention_kl)
    require_in_range("max_steps", max_steps, low=1, high=100, unit="steps")

    def moves(strength: float) -> float:
        result = measure_effects(
            model, prompts, {"control": with_strength(control, strength)}, norms=norms
        )
        return float(result.attention_kl[1].mean())

    low, high = strengths
    strength = min(max(1.0, low), high)
    reached, below = moves(strength), 0.0
    while reached < attention_kl and strength < high:
        low, below, strength = strength, reached, min(2 * strength, high)
        reached = moves(strength)
    if reached < attention_kl * (1 - tolerance):
        raise ValueError(
            f"the control must be able to move the attention by {attention_kl:.3g} nats, got "
            f"{reached:.3g} at strength {strength:g}; edit more dimensions"
        )
    high, above = strength, reached
    for step in range(max_steps):
        if math.isclose(reached, attention_kl, rel_tol=tolerance):
            break
        # Halving now and then: a chord alone can creep along a curve that bends one way.
        halve = step % 3 == 2
        strength = (low + high) / 2 if halve else _chord(low, high, below, above, attention_kl)
        reached = moves(strength)
        if reached < attention_kl:
            low, below = strength, reached
        else:
            high, above = strength, reached
    if not math.isclose(reached, attention_kl, rel_tol=tolerance):
        raise ValueError(
            f"max_steps must suffice to move the attention by {attention_kl:.3g} nats, got "
            f"{reached:.3g} at strength {strength:g} after {max_steps}; allow more steps or a "
            "larger tolerance"
        )
    return with_strength(control, strength)


def _chord(low: float, high: float, below: float, above: float, aim: float) -> float:
    """Strength between two at which a power law through their effects reaches `aim`."""
    if low <= 0 or below <= 0:
        return max(low, high * math.sqrt(aim / above))
    return low * (high / low) ** (math.log(aim / below) / math.log(above / below))


class _Watched:
    """Sums up the patterns of one run, layer by layer, against those of the intact model."""

    def __init__(self, intact: list[Tensor] | None) -> None:
        self._intact = intact
        self.patterns: list[Tensor] = []
        self.sink: list[float] = []
        self.kl: list[float] = []

    def __call__(self, block: int, pattern: Float[Tensor, "batch head pos key_pos"]) -> None:
        """Note one layer's attention weights; the first query sees only itself and is left out."""
        later = pattern[0, :, 1:].float()
        self.sink.append(float(later[..., 0].mean()))
        if self._intact is None:
            self.patterns.append(later.clone())
            self.kl.append(0.0)
            return
        before = self._intact[len(self.kl)]
        logs = before.clamp_min(_TINY).log() - later.clamp_min(_TINY).log()
        self.kl.append(float((before * logs).sum(dim=-1).mean()))


def _run(model: HookedModel, input_ids: Tensor, seen: _Watched) -> float:
    """Cross-entropy of a prompt; `seen` has got its patterns."""
    logits = cast(Any, model.plain)(input_ids=input_ids, use_cache=False).logits[0]
    if len(seen.sink) != len(model.geometry.layers):
        raise RuntimeError(
            f"every attention layer must show its pattern, got {len(seen.sink)} of "
            f"{len(model.geometry.layers)}"
        )
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), input_ids[0, 1:]))


def _array(values: Tensor) -> Float[np.ndarray, "..."]:
    return values.double().numpy()


def _over_prompts(values: Float[np.ndarray, "prompt"], *, null: float = math.nan) -> Estimate:
    return estimate(values, n_of="prompts", null=null, alternative="two-sided")
