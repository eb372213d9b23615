"""What does each frequency band of RoPE do in a trained model (C8, evidences 1 to 3)?

Question: what is lost when a band does not rotate, or is replaced by its mean; do the massive pairs
need their rotation more than others; do fast bands compare positions and slow ones content; does
anything massive exist before the rotation?
Refuted by: slow bands whose loss costs facts no more than fast ones, or whose logits distance
explains as well as those of fast bands; massive dimensions that appear with the rotation alone. A
shift of all positions that moves a logit would refute the instrument.
Cost: about 15 minutes of one core for the default model; published models want a GPU.
Command: python experiments/surgery.py
         python experiments/surgery.py --models meta-llama/Llama-2-7b-hf --device cuda \
             --dtype bfloat16 --batch-size 64 --bands 8 --limit 200 --passkeys 100 \
             --generate passkey_128_6 --neutral 32 --seeds 3
"""

import argparse

from _options import add_options, counter, load, record

from mi_massive import (
    EvaluationConfig,
    SurgeryConfig,
    SurgeryResult,
    load_tasks,
    run_surgery,
    surgery_arms,
)

TASKS = ("passkey_128_6", "pairs_closed_book", "pairs_counterfactual")


def main() -> None:
    """Run every model, record it and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    options.add_argument("--tasks", nargs="+", default=list(TASKS))
    options.add_argument("--limit", type=int, default=24, help="examples of each task")
    options.add_argument("--passkeys", type=int, default=12, help="examples of pass keys")
    options.add_argument("--bands", type=int, default=4, help="bands of the arms")
    options.add_argument("--seeds", type=int, default=1, help="of the random pairs")
    options.add_argument("--generate", nargs="*", default=[], help="tasks answered in words")
    options.add_argument("--neutral", type=int, default=8, help="passages of neutral text")
    given = options.parse_args()
    arms = surgery_arms(n_bands=given.bands, n_seeds=given.seeds)
    for name in given.models:
        model = load(name, given)
        tasks = [
            task.first(given.passkeys if task.name.startswith("passkey") else given.limit)
            for task in load_tasks(model, given.tasks)
        ]
        config = SurgeryConfig(
            evaluation=EvaluationConfig(readouts=("options",), batch_size=given.batch_size),
            generated=tuple(given.generate),
            n_neutral=given.neutral,
        )
        result = run_surgery(
            model,
            arms,
            tasks,
            config=config,
            cells=given.cells,
            on_progress=counter("cells", len(arms) * len(tasks)),
        )
        print_result(result)
        record(result, "surgery", name, given)


def print_result(result: SurgeryResult) -> None:
    """One line a cell, a distance, an arm's effects, a band and a projection."""
    for c in result.cells:
        print(
            f"{c.arm:32} {c.task:21} {c.readout:10} n={c.score.n} {c.score.effect:.3f} change "
            f"{c.change.effect:+.3f} [{c.change.low:+.3f}, {c.change.high:+.3f}] "
            f"p={c.change.p_value:.2g} logits {c.logit_diff.effect:+.2f}"
        )
    for d in result.distances:
        print(
            f"{d.arm:32} {d.task} {d.readout:10} {d.nearest:3}-{d.farthest:3} tokens n={d.score.n} "
            f"{d.score.effect:.2f} change {d.change.effect:+.2f} p={d.change.p_value:.2g} "
            f"logits {d.logit_diff.effect:+.2f} change {d.logit_change.effect:+.2f} "
            f"p={d.logit_change.p_value:.2g}"
        )
    for arm in result.effects.arms:
        effects = {name: f"{e.effect:.3f}" for name, e in result.effects.of(arm).items()}
        print(f"{arm:32} {effects}")
    for contrast in result.contrasts:
        e, beyond = contrast.contrast, contrast.beyond_control
        print(
            f"{contrast.arm:32} {contrast.readout} contextual - parametric loss {e.effect:+.2f} "
            f"[{e.low:+.2f}, {e.high:+.2f}] beyond control {beyond.effect:+.2f}"
        )
    for band in result.shares.bands:
        e = band.position_share
        print(
            f"band {band.band} ({band.shortest:.0f}-{band.longest:.0f} tokens) position share "
            f"{e.effect:.3f} [{e.low:.3f}, {e.high:.3f}] null {e.null:.3f} p={e.p_value:.2g} "
            f"shuffled {band.shuffled.effect:.3f} floor {band.floor.effect:.3f} variance "
            f"{band.variance_share.effect:.3f}"
        )
    print(f"fast minus slow {result.shares.fast_minus_slow}")
    for row in result.norms:
        print(
            f"{row.projection}: massive per head {row.massive_before.effect:.2f} before the "
            f"rotation, {row.massive_after.effect:.2f} after (p={row.massive_change.p_value:.2g}); "
            f"max/mean {row.peak_before.effect:.2f} and {row.peak_after.effect:.2f}; same pair "
            f"{row.same_pair.effect:.2f}"
        )


if __name__ == "__main__":
    main()
