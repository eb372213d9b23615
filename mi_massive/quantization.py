"""Quantized copies of one model beside full precision, on the same prompts and tasks (C7).

Answers what round to nearest, GPTQ, AWQ and SmoothQuant cost at equal bits and from the same
calibration texts: how massive masks change, how far rotated queries and keys move, what neutral
text and tasks lose, each paired with full precision. Costs the quantization (see
`mi_massive.models.compression`), three passes over the neutral text and one evaluation of every
task for each scheme. Cells are kept on disk if a folder is given, so that a killed run goes on.

Does not show: speed or memory, or that a method wins because of massive values.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mi_massive._cells import kept, kept_evaluation
from mi_massive.attention_effects import EffectsResult, measure_contexts
from mi_massive.axes import Projection
from mi_massive.capture import capture_norms
from mi_massive.concentration import massive_mask
from mi_massive.contrasts import ArmContrast, GroupContrast, contrasts, group_contrast
from mi_massive.evaluation import with_tasks
from mi_massive.models.base import HookedModel
from mi_massive.models.compression import quantization_of, quantize, require_quantizable
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts, default_passages, tokenize_prompts
from mi_massive.quantization_results import (
    MaskChange,
    QuantizationConfig,
    QuantizationResult,
    mask_change,
)
from mi_massive.quantization_schemes import QuantizationScheme
from mi_massive.scores import INTACT, Readout, TaskResult, cells_of
from mi_massive.state_errors import StateErrors, compare_states
from mi_massive.tasks.base import Task, require_different_names
from mi_massive.weight_protection import run_weight_protection

_PROJECTIONS: tuple[Projection, ...] = ("q", "k")


def compare_quantized(
    model: HookedModel,
    tasks: Sequence[Task],
    *,
    config: QuantizationConfig | None = None,
    calibration: TokenizedPrompts | Sequence[str] | None = None,
    cells: Path | None = None,
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> QuantizationResult:
    """Measure full precision and every scheme.

    Args:
        model: From `load_model`, at full precision; a decoder with a head and a tokenizer.
        tasks: From `load_tasks`; none leaves neutral text alone.
        config: Schemes, neutral text, read-outs, and the factorial on rows.
        calibration: Texts for methods that look at some; None: the default passages after those of
            neutral text.
        cells: Folder for every finished piece; a later run with the same arguments takes them from
            there.
        cache: Folder of quantized models; see `quantize`.
        on_progress: Called with the number of pieces finished since the last call: the rounding of
            a scheme, full precision or a scheme on text, a task asked of one of them, an arm of
            the factorial.

    Raises:
        ValueError: If two tasks have one name, a scheme does not fit the model, the calibration is
            too short, or a task cannot be asked (see `quantize`, `evaluate`).
        UnsupportedModelError: If the model is quantized already, or has no separate W_Q and W_K
            where the factorial is asked for.
        RuntimeError: If the extra `quantize` is not installed.
    """
    config = config or QuantizationConfig()
    require_different_names(tasks)
    names = [task.name for task in tasks]
    for name in config.row_tasks:
        if name not in names:
            raise ValueError(f"row_tasks must be among the tasks {', '.join(names)}, got {name!r}")
    told: Callable[[int], None] = on_progress or (lambda _: None)
    passages = default_passages()
    neutral = tokenize_prompts(
        model.tokenizer, passages[: config.n_neutral], max_length=config.neutral_length
    )
    texts = passages[config.n_neutral :] if calibration is None else calibration
    require_quantizable(model, config.schemes, texts)
    norms, effects, intact = _measured(model, tasks, neutral, INTACT, config, cells, told)
    rows = None
    if config.rows is not None:
        rows = run_weight_protection(
            model,
            [task for task in tasks if task.name in config.row_tasks],
            neutral,
            norms,
            config=config.rows,
            evaluation=config.evaluation,
            n_resamples=config.n_resamples,
            seed=config.seed,
            cells=cells,
            on_progress=told,
        )
    massive: dict[Projection, torch.Tensor] = {
        p: massive_mask(norms.sums(p).pooled_norms(), ratio=config.ratio) for p in _PROJECTIONS
    }
    stored: dict[str, float] = {}
    losses, errors = [effects.cross_entropy[0]], list[StateErrors]()
    masks: list[MaskChange] = []
    by_arm: dict[str, list[TaskResult]] = {}
    for scheme in config.schemes:
        held = _quantized(model, scheme, texts, cache)
        told(1)
        stored[scheme.name] = float((quantization_of(held) or {})["bits_per_weight"])
        own, changed, by_arm[scheme.name] = _measured(
            held, tasks, neutral, scheme.name, config, cells, told
        )
        losses.append(changed.cross_entropy[0])
        for p in _PROJECTIONS:
            after = own.sums(p).pooled_norms()
            both = (massive[p], massive_mask(after, ratio=config.ratio))
            masks.append(mask_change(scheme.name, p, norms.sums(p).pooled_norms(), after, both))
        errors.append(
            kept(
                cells,
                f"states-{scheme.name}",
                held,
                {"prompts": neutral.digest, "ratio": config.ratio, "beside": model.revision},
                partial(
                    compare_states,
                    model,
                    neutral,
                    {scheme.name: partial(nullcontext, held)},
                    massive=massive,
                ),
            )
        )
    return QuantizationResult(
        schemes=config.schemes,
        bits_per_weight=stored,
        masks=tuple(masks),
        errors=StateErrors(
            arms=tuple(by_arm),
            projections=_PROJECTIONS,
            relative=torch.cat([error.relative for error in errors]),
        ),
        cross_entropy=torch.stack(losses),
        cells=cells_of(intact, by_arm, seed=config.seed) if tasks else (),
        contrasts=_contrasts(intact, by_arm, config),
        methods=_methods(intact, by_arm, config),
        rows=rows,
        config=config,
        provenance=with_tasks(effects.provenance, intact, seed=config.seed),
    )


def _quantized(
    model: HookedModel,
    scheme: QuantizationScheme,
    calibration: TokenizedPrompts | Sequence[str],
    cache: Path | None,
) -> HookedModel:
    drawn: dict[str, Any] = {} if scheme.group is None else {"group": scheme.group}
    if scheme.calibrates:
        drawn |= {
            "calibration": calibration,
            "n_calibration": scheme.n_calibration,
            "calibration_length": scheme.calibration_length,
            "seed": scheme.seed,
        }
    return quantize(
        model,
        method=scheme.method,
        bits=scheme.bits,
        activation_bits=scheme.activation_bits,
        cache=cache,
        **drawn,
    )


def _measured(
    model: HookedModel,
    tasks: Sequence[Task],
    neutral: TokenizedPrompts,
    name: str,
    config: QuantizationConfig,
    cells: Path | None,
    told: Callable[[int], None],
) -> tuple[AttentionNorms, EffectsResult, list[TaskResult]]:
    """Norms, cross-entropy and answers of one model."""
    of = {"prompts": neutral.digest}
    norms = kept(cells, f"norms-{name}", model, of, partial(capture_norms, model, neutral))
    effects = kept(cells, f"text-{name}", model, of, partial(measure_contexts, model, neutral, {}))
    told(1)
    answers: list[TaskResult] = []
    for task in tasks:
        answers.append(
            kept_evaluation(cells, name, model, task, intervention=None, config=config.evaluation)
        )
        told(1)
    return norms, effects, answers


def _contrasts(
    intact: Sequence[TaskResult],
    by_arm: Mapping[str, Sequence[TaskResult]],
    config: QuantizationConfig,
) -> tuple[ArmContrast, ...]:
    """Contextual minus parametric losses of every scheme."""
    found: list[ArmContrast] = []
    for readout in config.evaluation.readouts if intact else ():
        found += contrasts(
            intact,
            by_arm,
            readout=readout,
            controls={},
            n_resamples=config.n_resamples,
            seed=config.seed,
        )
    return tuple(found)


def _methods(
    intact: Sequence[TaskResult],
    by_arm: Mapping[str, Sequence[TaskResult]],
    config: QuantizationConfig,
) -> tuple[GroupContrast, ...]:
    """Protecting methods against the others, at every level that has both."""
    found: list[GroupContrast] = []
    for level in dict.fromkeys(scheme.level for scheme in config.schemes):
        own = [scheme for scheme in config.schemes if scheme.level == level]
        groups = [
            tuple(
                tuple(scheme.name for scheme in own if scheme.method == method)
                for method in dict.fromkeys(s.method for s in own if s.protects == protects)
            )
            for protects in (True, False)
        ]
        readouts: tuple[Readout, ...] = config.evaluation.readouts if all(groups) and intact else ()
        found += [
            group_contrast(
                intact,
                by_arm,
                level=level,
                first=groups[1],
                second=groups[0],
                readout=readout,
                n_resamples=config.n_resamples,
                seed=config.seed,
            )
            for readout in readouts
        ]
    return tuple(found)
