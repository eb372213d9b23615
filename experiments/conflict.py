"""When the prompt contradicts the weights, what does an edited model follow (C6)?

Question: do models without their massive values fall back on what training stored, more than under
an edit that moves the attention as far, and is that memory still there closed-book?
Refuted by: a share that keeps memory which does not rise, or rises as much under a matched control;
an edit that leaves neither answer has destroyed the model and made it fall back on nothing.
Cost: about 15 minutes of one core for the default model, 350 facts and ten arms; published models
want a GPU.
Command: python experiments/conflict.py
         python experiments/conflict.py --models meta-llama/Meta-Llama-3-8B-Instruct --device cuda \
             --dtype bfloat16 --batch-size 64 --limit 1000 --k 1 4 --legacy 220
"""

import argparse

from _options import add_options, counter, load, record

from mi_massive import (
    ConflictConfig,
    ConflictResult,
    load_conflicts,
    make_arms,
    run_conflict,
)

PRESETS = (
    *("paper", "sink_preserving", "sink_only"),
    *("smallest", "same_band", "norm_matched", "effect_matched"),
)


def main() -> None:
    """Run every model, record it and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    options.add_argument("--limit", type=int, default=350, help="facts asked, known or not")
    options.add_argument("--presets", nargs="*", default=list(PRESETS))
    options.add_argument("--random-seeds", type=int, default=3, help="seeds of the arm `random`")
    options.add_argument(
        *("--k",), nargs="*", type=int, default=[4], help="without a number each preset's own"
    )
    options.add_argument("--legacy", type=int, default=40, help="questions as published")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    arms = make_arms(given.presets, ks=given.k or None) if given.presets else ()
    if given.random_seeds:
        arms += make_arms(("random",), ks=given.k or None, n_seeds=given.random_seeds)
    total = (1 + len(arms)) * (2 if given.legacy else 1)
    for name in given.models:
        model = load(name, given)
        result = run_conflict(
            model,
            load_conflicts(model, limit=given.limit, seed=given.seed),
            arms,
            config=ConflictConfig(
                batch_size=given.batch_size, legacy_examples=given.legacy, seed=given.seed
            ),
            cells=given.cells,
            on_progress=counter("conditions", total),
        )
        print_result(result)
        record(result, "conflict", name, given)


def print_result(result: ConflictResult) -> None:
    """Known facts, one line a cell, the published protocol, neutral text."""
    for known in result.known:
        counts = known.counts
        print(
            f"{known.relation:20} {counts.subjects} facts, {counts.kept} in single tokens, "
            f"{known.asked} asked, {known.n_known} known"
        )
    for c in result.cells:
        print(
            f"{c.relation or c.style or 'all':18} {c.arm:24} {c.readout:11} n={c.follows.n:3} "
            f"follows {c.follows.effect:.2f} keeps {c.keeps.effect:.2f} [{c.keeps.low:.2f}, "
            f"{c.keeps.high:.2f}] neither {c.neither.effect:.2f} closed-book "
            f"{c.closed_book.effect:.2f} lost both {c.lost_both.effect:.2f} keeps "
            f"{c.keeps_change.effect:+.2f} p={c.keeps_change.p_value:.2g} followers (n="
            f"{c.to_memory.n}) to memory {c.to_memory.effect:.2f} to neither "
            f"{c.to_neither.effect:.2f} keepers to context {c.to_context.effect:.2f} logits "
            f"{c.logit_diff.effect:+.2f} beyond control {c.beyond_control.effect:+.2f}"
        )
    for cell in result.legacy:
        print(f"published protocol {cell.arm:24} {cell.readout:10} {cell.score.effect:.3f}")
    for arm in result.effects.arms:
        effects = {name: f"{e.effect:.3f}" for name, e in result.effects.of(arm).items()}
        print(f"{arm:24} {effects}")


if __name__ == "__main__":
    main()
