"""The conditions of an experiment: named presets at k dimensions, with controls matched to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from mi_massive._cells import kept
from mi_massive._checks import require_not_empty
from mi_massive._choices import Intervention
from mi_massive.attention_effects import EffectsResult, measure_effects
from mi_massive.effect_matching import match_effect
from mi_massive.models.base import HookedModel
from mi_massive.presets import PRESETS, Role, preset, with_strength
from mi_massive.prompts import TokenizedPrompts, default_passages, tokenize_prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One condition: a named preset at k dimensions of each head."""

    preset: str
    k: int
    seed: int = 0
    strength: float = 1.0
    """Of the replacement; set by matching where the preset asks for it."""
    layers: tuple[int, ...] | None = None
    """Block indices that it edits; None for all."""

    @property
    def name(self) -> str:
        """`paper k=4`, with the seed and the layers where they decide; no k where it does not."""
        return self._name(seeded=PRESETS[self.preset].seeded)

    @property
    def condition(self) -> str:
        """The name without a seed: what arms that differ in their draw share."""
        return self._name(seeded=False)

    def _name(self, *, seeded: bool) -> str:
        dose = f" k={self.k}" if PRESETS[self.preset].dosed else ""
        seed = f" seed={self.seed}" if seeded else ""
        layers = "" if self.layers is None else f" layers={','.join(map(str, self.layers))}"
        return f"{self.preset}{dose}{seed}{layers}"

    @property
    def role(self) -> Role:
        """Treatment or control."""
        return PRESETS[self.preset].role

    @property
    def summary(self) -> str:
        """What the preset does, in words."""
        return PRESETS[self.preset].summary

    @property
    def intervention(self) -> Intervention:
        """What is edited."""
        made = preset(self.preset, k=self.k, seed=self.seed)
        if self.layers is not None:
            made = replace(made, where=replace(made.where, layers=self.layers))
        return made if self.strength == 1.0 else with_strength(made, self.strength)


def make_arms(
    presets: Sequence[str],
    *,
    ks: Sequence[int] | None = None,
    n_seeds: int = 1,
    layers: Sequence[int] | None = None,
) -> tuple[Arm, ...]:
    """Arms of each preset at each k.

    Args:
        presets: Keys of `mi_massive.presets.PRESETS`.
        ks: Dimensions of each head; None takes each preset's own number, which for `authors_*` is
            that of the published code.
        n_seeds: Seeds of the presets that draw their dimensions.
        layers: Block indices that every arm edits; None for all.

    Returns:
        Arms in the order of the presets, then of the doses, then of the seeds.

    Raises:
        ValueError: If a preset does not exist or there is none, or `ks` is empty or used by none.
    """
    if ks is not None:
        require_not_empty("ks", ks, remedy="give at least one number, or None")
    require_not_empty("presets", presets, remedy=f"choose from {', '.join(PRESETS)}")
    for name in presets:
        preset(name)
    if ks is not None and not any(PRESETS[name].dosed for name in presets):
        raise ValueError(
            f"ks (option --k) must be left out for presets that have no k, got {list(ks)} for "
            f"{', '.join(presets)}; take the preset paper for the k largest dimensions"
        )
    where = None if layers is None else tuple(layers)
    arms: list[Arm] = []
    for name in presets:
        entry = PRESETS[name]
        seeds = range(n_seeds if entry.seeded else 1)
        doses = ks if entry.dosed and ks is not None else (entry.k,)
        arms += [Arm(preset=name, k=k, seed=seed, layers=where) for k in doses for seed in seeds]
    return tuple(arms)


def prepare_arms(
    model: HookedModel,
    arms: Sequence[Arm],
    *,
    n_neutral: int,
    neutral_length: int,
    cells: Path | None = None,
) -> tuple[tuple[Arm, ...], EffectsResult]:
    """Match the arms that ask for it, and measure what every arm does to neutral text.

    Args:
        model: From `load_model`.
        arms: From `make_arms`.
        n_neutral: Default passages to measure on.
        neutral_length: Tokens of each.
        cells: Folder that keeps strengths and effects.

    Returns:
        The arms at their strengths, and their effects.

    Raises:
        ValueError: If two arms have one name, or a control cannot be matched.
    """
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError("arms must have different names, got one twice; leave it out")
    neutral = tokenize_prompts(
        model.tokenizer, default_passages()[:n_neutral], max_length=neutral_length
    )
    matched = match_arms(model, arms, neutral, cells=cells)
    edits = {arm.name: arm.intervention for arm in matched}
    arguments = {"arms": edits, "prompts": neutral.digest}
    measure = partial(measure_effects, model, neutral, edits)
    return matched, kept(cells, "effects", model, arguments, measure)


def match_arms(
    model: HookedModel,
    arms: Sequence[Arm],
    neutral: TokenizedPrompts,
    *,
    cells: Path | None = None,
) -> tuple[Arm, ...]:
    """Set the strength of every arm whose preset is matched to another, at the same k.

    Args:
        model: From `load_model`.
        arms: From `make_arms`.
        neutral: Texts on which the attention is compared.
        cells: Folder that keeps the strengths found.

    Raises:
        ValueError: If a control cannot move the attention as far as its treatment.
    """
    found: list[Arm] = []
    # How far each treatment moves the attention: measured once for all seeds of its controls.
    moved = cache(partial(_moved, model, neutral))
    for arm in arms:
        target = PRESETS[arm.preset].matched_to
        if target is None:
            found.append(arm)
            continue
        treatment = Arm(preset=target, k=arm.k, layers=arm.layers).intervention
        arguments = {"control": arm.intervention, "to": treatment, "prompts": neutral.digest}
        matched = partial(_matched, model, arm, treatment, neutral, moved)
        found.append(kept(cells, f"match-{arm.name}", model, arguments, matched))
    return tuple(found)


def matched_controls(arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    """For each arm by name the arms that were matched to it: every seed of its control."""
    found: dict[str, tuple[str, ...]] = {}
    for control in arms:
        target = PRESETS[control.preset].matched_to
        for arm in arms:
            if (arm.preset, arm.k, arm.layers) == (target, control.k, control.layers):
                found[arm.name] = (*found.get(arm.name, ()), control.name)
    return found


def controls_at(arms: Sequence[Arm], arm: Arm) -> tuple[Arm, ...]:
    """Every control with as many dimensions as an arm, in the same layers."""
    return tuple(
        other
        for other in arms
        if other.role == "control" and (other.k, other.layers) == (arm.k, arm.layers)
    )


def _moved(model: HookedModel, neutral: TokenizedPrompts, treatment: Intervention) -> float:
    """How far a treatment moves the attention, in nats."""
    return float(measure_effects(model, neutral, {"it": treatment}).attention_kl[1].mean())


def _matched(
    model: HookedModel,
    arm: Arm,
    treatment: Intervention,
    neutral: TokenizedPrompts,
    moved: Callable[[Intervention], float],
) -> Arm:
    control = match_effect(model, neutral, arm.intervention, attention_kl=moved(treatment))
    return replace(arm, strength=control.value.strength)
