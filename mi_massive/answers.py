"""What a model did on one example of a task. Pure."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model did on one example."""

    id: str
    group: str
    condition: str
    text: str | None
    """The generated text, whole; None where nothing was generated."""
    extracted: str | None
    """The answer found in it."""
    correct: bool | None
    legacy_correct: bool | None
    """Under the published grading; None where a task has none."""
    log_probs: tuple[float, ...]
    """Log-probability of each option in nats, summed over its tokens; empty without options."""
    gold: int | None
    """Index of the right option."""

    @property
    def chooses_gold(self) -> bool | None:
        """True if the right option is more probable than every other one; None without options.

        A tie, or a model that gives NaN, chooses nothing.
        """
        if self.gold is None or not self.log_probs:
            return None
        return self.logit_diff > 0

    @property
    def logit_diff(self) -> float:
        """Log-probability of the right option minus the best other one; NaN without options."""
        if self.gold is None or not self.log_probs:
            return math.nan
        others = [x for index, x in enumerate(self.log_probs) if index != self.gold]
        return self.log_probs[self.gold] - max(others)
