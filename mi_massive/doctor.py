"""What can be trusted on this model, measured on the model itself.

Answers whether the two forms of a loaded model agree, whether every hook point fires, and whether
batch size, padding and dtype leave the norms alone. Costs a few short forward passes and the
building of the bridge. Does not show that the weights are right: a wrong checkpoint passes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive.axes import PROJECTIONS
from mi_massive.capture import capture_norms, provenance_of
from mi_massive.models.attention import AttentionInputs
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.sites import Hook, site_name
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts, default_passages, tokenize_prompts
from mi_massive.records import Provenance

Outcome = Literal["ok", "deviates", "does not apply"]

_TOLERANCE: Final = {
    torch.float64: 1e-3,  # captures sum in float32, whatever the model computes in
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Largest difference of log-probabilities, and of activations relative to their largest, that
rounding explains."""

_FULL: Final = (torch.float32, torch.float64)
"""Types in which a norm is exact to 1e-5."""

_HEADROOM: Final = 2
"""Activations this many times larger must still be numbers: other prompts may have them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the doctor's table."""

    question: str
    outcome: Outcome
    found: str
    """The measured value, with its unit and what it was compared with."""
    consequence: str
    """What may and what may not be trusted because of it."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class DoctorResult(Brief):
    """The doctor's table for one model."""

    checks: tuple[Check, ...]
    provenance: Provenance

    @property
    def healthy(self) -> bool:
        """True if no check deviates."""
        return all(check.outcome != "deviates" for check in self.checks)

    def to_frame(self) -> Any:
        """The table as a data frame (pandas), one row a check."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.checks])


def diagnose(model: HookedModel) -> DoctorResult:
    """Measure what can be trusted on `model`, on four default passages cut to 64 tokens.

    A log-probability may differ by 1e-3 in float32 and float64, 0.1 in bfloat16 and 0.02 in
    float16, an activation by the same relative to the largest of its kind, a norm in float32 and
    float64 by 1e-5. A difference that is NaN deviates.

    Raises:
        ValueError: If the model has no tokenizer, is of another dtype or gives NaN or infinite
            activations.
    """
    if model.dtype not in _TOLERANCE:
        raise ValueError(
            f"the dtype of {model.name} must be one of "
            f"{', '.join(_dtype_name(known) for known in _TOLERANCE)}, "
            f"got {_dtype_name(model.dtype)}; load it in one of them"
        )
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to run the passages, got none")
    prompts = tokenize_prompts(model.tokenizer, default_passages()[:4], max_length=64)
    checks = [_rotation(model)]
    norms = capture_norms(model, prompts, batch_size=1)
    checks += [_bridge(model, prompts), _sites(model), _hook_points(model, prompts)]
    checks += [
        _batches(model, prompts, norms),
        _padding(model, prompts, norms),
        _dtype(model, prompts),
    ]
    return DoctorResult(
        checks=tuple(checks), provenance=provenance_of(model, prompts, batch_size=1)
    )


def _rotation(model: HookedModel) -> Check:
    rotating = [layer for layer in model.geometry.layers if layer.rotary is not None]
    total = len(model.geometry.layers)
    question = "Is the rotation known?"
    if not rotating:
        return Check(
            question=question,
            outcome="does not apply",
            found=f"none of {total} attention layers changes its queries with position",
            consequence="bands and symmetry are refused; concentration stands",
        )
    kinds = sorted({(r.layout, r.n_pairs) for layer in rotating if (r := layer.rotary)})
    text = "; ".join(f"{layout}, {pairs} pairs" for layout, pairs in kinds)
    return Check(
        question=question,
        outcome="ok",
        found=f"{len(rotating)} of {total} attention layers rotate ({text}), "
        "found by turning position 0 into the others",
        consequence="wavelengths, pairs and partners can be trusted",
    )


def _bridge(model: HookedModel, prompts: TokenizedPrompts) -> Check:
    question = "Do hook points run the same model as captures?"
    try:
        plain = model.plain
    except UnsupportedModelError:
        return _not_applicable(question, "the model was wrapped: there is one form of it")
    if not model.has_head:
        return _not_applicable(
            question, "the checkpoint has no language-modelling head to compare logits of"
        )
    ids = torch.tensor(prompts.input_ids[:1], device=model.device)
    with torch.no_grad():
        expected = plain(input_ids=ids).logits.float().log_softmax(dim=-1)
    got = model.run_with_hooks(ids, fwd_hooks=[]).float().log_softmax(dim=-1)
    return _within(
        question,
        float((got - expected).abs().max()),
        _TOLERANCE[model.dtype],
        "largest difference of a log-probability",
        "patching and captures speak of the same model",
    )


def _sites(model: HookedModel) -> Check:
    wanted: list[str] = []
    for layer in model.geometry.layers:
        hooks: tuple[Hook, ...] = ("hook_q", "hook_k", "hook_v")
        rotary: tuple[Hook, ...] = ("hook_rot_q", "hook_rot_k") if layer.rotary is not None else ()
        wanted += [site_name(layer.block, hook) for hook in (*hooks, *rotary)]
    silent = [name for name in wanted if name not in model.sites]
    return Check(
        question="Does every site fire?",
        outcome="deviates" if silent else "ok",
        found=f"{len(wanted) - len(silent)} of {len(wanted)} hook points fire"
        + (
            f"; silent: {', '.join(silent[:3])}" + (" ..." if len(silent) > 3 else "")
            if silent
            else ""
        ),
        consequence="silent hook points are not offered"
        if silent
        else "each can be observed and edited",
    )


def _hook_points(model: HookedModel, prompts: TokenizedPrompts) -> Check:
    """Rotated queries and keys, and values, at the hook points against those that captures read."""
    ids = torch.tensor(prompts.input_ids[:1], device=model.device)
    read: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def visit(inputs: AttentionInputs) -> None:
        rotates = {layer.block: layer.rotary is not None for layer in model.geometry.layers}[
            inputs.block
        ]
        names: tuple[Hook, Hook, Hook] = (
            ("hook_rot_q", "hook_rot_k", "hook_v") if rotates else ("hook_q", "hook_k", "hook_v")
        )
        for hook, states in zip(names, (inputs.query, inputs.key, inputs.value), strict=True):
            seen[site_name(inputs.block, hook)] = states.transpose(1, 2).float().clone()

    def note(activation: Tensor, hook: Any) -> None:
        read[hook.name] = activation.float().clone()

    model.attention_inputs(ids, visit)
    common = [name for name in seen if name in model.sites]
    with torch.no_grad(), model.bridge.hooks(fwd_hooks=[(name, note) for name in common]):
        model.bridge(ids, return_type=None)
    gaps = [
        _relative((read[name] - seen[name]).abs().amax(), seen[name].abs().amax()).cpu()
        for name in common
    ]
    worst = float(torch.stack(gaps).amax()) if gaps else float("nan")
    return _within(
        "Do hook points show what captures read?",
        worst,
        _TOLERANCE[model.dtype],
        f"largest relative difference at {len(common)} hook points",
        "an edit at a hook point acts on the captured activations",
    )


def _batches(model: HookedModel, prompts: TokenizedPrompts, alone: AttentionNorms) -> Check:
    together = capture_norms(model, prompts, batch_size=len(prompts.input_ids))
    return _within(
        "Does batch size leave the norms alone?",
        _difference(alone, together),
        _norm_tolerance(model),
        f"largest relative difference of a norm, batch {len(prompts.input_ids)} against 1",
        "batch size can be chosen by speed",
    )


def _padding(model: HookedModel, prompts: TokenizedPrompts, alone: AttentionNorms) -> Check:
    longest = max(prompts.input_ids, key=len)
    short = [list(ids[: 3 + 5 * row]) for row, ids in enumerate(prompts.input_ids)]
    padded = capture_norms(model, [*short, list(longest)], batch_size=len(short) + 1)
    expected = capture_norms(model, short, batch_size=1)
    return _within(
        "Does padding stay out?",
        _difference(expected, padded, prompts=len(short)),
        _norm_tolerance(model),
        f"largest relative difference of a norm when padded to {len(longest)} tokens",
        "prompts of different lengths can be mixed",
    )


def _dtype(model: HookedModel, prompts: TokenizedPrompts) -> Check:
    sizes: list[float] = []

    def visit(inputs: AttentionInputs) -> None:
        states = (inputs.query, inputs.key, inputs.value)
        sizes.extend(float(tensor.abs().amax()) for tensor in states)

    for ids in prompts.input_ids:
        model.attention_inputs(torch.tensor([ids], device=model.device), visit)
    largest = float(torch.tensor(sizes, dtype=torch.float64).amax())  # NaN if one is
    limit = torch.finfo(model.dtype).max
    full = model.dtype in _FULL
    return Check(
        question="Does the dtype hold the activations?",
        outcome="ok" if largest < limit / _HEADROOM else "deviates",
        found=f"{_dtype_name(model.dtype)}: largest activation {largest:.4g}, "
        f"largest number {limit:.3g}",
        consequence=f"no activation comes within a factor {_HEADROOM} of overflow"
        + ("" if full else "; compare with float32 before trusting small differences"),
    )


def _difference(a: AttentionNorms, b: AttentionNorms, *, prompts: int | None = None) -> float:
    """Largest difference of a per-prompt norm, relative to the largest norm of its head."""
    worst: list[Tensor] = []
    for projection in PROJECTIONS:
        x, y = a.sums(projection).norms(), b.sums(projection).norms()[:prompts]
        worst.append(_relative((x - y).abs(), x.amax(dim=-1, keepdim=True)).amax())
    return float(torch.stack(worst).amax())


def _relative(gap: Tensor, scale: Tensor) -> Tensor:
    """`gap / scale`; zero where there is no gap, also between zeros (a head that is all zero).

    NaN stays NaN, here and in `amax` (not in Python's `max`), so that it can deviate.
    """
    return torch.where(gap == 0, torch.zeros_like(gap), gap / scale)


def _norm_tolerance(model: HookedModel) -> float:
    return 1e-5 if model.dtype in _FULL else _TOLERANCE[model.dtype]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _within(question: str, value: float, limit: float, what: str, consequence: str) -> Check:
    agrees = value <= limit
    return Check(
        question=question,
        outcome="ok" if agrees else "deviates",
        found=f"{what}: {value:.2g} (at most {limit:g} expected from rounding)",
        consequence=consequence if agrees else f"it cannot be said that {consequence}",
    )


def _not_applicable(question: str, why: str) -> Check:
    return Check(
        question=question, outcome="does not apply", found=why, consequence="nothing to compare"
    )
