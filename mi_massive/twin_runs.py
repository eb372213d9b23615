"""One twin's training as numbers: its recipe, what was measured on the way, and curves of it."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._checks import require_in_range, require_positive
from mi_massive._head_statistics import max_over_mean
from mi_massive._twin_corpora import ABILITIES
from mi_massive.axes import Projection
from mi_massive.twin_arms import TWIN_ARMS, TwinShape

Measure = Projection | Literal["sink"]
"""max/mean of a projection's norms, or the attention on the first token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinsConfig:
    """A set of twins and the recipe of their training."""

    arms: tuple[str, ...] = ("rope", "partial_25", "learned", "none")
    """Names of `TWIN_ARMS`."""
    n_seeds: int = 3
    """Seeds 0, 1, ...: weights at the start and order of the windows."""
    corpus: str = "stdlib"
    """`stdlib`, `mixture`, `mixture_unordered`, or the path of a UTF-8 text file."""
    shape: TwinShape = field(default_factory=TwinShape)
    n_steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    """Peak of a warm-up of 50 steps and a cosine to a tenth."""
    weight_decay: float = 0.1
    n_measured: int = 10
    """Steps that are measured, spread evenly on a log axis, beside step 0."""
    n_windows: int = 16
    """Held-out windows that each measurement reads."""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in TWIN_ARMS]
        if unknown or not self.arms:
            raise ValueError(
                f"arms must be of {', '.join(TWIN_ARMS)}, got {', '.join(unknown) or 'none'}"
            )
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms must differ, got {', '.join(self.arms)}; name each once")
        require_in_range("n_seeds", self.n_seeds, low=1, high=1000, unit="seeds")
        require_in_range("n_steps", self.n_steps, low=1, high=10**8, unit="steps")
        require_in_range("batch_size", self.batch_size, low=1, high=1 << 20, unit="windows")
        require_in_range("n_measured", self.n_measured, low=1, high=1000, unit="steps")
        require_in_range("n_windows", self.n_windows, low=2, high=1 << 16, unit="windows")
        require_positive("learning_rate", self.learning_rate)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")

    @property
    def steps(self) -> tuple[int, ...]:
        """Measured steps: 0 (the null), then log-spaced to the last."""
        spread = np.geomspace(min(20, self.n_steps), self.n_steps, self.n_measured)
        return (0, *sorted({*(round(float(step)) for step in spread), self.n_steps}))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwinRun:
    """One twin's training, measured; NaN at steps that a diverged run did not reach."""

    arm: str
    seed: int
    loss: Float[Tensor, "step"] = field(repr=False)
    """Cross-entropy of the held-out windows, in nats per token that is scored."""
    q: Float[Tensor, "step layer head d_head"] = field(repr=False)
    """Norms over the positions of the held-out windows, activation units."""
    k: Float[Tensor, "step layer head d_head"] = field(repr=False)
    v: Float[Tensor, "step layer head d_head"] = field(repr=False)
    sink: Float[Tensor, "step layer"] = field(repr=False)
    """Attention on the first token, mean over heads and later queries; 0..1."""
    abilities: Float[Tensor, "step ability"] = field(repr=False)
    """Share of right answers to recall and fact questions; NaN for a corpus of text."""
    wavelengths: Float[Tensor, "d_head"] = field(repr=False)
    """Tokens of a full turn of each dimension; infinite where it stands still."""
    partners: Int[Tensor, "d_head"] = field(repr=False)
    """Rotary partner of each dimension, -1 where a dimension has none; that of `half_split` in arms
    without rotation."""
    edits: tuple[str, ...]
    """Disruptions of the trained twin, `intact` first; none for a corpus of text."""
    edited: Float[Tensor, "edit ability measure"] = field(repr=False)
    """Under each: share of right answers, and mean log-probability of the right one in nats."""
    failure: str | None
    """Why the run stopped early; None if it did not."""


def concentration_of(
    run: TwinRun, projection: Projection, layer: int | None = None
) -> Float[np.ndarray, "step"]:
    """max/mean of the norms at each step, geometric mean over heads and layers (or one layer).

    Raises:
        ValueError: If there is no such layer.
    """
    _require_layer(run, layer)
    logs = max_over_mean(norms_of(run, projection).flatten(0, 1)).log()
    logs = logs.reshape(norms_of(run, projection).shape[:3])
    chosen = logs if layer is None else logs[:, layer : layer + 1]
    return chosen.mean(dim=(1, 2)).exp().numpy()


def norms_of(run: TwinRun, projection: Projection) -> Float[Tensor, "step layer head d_head"]:
    """Norms of one projection."""
    return {"q": run.q, "k": run.k, "v": run.v}[projection]


