"""One twin's training: same windows for all arms of a seed, measured and kept at log-spaced steps.

A checkpoint holds weights, the optimizer's state and the curves so far in one file, renamed into
place: a killed run goes on from its last measured step and ends with the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mi_massive._head_statistics import max_over_mean
from mi_massive._twin_corpora import ABILITIES, Corpus, Windows, held_out_seed, training_seed
from mi_massive.arms import make_arms
from mi_massive.attention_effects import measure_effects
from mi_massive.axes import PROJECTIONS
from mi_massive.capture import capture_norms
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models.base import HookedModel
from mi_massive.models.twins import build_twin, hold_twin
from mi_massive.prompts import TokenizedPrompts
from mi_massive.records import load_tensors, save_tensors, write_atomically
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_runs import TwinRun, TwinsConfig

EDITED: Final = ("paper", "sink_preserving", "norm_matched", "smallest", "random", "same_band")
"""Presets that disrupt a twin which was trained on the mixture."""
N_DRAWS: Final = 5
"""Seeds of those that draw their dimensions."""

CHECKPOINT: Final = "checkpoint.safetensors"

_WARM_UP: Final = 50
_SAVED_EVERY: Final = 60.0
"""Seconds after which a checkpoint is written between measured steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinProgress:
    """Where a run stands, for a progress display."""

    arm: str
    seed: int
    step: int
    loss: float
    """Held-out cross-entropy at the last measured step."""
    concentration: dict[str, float]
    """max/mean of q, k and v at the last measured step."""


def train_twin(
    config: TwinsConfig,
    arm: str,
    seed: int,
    corpus: Corpus,
    *,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[TwinProgress], None] | None = None,
) -> TwinRun:
    """Train one twin, or go on from its checkpoint in `folder`, and measure it on the way."""
    return _Training(config, arm, seed, corpus, folder, device, dtype).run(on_progress)


