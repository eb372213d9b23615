"""Scores that the paper printed, to stand beside measured ones. They are of other, larger models.

Does not show: what a fair measurement gives. The published grading searches for words anywhere in
an answer, the parametric tasks have a floor of one half, and the only control is the dimensions of
smallest norm.

Source:
    Jin et al. 2025, arXiv:2502.01563, table 1, in per cent there and shares here. Our `intact` is
    their vanilla, `non_massive_disrupted` and `massive_disrupted` are named as there.
"""

from dataclasses import dataclass
from typing import Final

SOURCE: Final = "Jin et al. 2025, arXiv:2502.01563, table 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScore:
    """One model on one task: shares of right answers under the published grading, 0..1."""

    model: str
    preset: str
    """What the published code does to this model, as a named arm of `presets`."""
    task: str
    """The task's name in `tasks`."""
    intact: float
    non_massive_disrupted: float
    """After an edit of the dimensions of smallest norm."""
    massive_disrupted: float


_TASKS: Final = (
    *("gsm8k", "aqua", "passkey_128_6", "passkey_256_12", "passkey_1024_48", "imdb"),
    *("cities", "sports", "art", "technology", "celebrity"),
)


def _row(printed: str) -> dict[str, tuple[float, float, float]]:
    cells = [tuple(map(float, cell.split("/"))) for cell in printed.split()]
    return {
        task: (intact, others, massive)
        for task, (intact, others, massive) in zip(_TASKS, cells, strict=True)
    }


TABLE1: Final = {
    "Gemma2-9B": _row(
        "81.3/81.6/15.1 63.8/65.6/16.5 100/100/2 100/100/0 100/100/0 94.7/97.4/1.8 "
        "99.7/99.6/76.4 91/91/73.5 84/84/68 81/81.5/72 92.5/92.5/82"
    ),
    "Llama3-8B": _row(
        "76.9/77.4/4.0 53.51/53.9/9.68 100/100/9 100/100/0 100/100/0 95.4/95.4/11 "
        "99.4/99.4/88.2 95/94.5/74.5 93.5/93/64 92.5/92.5/74.9 95/95.5/73"
    ),
    "Qwen2.5-7B": _row(
        "86.6/85.4/16.1 56.69/57.28/19.68 100/100/9 100/100/1 100/100/0 96.8/97.6/6.53 "
        "97.7/97.5/81.5 95/94/74 96/96.5/69.5 90/90/71 93.5/93.5/71"
    ),
}
"""As printed: by model and task, in per cent, vanilla / non-massive / massive disrupted."""
_PRESETS: Final = {
    "Gemma2-9B": "authors_gemma2",
    "Llama3-8B": "authors_llama",
    "Qwen2.5-7B": "authors_qwen2",
}


def _score(model: str, task: str, printed: tuple[float, float, float]) -> PublishedScore:
    intact, others, massive = (round(value / 100, 4) for value in printed)
    return PublishedScore(
        model=model,
        preset=_PRESETS[model],
        task=task,
        intact=intact,
        non_massive_disrupted=others,
        massive_disrupted=massive,
    )


PUBLISHED: Final = tuple(
    _score(model, task, printed) for model, row in TABLE1.items() for task, printed in row.items()
)
"""The same as shares, model by model."""


FIGURE3: Final = {
    "gsm8k": {"diversity": (0.89, 0.91, 0.56), "perplexity": (4.2, 4.1, 7.6)},
    "aqua": {"diversity": (0.91, 0.92, 0.40), "perplexity": (3.2, 3.3, 8.7)},
    "imdb": {"diversity": (0.88, 0.87, 0.11), "perplexity": (43.0, 40.0, 130.0)},
}
"""Figure 3 of the same paper, Llama3-8B: by task different 2-grams per 2-gram and perplexity of
the answers, vanilla / non-massive / massive disrupted. Scored without their prompt, by the
disrupted model itself."""


QUANTIZED_SOURCE: Final = "Jin et al. 2025, arXiv:2502.01563, figure 4"
QUANTIZED: Final = {
    "gptq": {"gsm8k": 0.775, "aqua": 0.740, "cities": 0.989},
    "awq": {"gsm8k": 0.966, "aqua": 0.976, "cities": 0.992},
    "smoothquant": {"gsm8k": 1.0, "aqua": 1.0, "cities": 1.0},
}
"""Bars of that figure, by method and task: scores of other models relative to the best method.

There is no bar of full precision. The SmoothQuant run smoothed and never quantized, the other two
are different people's checkpoints."""


def published_for(task: str) -> tuple[PublishedScore, ...]:
    """The published scores of one task, one a model; empty where there are none."""
    return tuple(score for score in PUBLISHED if score.task == task)
