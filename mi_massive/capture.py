"""Run prompts through a model and keep the sums that norms are made of.

Answers how large each head dimension of queries, keys and values is over the positions of real
text, as they enter the attention and with the rotation undone. Costs little more than the forward
pass of the model's body; no attention pattern is materialized, and memory beyond that pass does
not grow with the number of tokens, but for one table of rotation angles. Does not show single
tokens, except the first.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive._checks import require_in_range, require_not_empty
from mi_massive._reductions import TokenWeights, sum_rotary_states, sum_states
from mi_massive.models.attention import AttentionInputs, has_visitors
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms, SiteSums
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts, truncate_prompts
from mi_massive.records import Provenance, command_line, package_versions
from mi_massive.rope import ModelGeometry, RotaryGeometry


def capture_norms(
    model: HookedModel,
    prompts: TokenizedPrompts | Sequence[str] | Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    skip_first: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> AttentionNorms:
    """Capture norms of queries, keys and values over the positions of each prompt.

        norms[layer, head, d] = sqrt(sum over positions of X[position, head, d] ** 2)

    Sums are float32 whatever the model's dtype. Prompts are batched by length and padded on the
    right; padding never enters, and batch size and order of prompts change nothing but rounding.

    Args:
        model: From `load_model` or `HookedModel.wrap`.
        prompts: Texts, token ids, or what `tokenize_prompts` returns (for chat templates).
        batch_size: Prompts of a forward pass.
        max_length: Truncate prompts to this many tokens; without it a prompt longer than the
            model's context is refused.
        skip_first: Leave out each prompt's first token, where most models keep their attention
            sink.
        on_progress: Called with the number of prompts finished since the last call.

    Returns:
        Pooled and per-prompt norms with the sums behind them, in the order of `prompts`.

    Raises:
        ValueError: If there are no prompts, one is longer than the context, has no token left, or
            an activation is NaN or infinite.

    Source:
        Jin et al. 2025, arXiv:2502.01563: our norm is their M. Differs: pooled over prompts by
        summing squares.
    """
    require_in_range("batch_size", batch_size, low=1, high=1 << 20, unit="prompts")
    tokenized = _tokenize(model, prompts, max_length)
    lengths = [len(ids) for ids in tokenized.input_ids]
    for number, length in enumerate(lengths):
        if length <= int(skip_first):
            raise ValueError(
                f"prompts must have at least {1 + int(skip_first)} tokens each, "
                f"got {length} in prompt {number}; "
                "leave it out" + (" or pass skip_first=False" if skip_first else "")
            )
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    parts: list[dict[str, SiteSums]] = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        parts.append(
            _capture_batch(model, [tokenized.input_ids[i] for i in rows], skip_first=skip_first)
        )
        if on_progress is not None:
            on_progress(len(rows))
    places = torch.tensor(order).argsort()
    sums = {site: _in_order([part[site] for part in parts], places) for site in parts[0]}
    _require_finite(model, sums)
    return AttentionNorms(
        q_sums=sums["q"],
        k_sums=sums["k"],
        v_sums=sums["v"],
        q_unrotated_sums=sums.get("q_unrotated"),
        k_unrotated_sums=sums.get("k_unrotated"),
        n_tokens=torch.tensor(lengths) - int(skip_first),
        geometry=model.geometry,
        provenance=provenance_of(
            model, tokenized, batch_size=batch_size, settings={"skip_first": skip_first}
        ),
    )


def provenance_of(
    model: HookedModel,
    prompts: TokenizedPrompts,
    *,
    batch_size: int,
    settings: Mapping[str, str | int | float | bool | None] | None = None,
) -> Provenance:
    """Provenance of a result that `model` gave on `prompts`."""
    return Provenance(
        model=model.name,
        revision=model.revision,
        weights_note=model.weights_note,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention_kernel=model.kernel,
        batch_size=batch_size,
        n_prompts=len(prompts.input_ids),
        prompts_digest=prompts.digest,
        seed=None,
        settings=dict(settings or {}),
        versions=package_versions(),
        command=command_line(),
    )


def _tokenize(
    model: HookedModel,
    prompts: TokenizedPrompts | Sequence[str] | Sequence[Sequence[int]],
    max_length: int | None,
) -> TokenizedPrompts:
    require_not_empty(
        "prompts", prompts, remedy="pass at least one text or one sequence of token ids"
    )
    context = model.geometry.training_context
    if isinstance(prompts, TokenizedPrompts):
        tokenized = truncate_prompts(prompts, max_length=max_length, context=context)
    else:
        tokenized = tokenize_prompts(
            model.tokenizer, prompts, max_length=max_length, context=context
        )
    for number, ids in enumerate(tokenized.input_ids):
        if ids and max(ids) >= model.n_vocabulary:
            raise ValueError(
                f"prompts[{number}] must hold token ids below the vocabulary's size of "
                f"{model.n_vocabulary}, got {max(ids)}; tokenize with the model's own tokenizer"
            )
    return tokenized


@torch.no_grad()
def _capture_batch(
    model: HookedModel, rows: Sequence[Sequence[int]], *, skip_first: bool
) -> dict[str, SiteSums]:
    """Sums of one batch by site, with the prompts in the order of `rows`, on the CPU."""
    lengths = torch.tensor([len(ids) for ids in rows], device=model.device)
    longest = int(lengths.max())
    input_ids = torch.tensor(
        [[*ids, *[0] * (longest - len(ids))] for ids in rows], device=model.device
    )
    places = torch.arange(longest, device=model.device)
    real = places < lengths[:, None]
    after_first = (real & (places > 0)).float()
    weights = TokenWeights(
        counted=after_first if skip_first else real.float(),
        after_first=after_first,
        skip_first=skip_first,
        all_counted=not skip_first and bool(real.all()),
    )
    rotary_of = {layer.block: layer.rotary for layer in model.geometry.layers}
    turns = {id(rotary): _turns(rotary, places) for rotary in rotary_of.values() if rotary}
    layers: list[dict[str, SiteSums]] = []

    def visit(seen: AttentionInputs) -> None:
        rotary, device = rotary_of[seen.block], seen.query.device
        here = weights.on(device)
        sums = {"v": sum_states(seen.value, here)}
        for site, states in (("q", seen.query), ("k", seen.key)):
            if rotary is None:
                sums[site] = sum_states(states, here)
            else:
                sums[site], sums[f"{site}_unrotated"] = sum_rotary_states(
                    states, here, rotary, turns[id(rotary)].to(device)
                )
        layers.append(sums)

    # A causal model with padding on the right needs no mask: no real token attends to what follows
    # it. An edit of the attention inputs does: it takes dimensions and means from real tokens.
    needless = model.is_causal and not has_visitors()
    mask = None if needless or bool(real.all()) else real.long()
    model.attention_inputs(input_ids, visit, attention_mask=mask)
    return _stack_layers(layers, model.geometry)


def _turns(rotary: RotaryGeometry, places: Int[Tensor, "pos"]) -> Float[Tensor, "2 pos pair"]:
    angles = places[:, None].cpu().double() * rotary.inv_freq
    return torch.stack([angles.cos(), angles.sin()]).float().to(places.device)


def _stack_layers(
    layers: Sequence[Mapping[str, SiteSums]], geometry: ModelGeometry
) -> dict[str, SiteSums]:
    """Put the layers of each site on one axis; a layer that does not rotate has no phasors: NaN."""
    if len(layers) != len(geometry.layers):
        raise RuntimeError(
            f"every attention layer must run once, got {len(layers)} runs "
            f"of {len(geometry.layers)} layers"
        )
    stacked: dict[str, SiteSums] = {}
    for site in ("q", "k", "v", *(("q_unrotated", "k_unrotated") if geometry.rotates else ())):
        stage_less = site.removesuffix("_unrotated")
        parts = [layer[site] if site in layer else layer[stage_less] for layer in layers]
        phasors = None
        if geometry.rotates and site != "v":
            phasors = torch.cat([_phasors(part, geometry.n_pairs).cpu() for part in parts], dim=1)
        stacked[site] = SiteSums(
            squares=torch.cat([part.squares.cpu() for part in parts], dim=1),
            total=torch.cat([part.total.cpu() for part in parts], dim=1),
            first=torch.cat([part.first.cpu() for part in parts], dim=1),
            phasors=phasors,
        )
    return stacked


def _phasors(part: SiteSums, n_pairs: int) -> Float[Tensor, "prompt layer head pair 2"]:
    missing = n_pairs - (0 if part.phasors is None else part.phasors.shape[-2])
    empty = part.squares.new_full((*part.squares.shape[:3], missing, 2), torch.nan)
    return empty if part.phasors is None else torch.cat([part.phasors, empty], dim=-2)


def _in_order(parts: Sequence[SiteSums], places: Int[Tensor, "prompt"]) -> SiteSums:
    """Put the prompts of all batches on one axis, in the order in which they were given."""
    phasors = [part.phasors for part in parts if part.phasors is not None]
    return SiteSums(
        squares=torch.cat([part.squares.cpu() for part in parts])[places],
        total=torch.cat([part.total.cpu() for part in parts])[places],
        first=torch.cat([part.first.cpu() for part in parts])[places],
        phasors=torch.cat(phasors)[places] if phasors else None,
    )


def _require_finite(model: HookedModel, sums: Mapping[str, SiteSums]) -> None:
    """Raise at the first layer with a sum that is NaN or infinite: later ones only inherit it."""
    for layer, block in enumerate(model.geometry.blocks):
        for site, part in sums.items():
            squares = part.squares[:, layer]
            bad = ~torch.isfinite(squares)
            if bool(bad.any()):
                prompt, head, dim = (int(i) for i in bad.nonzero()[0])
                raise ValueError(
                    f"activations must be finite, got {float(squares[prompt, head, dim])} in "
                    f"{site} of L{block}H{head}, dimension {dim}, prompt {prompt}; load the model "
                    "with dtype float32 or bfloat16 (float16 overflows above 65504)"
                )
