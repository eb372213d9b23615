"""Must massive channels be protected when queries and keys are quantized (C7)?

Question: at equal bits, does keeping the massive channels exact save more cross-entropy and more of
a task than keeping equally many others of the same heads, with and without the first token exact;
and is it more than a Hadamard rotation gives for nothing?
Refuted by: gains over random, same-band or norm-matched channels whose intervals hold zero wherever
quantization hurts. Where no number of bits hurts, or all ruin the model, nothing is decided.
Cost: about 20 minutes of one core for the default model; published models want a GPU.
Command: python experiments/state_quantization.py
         python experiments/state_quantization.py --per-channel --bits 3 --seeds 1 --tasks
         python experiments/state_quantization.py --cache --bits 4 3 2 --seeds 1 --tasks
         python experiments/state_quantization.py --models meta-llama/Meta-Llama-3-8B-Instruct \
             --device cuda --dtype bfloat16 --batch-size 64 --limit 200 --seeds 10 --neutral 32
"""

import argparse

from _options import add_options, counter, load, record

from mi_massive import (
    EvaluationConfig,
    QuantizationPlan,
    StateQuantizationConfig,
    StateQuantizationResult,
    load_tasks,
    run_state_quantization,
)

TASKS = ("passkey_128_6", "pairs_open_book", "pairs_closed_book")


def main() -> None:
    """Run every model, record it and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    options.add_argument("--tasks", nargs="*", default=list(TASKS))
    options.add_argument("--limit", type=int, default=24, help="examples of each task")
    options.add_argument("--passkeys", type=int, default=12, help="examples of pass keys")
    options.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    options.add_argument("--task-bits", nargs="+", type=int, default=[3], help="bits for tasks")
    options.add_argument("--seeds", type=int, default=2, help="of random and same-band channels")
    options.add_argument("--neutral", type=int, default=12, help="passages of neutral text")
    options.add_argument("--symmetric", action="store_true", help="0 in the middle of the grid")
    options.add_argument("--per-channel", action="store_true", help="one scale a channel")
    options.add_argument(
        "--cache", action="store_true", help="keys before the rotation, per channel, and values"
    )
    given = options.parse_args()
    plan = QuantizationPlan(
        symmetric=given.symmetric, granularity="channel" if given.per_channel else "token"
    )
    if given.cache:
        plan = QuantizationPlan(
            projections=("k", "v"),
            granularity="channel",
            stage="unrotated",
            symmetric=given.symmetric,
        )
    config = StateQuantizationConfig(
        plan=plan,
        bits=tuple(given.bits),
        n_seeds=given.seeds,
        task_bits=tuple(given.task_bits),
        n_neutral=given.neutral,
        evaluation=EvaluationConfig(readouts=("options",), batch_size=given.batch_size),
    )
    arms = config.arms()
    total = len(arms) + len(given.tasks) * sum(config.asks(arm) for arm in arms)
    for name in given.models:
        model = load(name, given)
        tasks = [
            task.first(given.passkeys if task.name.startswith("passkey") else given.limit)
            for task in load_tasks(model, given.tasks)
        ]
        result = run_state_quantization(
            model, tasks, config=config, cells=given.cells, on_progress=counter("pieces", total)
        )
        kind = "_cache" if given.cache else "_per_channel" if given.per_channel else ""
        print_result(result)
        record(result, f"state_quantization{kind}", name, given)


def print_result(result: StateQuantizationResult) -> None:
    """One line an arm's text, an arm's errors, a gain, a cell and a contrast."""
    print(f"massive channels of a head: {result.massive_per_head}")
    for name in result.effects.arms:
        effects = {key: f"{e.effect:.3f}" for key, e in result.effects.of(name).items()}
        print(f"{name:44} {effects} extra bits {result.extra_bits.get(name, 0.0):.3f}")
    for name in result.errors.arms:
        for projection in result.errors.projections:
            parts = result.errors.of(name, projection)
            errors = {part: f"{e.effect:.3f}" for part, e in parts.items()}
            print(f"{name:44} relative error of {projection}: {errors}")
    for g in result.gains:
        first = "first kept" if g.first_kept else ""
        print(
            f"{g.bits} bits {g.by:8} against {g.against:12} {first:10} {g.measure:13} "
            f"{g.task or 'text':18} {g.gain.effect:+.3f} [{g.gain.low:+.3f}, {g.gain.high:+.3f}] "
            f"n={g.gain.n} p={g.gain.p_value:.2g} per extra bit {g.per_bit:.2f}"
        )
    for c in result.cells:
        print(
            f"{c.arm:44} {c.task:18} n={c.score.n} {c.score.effect:.3f} change "
            f"{c.change.effect:+.3f} [{c.change.low:+.3f}, {c.change.high:+.3f}] "
            f"p={c.change.p_value:.2g} logits {c.logit_diff.effect:+.2f}"
        )
    for contrast in result.contrasts:
        e, beyond = contrast.contrast, contrast.beyond_control
        print(
            f"{contrast.arm:44} contextual - parametric loss {e.effect:+.2f} [{e.low:+.2f}, "
            f"{e.high:+.2f}] beyond control {beyond.effect:+.2f} [{beyond.low:+.2f}, "
            f"{beyond.high:+.2f}]"
        )


if __name__ == "__main__":
    main()
