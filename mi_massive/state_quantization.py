"""Must massive channels be protected when attention states are quantized? The factorial (C7).

Answers by arms in which nothing but the protection changes: bits, crossed with the massive channels
of each head kept exact, or equally many random, same-band or norm-matched ones, or none, crossed
with the first token kept exact or not; and a Hadamard rotation instead. Each is measured against
full precision: cross-entropy of neutral text, change of the attention, errors of the states, and
tasks. Costs a pass a passage and arm, and one evaluation of every task an arm. Cells are kept on
disk if a folder is given, so that a killed run goes on where it stopped.

Does not show: that one quantizer is better than another, or anything about weights. Neutral text is
read in one pass: scales per channel then know the whole text.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from mi_massive._cells import kept, kept_evaluation, task_key
from mi_massive._protection_gains import task_gains, text_gains
from mi_massive.attention_effects import EffectsResult, measure_contexts
from mi_massive.axes import Projection
from mi_massive.capture import capture_norms
from mi_massive.contrasts import ArmContrast, contrasts
from mi_massive.evaluation import evaluate_within, with_tasks
from mi_massive.models.base import HookedModel
from mi_massive.prompts import TokenizedPrompts, default_passages, tokenize_prompts
from mi_massive.protection import StateQuantizationConfig, StateQuantizationResult
from mi_massive.quantization_arms import QuantizationArm, protected_channels
from mi_massive.quantizer import Quantizer, make_quantizer, quantized_states
from mi_massive.scores import INTACT, TaskResult, cells_of
from mi_massive.state_errors import measure_state_errors
from mi_massive.tasks.base import Task, require_different_names

Context = Callable[[], AbstractContextManager[Quantizer]]


def run_state_quantization(
    model: HookedModel,
    tasks: Sequence[Task],
    *,
    passages: TokenizedPrompts | None = None,
    config: StateQuantizationConfig | None = None,
    cells: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> StateQuantizationResult:
    """Measure full precision and every arm of the factorial on neutral text and on tasks.

    Args:
        model: From `load_model`; a decoder with a language-modelling head.
        tasks: From `load_tasks`; none leaves neutral text alone.
        passages: Text whose norms decide what is massive, and whose first prompts, cut, are the
            neutral text; the package's own by default, which needs a tokenizer.
        config: Levels of the factorial, read-outs, neutral text.
        cells: Folder for every finished piece; a later run with the same arguments takes them from
            there.
        on_progress: Called with the number of pieces finished since the last call: an arm's text,
            or a task asked of an arm.

    Returns:
        Gains of the massive channels beside those of equally many others, per extra bit stored.

    Raises:
        ValueError: If two tasks have one name, there are fewer passages than `n_neutral`, a plan
            does not fit the model (see `quantized_states`), `same_band` is asked of a model that
            does not rotate, or a task cannot be asked (see `evaluate`).
        UnsupportedModelError: If the model was wrapped or cannot answer.
    """
    config = config or StateQuantizationConfig()
    require_different_names(tasks)
    if passages is None:
        passages = tokenize_prompts(model.tokenizer, default_passages())
    if config.n_neutral > len(passages):
        raise ValueError(
            f"n_neutral must be at most the number of passages ({len(passages)}), got "
            f"{config.n_neutral}; give more, or lower it"
        )
    norms = kept(
        cells, "norms", model, {"p": passages.digest}, partial(capture_norms, model, passages)
    )
    neutral = tokenize_prompts(
        None, passages.input_ids[: config.n_neutral], max_length=config.neutral_length
    )
    arms = config.arms()
    masks = {arm.name: arm.masks(norms) for arm in arms}
    contexts = {
        arm.name: partial(quantized_states, model, arm.plan, protect=masks[arm.name])
        for arm in arms
    }
    quantizers = {arm.name: make_quantizer(model, arm.plan, masks[arm.name]) for arm in arms}
    told: Callable[[int], None] = on_progress or (lambda _: None)
    digests = {"prompts": neutral.digest, "p": passages.digest}
    effects = _effects(model, arms, contexts, neutral, digests, cells, told)
    massive: dict[Projection, Bool[Tensor, "layer head d_head"]] = {
        p: protected_channels(norms, p, "massive", ratio=config.ratio)
        for p in config.plan.projections
    }
    errors = kept(
        cells,
        "state-errors",
        model,
        {"arms": list(arms), **digests},
        partial(measure_state_errors, model, neutral, quantizers, massive=massive),
    )
    asked = [arm for arm in arms if config.asks(arm)]
    intact, by_arm = _answers(model, tasks, asked, contexts, config, passages.digest, cells, told)
    n_tokens = round(sum(map(len, neutral.input_ids)) / len(neutral.input_ids))
    extra_bits = {arm.name: arm.extra_bits(masks[arm.name], n_tokens=n_tokens) for arm in arms}
    gains = text_gains(arms, effects, extra_bits, seed=config.seed)
    for readout in config.evaluation.readouts:
        gains += task_gains(asked, by_arm, extra_bits, readout=readout, seed=config.seed)
    return StateQuantizationResult(
        arms=arms,
        extra_bits=extra_bits,
        massive_per_head={p: float(mask.sum(dim=-1).float().mean()) for p, mask in massive.items()},
        effects=effects,
        errors=errors,
        gains=tuple(gains),
        cells=cells_of(intact, by_arm, seed=config.seed) if tasks else (),
        contrasts=_contrasts(intact, by_arm, asked, config),
        config=config,
        provenance=with_tasks(effects.provenance, intact, seed=config.seed),
    )


def _effects(
    model: HookedModel,
    arms: Sequence[QuantizationArm],
    contexts: Mapping[str, Context],
    neutral: TokenizedPrompts,
    digests: Mapping[str, str],
    cells: Path | None,
    told: Callable[[int], None],
) -> EffectsResult:
    """Neutral text under every arm, one cell for each number of bits."""
    parts: list[EffectsResult] = []
    for bits in dict.fromkeys(arm.plan.bits for arm in arms):
        own = [arm for arm in arms if arm.plan.bits == bits]
        named = {arm.name: contexts[arm.name] for arm in own}
        measure = partial(measure_contexts, model, neutral, named)
        arguments = {"arms": own, **digests}
        parts.append(kept(cells, f"quantized-text-{bits}", model, arguments, measure))
        told(len(own))

    def joined(of: Callable[[EffectsResult], Tensor]) -> Tensor:
        return torch.cat([of(parts[0])[:1], *(of(part)[1:] for part in parts)])

    return replace(
        parts[0],
        arms=(INTACT, *(name for part in parts for name in part.arms[1:])),
        sink_mass=joined(lambda part: part.sink_mass),
        attention_kl=joined(lambda part: part.attention_kl),
        cross_entropy=joined(lambda part: part.cross_entropy),
    )


def _answers(
    model: HookedModel,
    tasks: Sequence[Task],
    arms: Sequence[QuantizationArm],
    contexts: Mapping[str, Context],
    config: StateQuantizationConfig,
    passages: str,
    cells: Path | None,
    told: Callable[[int], None],
) -> tuple[list[TaskResult], dict[str, list[TaskResult]]]:
    """Every task asked at full precision, and of every arm."""
    intact: list[TaskResult] = []
    by_arm: dict[str, list[TaskResult]] = {arm.name: [] for arm in arms}
    asked = config.evaluation
    for task in tasks:
        intact.append(kept_evaluation(cells, INTACT, model, task, intervention=None, config=asked))
        for arm in arms:
            arguments = {"task": task_key(task), "states": arm, "config": asked, "p": passages}
            run = partial(evaluate_within, model, task, contexts[arm.name], asked)
            by_arm[arm.name].append(kept(cells, f"{task.name}-{arm.name}", model, arguments, run))
            told(1)
    return intact, by_arm


def _contrasts(
    intact: Sequence[TaskResult],
    by_arm: Mapping[str, Sequence[TaskResult]],
    arms: Sequence[QuantizationArm],
    config: StateQuantizationConfig,
) -> tuple[ArmContrast, ...]:
    """Contextual minus parametric losses; massive channels against random ones."""
    controls = {
        arm.name: tuple(
            other.name for other in arms if (other.protected, other.plan) == ("random", arm.plan)
        )
        for arm in arms
        if arm.protected == "massive"
    }
    return tuple(
        contrast
        for readout in config.evaluation.readouts
        if intact
        for contrast in contrasts(
            intact,
            by_arm,
            readout=readout,
            controls=controls,
            n_resamples=config.n_resamples,
            seed=config.seed,
        )
    )