class _Training:
    def __init__(
        self,
        config: TwinsConfig,
        arm: str,
        seed: int,
        corpus: Corpus,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.arm, self.seed, self.corpus = config, arm, seed, corpus
        self.checkpoint = folder / CHECKPOINT
        self.device = device
        self.autocast = dtype
        self.model: Any = build_twin(TWIN_ARMS[arm], config.shape, seed=seed)
        self.model.to(device)
        self.held = hold_twin(self.model, name=f"twin {arm}", folder=folder)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        self.windows = corpus.draw(
            config.n_windows,
            context=config.shape.context,
            seed=held_out_seed(seed),
            held_out=True,
        )
        self.curves: dict[str, Tensor] = {}
        self.progress: TwinProgress | None = None
        self.saved = time.monotonic()

    def run(self, on_progress: Callable[[TwinProgress], None] | None) -> TwinRun:
        start, failure = self._resume(), None
        for step in range(start, self.config.n_steps + 1):
            if (step in self.config.steps and step != start) or step == 0:
                held_out = self._held_out_loss()
                if not math.isfinite(held_out):  # the last step can have broken the weights
                    failure = self._diverged("held-out loss", float(held_out), step)
                    break
                self._measure(self.config.steps.index(step), held_out)
                self._save(step)
            elif time.monotonic() - self.saved > _SAVED_EVERY and step != start:
                self._save(step)
            if on_progress is not None:
                on_progress(self._progress(step))
            if step == self.config.n_steps:
                break
            loss = self._train(step)
            if not math.isfinite(loss):
                failure = self._diverged("loss", loss, step)
                break
        return self._result(failure)

    def _diverged(self, what: str, value: float, step: int) -> str:
        return (
            f"the {what} became {value} at step {step}; train with a lower learning rate than "
            f"{self.config.learning_rate}"
        )

    def _train(self, step: int) -> float:
        config = self.config
        windows = self.corpus.draw(
            config.batch_size, context=config.shape.context, seed=training_seed(self.seed, step)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast != torch.float32
        ):
            loss = _loss(self.model, windows, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        cast(Any, loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def _held_out_loss(self) -> Tensor:
        return _loss(self.held.plain, self.windows, self.device).cpu()

    @torch.no_grad()
    def _measure(self, row: int, held_out: Tensor) -> None:
        ids = cast("list[list[int]]", self.windows.ids.tolist())
        norms = capture_norms(self.held, ids)
        prompts = TokenizedPrompts(
            input_ids=tuple(tuple(window) for window in ids), texts=("",) * len(ids), n_truncated=0
        )
        effects = measure_effects(self.held, prompts, {})
        scores = _scores(self.held, self.windows, self.device)
        measured = {
            "loss": held_out,
            "q": norms.q,
            "k": norms.k,
            "v": norms.v,
            "sink": effects.sink_mass[0].mean(dim=0),
            "abilities": scores[:, 0],
        }
        for name, value in measured.items():
            if name not in self.curves:
                self.curves[name] = torch.full((len(self.config.steps), *value.shape), math.nan)
            self.curves[name][row] = value

    def _edited(self, failure: str | None) -> tuple[tuple[str, ...], Tensor]:
        """The trained twin's answers under each disruption; none of a run that stopped early."""
        if failure is not None or not self.windows.asked:
            return (), torch.zeros(0, len(ABILITIES), 2)
        rows = [_scores(self.held, self.windows, self.device)]
        edits = disruptions(self.arm, d_head=self.config.shape.d_head)
        for edit in edits.values():
            with disrupt(self.held, edit):
                rows.append(_scores(self.held, self.windows, self.device))
        return ("intact", *edits), torch.stack(rows)

    def _result(self, failure: str | None) -> TwinRun:
        layer = self.held.geometry.layers[0]
        wavelengths = torch.full((layer.d_head,), math.inf)
        dims = torch.arange(layer.d_head)
        partners = (dims + layer.d_head // 2) % layer.d_head
        if layer.rotary is not None:
            partners = layer.rotary.partner_of_dim
            for pair, wavelength in zip(
                layer.rotary.pair_dims, layer.rotary.wavelengths, strict=True
            ):
                wavelengths[pair] = float(wavelength)
        edits, edited = self._edited(failure)
        return TwinRun(
            arm=self.arm,
            seed=self.seed,
            wavelengths=wavelengths,
            partners=partners,
            edits=edits,
            edited=edited,
            failure=failure,
            **self.curves,
        )

    def _progress(self, step: int) -> TwinProgress:
        reached = max(i for i, measured in enumerate(self.config.steps) if measured <= step)
        if self.progress is None or step in self.config.steps:  # else nothing new was measured
            ratios = {
                projection: float(
                    max_over_mean(self.curves[projection][reached]).log().mean().exp()
                )
                for projection in PROJECTIONS
            }
            loss = float(self.curves["loss"][reached])
            self.progress = TwinProgress(
                arm=self.arm, seed=self.seed, step=step, loss=loss, concentration=ratios
            )
        return replace(self.progress, step=step)

    def _save(self, step: int) -> None:
        weights = cast("dict[str, Tensor]", self.model.state_dict())
        tensors = {f"weights/{name}": weight for name, weight in weights.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
        tensors |= {f"curves/{name}": curve for name, curve in self.curves.items()}
        tensors["step"] = torch.tensor(step)
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(self.checkpoint, lambda path: save_tensors(kept, path))
        self.saved = time.monotonic()

    def _resume(self) -> int:
        """The step to go on from: that of the checkpoint, or 0."""
        try:
            tensors = load_tensors(self.checkpoint)
        except (FileNotFoundError, ValueError):  # none, or damaged: train from the start
            return 0
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "curves": {}}
        step = int(tensors.pop("step"))
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = tensor
        self.model.load_state_dict(parts["weights"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, entry = name.partition("/")
            state.setdefault(int(index), {})[entry] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.curves = parts["curves"]
        return step


def disruptions(arm: str, *, d_head: int) -> dict[str, Intervention]:
    """What a twin trained on the mixture undergoes; `same_band` in arms with frequencies alone."""
    presets = [name for name in EDITED if TWIN_ARMS[arm].rotates or name != "same_band"]
    ks = [k for k in (1, 2, 4, 8) if 2 * k <= d_head]
    return {each.name: each.intervention for each in make_arms(presets, ks=ks, n_seeds=N_DRAWS)}


def learning_rate(config: TwinsConfig, step: int) -> float:
    """Warm-up of 50 steps, then a cosine from the peak to a tenth of it."""
    turn = math.cos(math.pi * step / config.n_steps)
    return config.learning_rate * min(1.0, (step + 1) / _WARM_UP) * (0.55 + 0.45 * turn)


def _loss(model: Any, windows: Windows, device: torch.device) -> Tensor:
    """Mean cross-entropy of the scored tokens, in nats."""
    ids, scored = windows.ids.to(device), windows.scored[:, 1:].to(device)
    states = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(states[scored])
    return F.cross_entropy(logits.float(), ids[:, 1:][scored])


@torch.no_grad()
def _scores(held: HookedModel, windows: Windows, device: torch.device) -> Tensor:
    """Share of right answers and mean log-probability of the right one, by ability."""
    scores = torch.full((len(ABILITIES), 2), math.nan)
    if not windows.asked:
        return scores
    ids = windows.ids.to(device)
    log_probs = held.plain(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    for row, ability in enumerate(ABILITIES):
        asked = windows.asked[ability][:, 1:].to(device)
        right = ids[:, 1:][asked]
        predicted = log_probs[asked]
        scores[row, 0] = (predicted.argmax(dim=-1) == right).float().mean()
        scores[row, 1] = predicted.gather(1, right[:, None]).mean()
    return scores
