"""Which heads, bands and pairs carry the context's answer, and do massive pairs? (C6).

Question: where a context contradicts what the model learned, which heads and rotary bands bring the
context's answer to the end of the prompt; and do the massive pairs of queries and keys carry more
of it than as many others, with the first token's rows (the attention sink) left alone?
Refuted by: massive pairs that recover no more than matched ones, or no more than activations of an
unrelated prompt do, once the first token is left out.
Cost: about 15 minutes on two cores for the default model; finished layers are kept.
Command: python experiments/patching.py --parts heads bands_q massive_q massive_k pairs_q
         python experiments/patching.py --no-known  # also of facts that the model does not know
"""

import argparse
from collections import Counter
from pathlib import Path

from mi_massive import (
    AttributionResult,
    HookedModel,
    PatchingConfig,
    PatchingResult,
    PromptPair,
    attribute,
    conflict_pairs,
    known_conflicts,
    load_conflicts,
    load_model,
    patch,
    save_result,
)

HERE = Path(__file__).parent
PARTS = {
    "resid": ("resid_pre", "layer", "denoising", ("subject", "object", "query_subject", "last")),
    "heads": ("z", "head", "denoising", ("last",)),
    "values": ("v", "kv_head", "denoising", ("object",)),
    "bands_q": ("rot_q", "band", "denoising", ("last",)),
    "bands_k": ("rot_k", "band", "denoising", ("object",)),
    "massive_q": ("rot_q", "massive", "noising", ("first", "later")),
    "massive_k": ("rot_k", "massive", "noising", ("first", "later")),
    "pairs_q": ("rot_q", "pair", "denoising", ("last",)),
    "pairs_k": ("rot_k", "pair", "denoising", ("object",)),
}
"""Site, granularity, direction, position groups. Massive pairs of all layers are patched at once;
pairs of single heads are estimated by gradients and their largest patched."""


def choose_pairs(
    model: HookedModel, limit: int, *, known: bool, corrupted: str
) -> list[PromptPair]:
    """Conflicts of the four most common lengths: pairs of one length share a pass."""
    found = load_conflicts(model)
    asked = known_conflicts(model, found) if known else found.conflicts
    lengths = Counter(len(conflict.conflicting) for conflict in asked)
    common = [length for length, _ in lengths.most_common(4)]
    each = -(-limit // max(1, len(common)))
    chosen = [[c for c in asked if len(c.conflicting) == n][:each] for n in common]
    return conflict_pairs([conflict for part in chosen for conflict in part], corrupted=corrupted)


def measure(
    part: str, model: HookedModel, pairs: list[PromptPair], given: argparse.Namespace
) -> PatchingResult | AttributionResult:
    """Run one part."""
    site, granularity, direction, groups = PARTS[part]
    config = PatchingConfig(joint=granularity == "massive", k=given.k, batch_size=given.rows)
    if granularity == "pair":
        return attribute(model, pairs, site=site, direction=direction, groups=groups, config=config)
    return patch(
        model,
        pairs,
        site=site,
        granularity="head" if granularity == "kv_head" else granularity,
        direction=direction,
        groups=groups,
        config=config,
        cells=given.cells,
        on_progress=lambda n: print(".", end="", flush=True),
    )


def report(part: str, result: PatchingResult | AttributionResult) -> None:
    """The largest cells, or all arms."""
    if isinstance(result, AttributionResult):
        for name in ("pearson", "spearman", "pearson_top"):
            e = getattr(result, name)
            print(f"{part}: {name} {e.effect:.2f} [{e.low:.2f}, {e.high:.2f}], {e.n} cells")
        values = zip(result.top, result.top_exact, result.top_placebo, strict=True)
        for place, exact, placebo in list(values)[:8]:
            at = {a: result.labels[a][i] for a, i in zip(result.axes, place, strict=True)}
            estimate = float(result.estimated[place])
            print(f"{part}: {at} {exact:+.3f} estimated {estimate:+.3f} placebo {placebo:+.3f}")
        return
    print(
        f"\n{part}: {result.n} pairs, {result.n_left_out} left out; "
        f"{int(result.significant.sum())} of {result.significant.numel()} cells significant"
    )
    frame = result.to_frame().sort_values("recovered", key=abs, ascending=False)
    print(frame.head(16).round(3).to_string(index=False))


def main() -> None:
    """Run every part and record it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--limit", type=int, default=24, help="conflicts")
    options.add_argument(
        *("--known",),
        action=argparse.BooleanOptionalAction,
        default=True,
        help="only facts that the model knows closed-book: without one there is no conflict",
    )
    options.add_argument(
        *("--corrupted",),
        choices=["consistent", "neutral"],
        default="consistent",
        help="the context that agrees with memory, or one about something else of the same length",
    )
    options.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options.add_argument("--k", type=int, default=2, help="pairs of each head in massive arms")
    options.add_argument("--rows", type=int, default=64, help="rows of a forward pass")
    options.add_argument("--device", default="cpu")
    options.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    options.add_argument("--out", type=Path, default=HERE / "records")
    given = options.parse_args()
    model = load_model(given.model, device=given.device)
    pairs = choose_pairs(model, given.limit, known=given.known, corrupted=given.corrupted)
    kind = "" if given.corrupted == "consistent" else f"{given.corrupted}_"
    for part in given.parts:
        result = measure(part, model, pairs, given)
        report(part, result)
        save_result(
            result, given.out / f"patching_{kind}{part}_{Path(given.model).name.lower()}.json"
        )


if __name__ == "__main__":
    main()
