"""Edit chosen dimensions of queries, keys and values while a model runs.

Answers what a model does without its massive values, or without others matched to them. An
intervention is three choices: which dimensions (`Selection`), what replaces them (`Value`) and
where (`Where`). `disrupt` applies it to everything that the plain model runs inside a context,
forward passes and generation with a KV cache alike, at the speed of the model's own attention
kernel; `disruption_hooks` gives the same edit as hooks for `run_with_hooks`.

What may be edited is decided by a token's column in the batch: `prefill` is the prompt, however
it is read, `decode` is what is generated. Padding is never read or edited, no row of a batch sees
another, and an intervention that edits nothing is an error.

Does not show: why a model changes. Report the controls of `mi_massive.presets` beside a treatment.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from mi_massive._choices import Intervention, Where
from mi_massive._disruptor import Disruptor
from mi_massive._replacements import Value
from mi_massive._selections import Selection
from mi_massive._sources import make_disruptor
from mi_massive.axes import Projection
from mi_massive.models.attention import visiting
from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.passes import noting_passes, whole_prompt
from mi_massive.models.sites import Hook, HookFunction, refusing_runs, site_name
from mi_massive.norms import AttentionNorms

__all__ = [
    "Edits",
    "Intervention",
    "Selection",
    "Value",
    "Where",
    "disrupt",
    "disruption_hooks",
]


_passing: ContextVar[tuple[PreTrainedModel, ...]] = ContextVar("passing", default=())
"""Models inside a context whose edits do not reach the cache."""


class Edits:
    """What an intervention has done so far, from `disrupt`."""

    def __init__(self, disruptor: Disruptor) -> None:
        self._disruptor = disruptor

    @property
    def by_place(self) -> dict[tuple[int, Projection], int]:
        """Entries edited, by block and projection; a place that was seen and left alone has 0."""
        return self._disruptor.counts()

    @property
    def total(self) -> int:
        """Entries (scalars of queries, keys and values) edited."""
        return sum(self.by_place.values())


@contextmanager
def disrupt(
    model: HookedModel,
    intervention: Intervention,
    *,
    norms: AttentionNorms | None = None,
    means: AttentionNorms | None = None,
    masks: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None = None,
    donor: Sequence[int] | None = None,
    prompt_length: int | None = None,
) -> Generator[Edits, None, None]:
    """Apply an intervention to every run of the plain model inside the context.

        with disrupt(model, Intervention(selection=Selection(k=4))) as edits:
            logits = model.plain(input_ids=ids, attention_mask=mask).logits
            text = model.plain.generate(ids, attention_mask=mask, max_new_tokens=20)

    Runs of `model.plain`, of `capture_norms` and of `model.attention_inputs` are edited; those of
    `model.bridge` would not be and are refused (see `disruption_hooks`). Contexts within contexts
    add up. What is padding is known from the attention mask alone: without one every token is real.

    Args:
        model: From `load_model`.
        intervention: What to edit.
        norms: A capture that fixes the selection for all prompts; without it dimensions are chosen
            for each prompt by its own norms.
        means: A capture whose tokens the value `dataset_mean` is the mean of.
        masks: Dimensions of each projection, for the rule `mask`.
        donor: Token ids of the prompt that `resampled` takes entries from.
        prompt_length: Columns of the prompt, padding included; needed where a prompt is read in
            chunks. Without it the first pass over an empty cache is the prompt.

    Yields:
        The number of entries edited so far.

    Raises:
        ValueError: If k exceeds the head, a layer does not exist, or what the intervention needs
            (masks, means, donor) is missing or does not fit the model.
        RuntimeError: If nothing was edited when the context closes, a place was not reached, or
            `model.bridge` was run inside.
        UnsupportedModelError: If the model was wrapped; use `disruption_hooks`.
    """
    try:
        plain = model.plain
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{model.name} must be loaded by load_model to be disrupted in place, got a wrapped "
            "TransformerLens model; use disruption_hooks with run_with_hooks"
        ) from error
    disruptor = make_disruptor(model, intervention, norms, means, masks, donor, prompt_length)
    passing = _passing.get()
    if disruptor.keeps and plain in passing:
        raise ValueError(
            "a context that keeps its edits in the cache must be opened outside one that does not, "
            "got it inside; swap them"
        )
    token = _passing.set((*passing, plain) if disruptor.forgets else passing)
    try:
        with (
            noting_passes(plain, disruptor.begin),
            visiting(plain, disruptor.visit),
            refusing_bridge(model, "disrupt", "or use disruption_hooks"),
        ):
            yield Edits(disruptor)
    finally:
        _passing.reset(token)
    _require_edits(disruptor, model)


@contextmanager
def refusing_bridge(
    model: HookedModel, context: str, otherwise: str
) -> Generator[None, None, None]:
    """Refuse runs of the bridge inside a context whose edits it does not see.

    Args:
        model: The model.
        context: Name of the context.
        otherwise: What to do instead of running `model.plain`, after a comma.
    """
    reason = (
        f"model.bridge of {model.name} must not be run inside {context}, whose edits it does not "
        f"see; run model.plain, {otherwise}"
    )
    if "bridge" in vars(model):
        with refusing_runs(model.bridge, reason):
            yield
        return
    yield
    if "bridge" in vars(model):  # built at its first use, in here
        raise RuntimeError(reason)


def disruption_hooks(
    model: HookedModel,
    intervention: Intervention,
    *,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    norms: AttentionNorms | None = None,
    means: AttentionNorms | None = None,
    masks: Mapping[Projection, Bool[Tensor, "layer head d_head"]] | None = None,
    donor: Sequence[int] | None = None,
) -> list[tuple[str, HookFunction]]:
    """The same edit as hooks of TransformerLens, for `model.run_with_hooks` on whole prompts.

    A run in which they edit nothing is an error, as in `disrupt`; it is raised at the last hook.

    Args:
        model: Loaded or wrapped.
        intervention: What to edit in the prompt; positions must be `prefill`.
        attention_mask: The one that the run gets: 1 at real tokens.
        norms: As for `disrupt`, like all that follow.
        means: As for `disrupt`.
        masks: As for `disrupt`.
        donor: As for `disrupt`.

    Raises:
        ValueError: As `disrupt`; also if a hook point of the intervention does not fire on this
            model.
    """
    where = intervention.where
    if where.positions != "prefill" or where.cache != "edited":
        raise ValueError(
            "positions must be 'prefill' and cache 'edited' for hooks, got "
            f"{where.positions!r} and {where.cache!r}; use disrupt"
        )
    disruptor = make_disruptor(model, intervention, norms, means, masks, donor, None)
    rotates = {layer.block: layer.rotary is not None for layer in model.geometry.layers}

    pending: set[tuple[int, Projection]] = set()
    n_before = 0

    def hook(block: int, projection: Projection) -> HookFunction:
        def edit(activation: Tensor, hook: Any) -> Tensor | None:
            nonlocal n_before
            n_batch, n_pos = activation.shape[:2]
            disruptor.begin(whole_prompt(n_batch, n_pos, attention_mask, activation.device))
            edited = disruptor.edited(block, projection, activation.transpose(1, 2))
            pending.add((block, projection))
            if len(pending) == len(hooks):  # the run's last one
                pending.clear()
                n_before = _require_progress(disruptor, model, n_before)
            return None if edited is None else edited.transpose(1, 2)

        return edit

    hooks: list[tuple[str, HookFunction]] = []
    for block in where.layers or model.geometry.blocks:
        for projection in where.projections:
            name = site_name(block, _hook_point(projection, rotates=rotates[block]))
            if name not in model.sites:
                raise ValueError(
                    f"every hook point of the intervention must fire on {model.name}, got "
                    f"{name!r}, which does not; use disrupt"
                )
            hooks.append((name, hook(block, projection)))
    return hooks


def _hook_point(projection: Projection, *, rotates: bool) -> Hook:
    rotated: dict[Projection, Hook] = {"q": "hook_rot_q", "k": "hook_rot_k", "v": "hook_v"}
    plain: dict[Projection, Hook] = {"q": "hook_q", "k": "hook_k", "v": "hook_v"}
    return (rotated if rotates else plain)[projection]


def _require_edits(disruptor: Disruptor, model: HookedModel) -> None:
    intervention, counts = disruptor.intervention, disruptor.counts()
    for block in intervention.where.layers or model.geometry.blocks:
        for projection in intervention.where.projections:
            if (block, projection) not in counts:
                raise RuntimeError(
                    f"every layer must be reached by the intervention, got no run of {projection} "
                    f"in block {block}; run model.plain inside the context"
                )
    _require_progress(disruptor, model, 0)


def _require_progress(disruptor: Disruptor, model: HookedModel, n_before: int) -> int:
    """Entries edited so far; an error if these are no more than before."""
    n_edited = sum(disruptor.counts().values())
    if n_edited == n_before and not disruptor.intervention.selection.is_empty:
        raise RuntimeError(
            f"an intervention must edit at least one entry of {model.name}, got none: its "
            "selection or its positions never occurred; check rule, rows and positions"
        )
    return n_edited
