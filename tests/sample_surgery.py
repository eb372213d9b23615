"""A result of frequency surgery with planted numbers."""

from typing import Any

import torch
from builders import build_provenance

from mi_massive.attention_effects import EffectsResult
from mi_massive.position_shares import BandShares, PositionSharesConfig, PositionSharesResult
from mi_massive.scores import Answer, EvaluationConfig, TaskResult, cells_of
from mi_massive.stats import Estimate
from mi_massive.surgery import SurgeryConfig, SurgeryResult
from mi_massive.surgery_plans import surgery_arms

N_BANDS = 4
ARMS = surgery_arms(n_bands=N_BANDS)


def number(effect: float) -> Estimate:
    return Estimate(
        effect=effect,
        low=effect - 0.1,
        high=effect + 0.1,
        n=4,
        n_of="passages",
        test="none",
        p_value=0.5,
        null=0.25,
    )


def task_result(task: str, shift: int) -> TaskResult:
    answers = tuple(
        Answer(
            id=str(i),
            group="",
            condition="",
            text=None,
            extracted=None,
            correct=None,
            legacy_correct=None,
            log_probs=(float((i + shift) % 3) - 0.5, 0.0),
            gold=0,
        )
        for i in range(12)
    )
    return TaskResult(
        task=task,
        kind="contextual",
        version=1,
        digest="0" * 64,
        chance=0.0,
        options_chance=0.5,
        answers=answers,
        n_edits=1,
        config=EvaluationConfig(readouts=("options",)),
        provenance=build_provenance(),
    )


def shares(**changes: Any) -> PositionSharesResult:
    values = torch.rand(2, 4, N_BANDS, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {
        "share": values,
        "shuffled": values,
        "floor": values,
        "variance_share": values,
        "bands": tuple(
            BandShares(
                band=band,
                shortest=10.0**band,
                longest=4 * 10.0**band,
                position_share=number(0.5 - 0.1 * band),
                shuffled=number(0.4),
                floor=number(0.05),
                variance_share=number(0.3),
            )
            for band in range(N_BANDS)
        ),
        "fast_minus_slow": number(0.2),
        "layers": (0, 1),
        "config": PositionSharesConfig(n_bands=N_BANDS),
        "provenance": build_provenance(),
    }
    return PositionSharesResult(**made | changes)


def surgery_result(model: str = "smollm2-135m-instruct") -> SurgeryResult:
    """Every arm on two tasks and neutral text; nothing by distance or before the rotation."""
    names = [arm.name for arm in ARMS]
    generator = torch.Generator().manual_seed(1)
    effects = EffectsResult(
        arms=("intact", *names),
        sink_mass=torch.rand(1 + len(names), 4, 2, generator=generator),
        attention_kl=torch.rand(1 + len(names), 4, 2, generator=generator),
        cross_entropy=torch.rand(1 + len(names), 4, generator=generator),
        layers=(0, 1),
        strengths={},
        provenance=build_provenance(model=model),
    )
    intact = [task_result(task, 0) for task in ("keys", "facts")]
    by_arm = {
        name: [task_result(task, i % 3) for task in ("keys", "facts")]
        for i, name in enumerate(names)
    }
    return SurgeryResult(
        arms=ARMS,
        cells=cells_of(intact, by_arm),
        contrasts=(),
        distances=(),
        effects=effects,
        shares=shares(),
        norms=(),
        config=SurgeryConfig(),
        provenance=build_provenance(model=model),
    )
