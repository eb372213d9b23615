"""Where a head looks in the clean, the corrupted and the patched run of one pair.

One pair is an illustration: no claim rests on it. Costs one forward pass a head and two more.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range, require_not_empty
from mi_massive._patch_units import from_heads, head_axis, require_site, to_heads
from mi_massive.axes import Site
from mi_massive.capture import provenance_of
from mi_massive.models.base import HookedModel
from mi_massive.models.resume import Resumer, Run
from mi_massive.models.sites import patch_site_name
from mi_massive.patch_results import PatchedHead, PatchedPatternsResult
from mi_massive.prompt_pairs import PromptPair
from mi_massive.prompts import TokenizedPrompts


def capture_patched_patterns(
    model: HookedModel,
    pair: PromptPair,
    *,
    heads: Sequence[tuple[int, int]],
    site: Site | str = "rot_q",
) -> PatchedPatternsResult:
    """Record the attention of some query heads in the clean, corrupted and patched run.

    Args:
        model: From `load_model`, a decoder with a tokenizer.
        pair: The pair to run.
        heads: `(block, query head)` of the heads, such as those that `patch` found to matter.
        site: What the patched run takes from the clean one, for that head alone: q, k, rot_q or
            rot_k. Keys are those of the head's key-value head.

    Raises:
        ValueError: If a head does not exist, the site decides no attention, or the model has no
            tokenizer.
        UnsupportedModelError: If the model is no decoder, or the site does not fire.
    """
    site = require_site(site)
    if site not in ("q", "k", "rot_q", "rot_k"):
        raise ValueError(
            f"site must be one of q, k, rot_q, rot_k, got {site!r}; it moves attention"
        )
    require_not_empty("heads", heads, remedy="name at least one (block, head)")
    layers = {layer.block: layer for layer in model.geometry.layers}
    for block, head in heads:
        if block not in layers:
            raise ValueError(f"heads must name blocks among {list(layers)}, got {block}")
        require_in_range("heads", head, low=0, high=layers[block].n_heads - 1, unit="query heads")
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.name} must exist to name tokens, got none")
    resumer = Resumer(model, reuse="nothing")
    blocks = sorted({block for block, _ in heads})
    names = [patch_site_name(b, s) for b in blocks for s in dict.fromkeys((site, "pattern"))]
    clean, corrupted = (
        resumer.run(torch.tensor([ids]), names=names, blocks=())
        for ids in (pair.clean, pair.corrupted)
    )
    shown: list[PatchedHead] = []
    for block, head in heads:
        own = int(layers[block].kv_head_of_head[head]) if head_axis(site) == "kv_head" else head
        name = patch_site_name(block, "pattern")
        shown.append(
            PatchedHead(
                block=block,
                head=head,
                clean=_head(clean.states[name], head),
                corrupted=_head(corrupted.states[name], head),
                patched=_head(_patched(resumer, site, block, own, clean, corrupted), head),
            )
        )
    prompts = TokenizedPrompts(
        input_ids=(pair.clean, pair.corrupted), texts=("", ""), n_truncated=0
    )
    decode = cast(Any, model.tokenizer).decode
    return PatchedPatternsResult(
        site=site,
        clean_tokens=tuple(str(decode([token])) for token in pair.clean),
        corrupted_tokens=tuple(str(decode([token])) for token in pair.corrupted),
        heads=tuple(shown),
        provenance=provenance_of(model, prompts, batch_size=1),
    )


def _patched(
    resumer: Resumer, site: Site, block: int, head: int, clean: Run, corrupted: Run
) -> Float[Tensor, "1 head pos pos"]:
    """Patterns of the block with one head's activation taken from the clean run."""
    name = patch_site_name(block, site)
    source = to_heads(site, clean.states[name])[:, :, head]
    seen: list[Tensor] = []

    def replace(activation: Tensor, hook: Any) -> Tensor:
        states = to_heads(site, activation).clone()
        states[:, :, head] = source
        return from_heads(site, states)

    def note(activation: Tensor, hook: Any) -> None:
        seen.append(activation.detach().clone())

    hooks = [(name, replace), (patch_site_name(block, "pattern"), note)]
    resumer.again(corrupted, hooks, block=block, start=0, copies=1)
    return seen[0]


def _head(pattern: Float[Tensor, "1 head pos pos"], head: int) -> Float[Tensor, "pos pos"]:
    return pattern[0, head].float().cpu()