def curve_of(run: TwinRun, what: Measure, layer: int | None = None) -> Float[np.ndarray, "step"]:
    """Log max/mean of `q`, `k` or `v`, or the attention on the first token for `sink`.

    Mean over heads and layers, or over the heads of one layer.

    Raises:
        ValueError: If there is no such layer.
    """
    _require_layer(run, layer)
    if what == "sink":
        chosen = run.sink if layer is None else run.sink[:, layer : layer + 1]
        return chosen.mean(dim=1).numpy()
    return np.log(concentration_of(run, what, layer))


def risen_curve(run: TwinRun, what: Literal["q", "k", "sink"]) -> Float[np.ndarray, "step"]:
    """What is dated: log max/mean of `q` or `k` over that of the values, or the sink as it is."""
    curve = curve_of(run, what)
    return curve if what == "sink" else curve - curve_of(run, "v")


def _require_layer(run: TwinRun, layer: int | None) -> None:
    n_layers = run.sink.shape[1]
    if layer is not None and not 0 <= layer < n_layers:
        raise ValueError(f"layer must be 0 to {n_layers - 1}, got {layer}")


def conditions_of(run: TwinRun) -> tuple[str, ...]:
    """Disruptions of the trained twin, the draws of one together: `random k=4` for all seeds."""
    return tuple(dict.fromkeys(_condition(edit) for edit in run.edits))


def score_under(run: TwinRun, condition: str, ability: str, measure: int) -> float:
    """Score of the trained twin under a disruption, mean over its draws; NaN where it had none."""
    if ability not in ABILITIES:
        raise ValueError(f"ability must be one of {', '.join(ABILITIES)}, got {ability!r}")
    rows = [row for row, edit in enumerate(run.edits) if _condition(edit) == condition]
    column = ABILITIES.index(ability)
    return float(run.edited[rows, column, measure].mean()) if rows else math.nan


def _condition(edit: str) -> str:
    return edit.partition(" seed=")[0]


def lowest_loss(run: TwinRun) -> float:
    """The lowest held-out loss that the run reached."""
    return float(np.nanmin(run.loss.numpy()))


def at_loss(run: TwinRun, curve: Float[np.ndarray, "step"], level: float) -> float:
    """The curve where the loss first falls to `level`, between measured steps by the loss.

    NaN for a run that stopped early, or that never had so high a loss.
    """
    loss = run.loss.numpy()
    if run.failure is not None or not level <= loss[0]:
        return math.nan
    falling = np.append(True, loss[1:] < np.minimum.accumulate(loss)[:-1])
    return float(np.interp(-level, -loss[falling], curve[falling]))


def halfway(
    steps: tuple[int, ...], curve: Float[np.ndarray, "step"], *, least_rise: float
) -> float:
    """Step, between measured ones on a log axis, at which half of the rise is first made.

    The first measured step where that lies before it: nothing earlier was measured. NaN where the
    whole rise is below `least_rise`: what did not appear has no date.
    """
    if not np.isfinite(curve).all() or curve[-1] - curve[0] < least_rise:
        return math.nan
    middle = (curve[0] + curve[-1]) / 2
    after = int(np.argmax(curve >= middle))
    if after == 1:
        return float(steps[1])
    part = (middle - curve[after - 1]) / (curve[after] - curve[after - 1])
    low, high = math.log(steps[after - 1]), math.log(steps[after])
    return math.exp(low + float(part) * (high - low))


def top_wavelengths(run: TwinRun, projection: Projection) -> Float[Tensor, "n_heads"]:
    """Wavelength of the largest dimension of every head of the trained twin, in tokens.

    None of a run that stopped early or does not rotate.
    """
    if run.failure is not None or not TWIN_ARMS[run.arm].rotates:
        return torch.zeros(0)
    return run.wavelengths[norms_of(run, projection)[-1].argmax(dim=-1)].flatten()


def partner_correlation(run: TwinRun, projection: Projection) -> float:
    """Rank correlation of the trained halves of a head, mean over layers; see `halves`.

    NaN where a half is the same everywhere.
    """
    from scipy import stats

    norms = norms_of(run, projection)[-1]
    if not bool(norms.isfinite().all()):
        return math.nan
    profile = (norms / norms.mean(dim=-1, keepdim=True)).mean(dim=1).double().numpy()
    dims = np.arange(len(run.partners))
    first = dims[run.partners.numpy() > dims]
    halves = [(layer[first], layer[run.partners.numpy()[first]]) for layer in profile]
    if any(np.ptp(half) == 0 for pair in halves for half in pair):
        return math.nan
    correlate = cast(Any, stats.spearmanr)
    return float(np.mean([correlate(*pair).statistic for pair in halves]))
