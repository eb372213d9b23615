"""What a patch costs beside TransformerLens' own loop over the same cells, and whether they agree.

Both patch the same heads of the same layers on the same pairs, in turn within one run. Times are
CPU seconds of this process, so that other programs on the machine do not count; on one thread of an
idle machine they are wall time.
Does not show the speed of another machine or of other prompts: quote the ratio, with its grid.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range
from mi_massive._columns import seconds_frame
from mi_massive._patch_runs import answer_tokens
from mi_massive.models.base import HookedModel
from mi_massive.models.library_patching import library_effects
from mi_massive.patch_results import PatchingConfig, PatchingResult
from mi_massive.patching import patch
from mi_massive.prompt_pairs import PromptPair
from mi_massive.records import Provenance
from mi_massive.stats import Estimate, estimate

SLOW, FAST = "generic_activation_patch", "patch"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchSpeedResult:
    """Times of the two ways to patch one grid, and how far their effects lie apart."""

    ways: tuple[str, str]
    seconds: Float[Tensor, "round way"] = field(repr=False)
    """CPU time of each way in each round, everything included: unpatched runs, statistics."""
    ratio: Estimate
    """Median over rounds of the time of TransformerLens' loop divided by that of `patch`."""
    largest_difference: float
    """Largest difference of an effect between the two, in shares of the whole difference."""
    layers: tuple[int, ...]
    n_cells: int
    n_pairs: int
    n_tokens: int
    """Tokens of each prompt."""
    n_threads: int
    provenance: Provenance

    def to_frame(self) -> Any:
        """Times as a data frame (pandas), one row a way and round."""
        return seconds_frame(self.ways, self.seconds)


def measure_patch_speed(
    model: HookedModel, pairs: Sequence[PromptPair], *, layers: Sequence[int], n_rounds: int = 3
) -> PatchSpeedResult:
    """Time both ways on every head of some layers, at z, over all positions.

    Args:
        model: From `load_model`.
        pairs: Pairs of one length, all with a difference to recover.
        layers: Block indices; spread them over the depth, since higher layers are cheaper.
        n_rounds: Rounds after one that is not counted.

    Raises:
        ValueError: If the pairs differ in length, or one has nothing to recover.
    """
    require_in_range("n_rounds", n_rounds, low=1, high=1000, unit="rounds")
    lengths = {len(pair.clean) for pair in pairs}
    if len(lengths) != 1:
        raise ValueError(f"pairs must have one length, got {sorted(lengths)}; choose some of them")
    config = PatchingConfig(layers=tuple(layers), n_resamples=200)
    cells = [
        (layer.block, head)
        for layer in model.geometry.layers
        if layer.block in layers
        for head in range(layer.n_heads)
    ]
    clean, corrupted = (
        torch.tensor([getattr(pair, name) for pair in pairs], device=model.device)
        for name in ("clean", "corrupted")
    )
    answers = answer_tokens(pairs).to(model.device)

    def both() -> tuple[list[float], Tensor, PatchingResult]:
        start = time.process_time()
        slow = library_effects(model, clean, corrupted, answers, site="z", cells=cells)
        middle = time.process_time()
        fast = patch(model, pairs, site="z", config=config)
        return [middle - start, time.process_time() - middle], slow, fast

    _, slow, fast = both()
    if fast.n_left_out:
        raise ValueError(
            f"pairs must all have a difference to recover, got {fast.n_left_out} without; leave "
            "them out"
        )
    seconds = torch.tensor([both()[0] for _ in range(n_rounds)])
    apart = (fast.effects.flatten(0, -2) - slow.cpu()).abs() / fast.differences
    return PatchSpeedResult(
        ways=(SLOW, FAST),
        seconds=seconds,
        ratio=estimate(
            (seconds[:, 0] / seconds[:, 1]).double().numpy(), n_of="rounds", statistic="median"
        ),
        largest_difference=float(apart.max()),
        layers=tuple(layers),
        n_cells=len(cells),
        n_pairs=len(pairs),
        n_tokens=lengths.pop(),
        n_threads=torch.get_num_threads(),
        provenance=fast.provenance,
    )
