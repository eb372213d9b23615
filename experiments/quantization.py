"""Do quantizers that protect massive values keep what the others lose (C7)?

Question: from one base model, one calibration set and at equal bits, do AWQ and SmoothQuant lose
less of contextual than of parametric tasks compared with round to nearest and GPTQ? And when only
W_Q and W_K are rounded, is it the rows that write massive channels that must stay exact?
Refuted by: contrasts between methods, and gains over equally many other rows, whose intervals hold
zero wherever rounding hurts. Where no method hurts, or all ruin the model, nothing is decided.
Cost: about 60 minutes of one core for the default model, half of it for AWQ; others want a GPU.
Command: python experiments/quantization.py
         python experiments/quantization.py --models meta-llama/Meta-Llama-3-8B-Instruct \
             --device cuda --dtype bfloat16 --batch-size 64 --group 128 --windows 128 \
             --window-length 2048 --limit 200 --passkeys 200
"""

import argparse

from _options import add_options, counter, load, record

from mi_massive import (
    EvaluationConfig,
    QuantizationConfig,
    QuantizationResult,
    compare_quantized,
    load_tasks,
)
from mi_massive.quantization_schemes import make_schemes
from mi_massive.weight_protection import WeightProtectionConfig

TASKS = (
    *("passkey_128_6", "pairs_open_book", "pairs_counterfactual", "letters"),
    *("letters_recall", "pairs_closed_book"),
)


def main() -> None:
    """Run every model, record it and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    options.add_argument("--tasks", nargs="*", default=list(TASKS))
    options.add_argument("--limit", type=int, default=40, help="examples of each task")
    options.add_argument("--passkeys", type=int, default=16, help="examples of pass keys")
    options.add_argument("--letters", type=int, default=24, help="examples of letters")
    options.add_argument("--bits", nargs="+", type=int, default=[4], help="of weights alone")
    options.add_argument("--few-bits", nargs="*", type=int, default=[3], help="with one seed each")
    options.add_argument("--group", type=int, default=64, help="inputs that share a scale")
    options.add_argument("--seeds", type=int, default=3, help="calibration sets drawn")
    options.add_argument("--windows", type=int, default=8, help="of calibration text")
    options.add_argument("--window-length", type=int, default=256)
    options.add_argument("--row-bits", nargs="*", type=int, default=[4, 3, 2])
    options.add_argument("--row-task-bits", nargs="*", type=int, default=[2])
    options.add_argument("--row-seeds", type=int, default=2, help="of random and same-band rows")
    options.add_argument("--row-tasks", nargs="*", default=["pairs_open_book", "pairs_closed_book"])
    given = options.parse_args()
    config = configure(given)
    for name in given.models:
        model = load(name, given)
        limits = {"passkey": given.passkeys, "letters": given.letters}
        tasks = [
            task.first(limits.get(task.name.partition("_")[0], given.limit))
            for task in load_tasks(model, given.tasks)
        ]
        result = compare_quantized(
            model, tasks, config=config, cells=given.cells, on_progress=counter("pieces")
        )
        print_result(result)
        record(result, "quantization", name, given)


def configure(given: argparse.Namespace) -> QuantizationConfig:
    """Round to nearest, GPTQ and AWQ at each number of bits; 8 bits with activations."""
    drawn = {"n_calibration": given.windows, "calibration_length": given.window_length}
    eight = {"bits": 8, "activation_bits": 8, "seeds": range(given.seeds)}
    schemes = make_schemes(("rtn", "smoothquant"), **eight, **drawn)
    for bits in (*given.bits, *given.few_bits):
        seeds = range(given.seeds if bits in given.bits else 1)
        schemes += make_schemes(
            ("rtn", "gptq", "awq"), bits=bits, group=given.group, seeds=seeds, **drawn
        )
    rows = None
    if given.row_bits:
        rows = WeightProtectionConfig(
            bits=tuple(given.row_bits),
            group=given.group,
            n_seeds=given.row_seeds,
            task_bits=tuple(given.row_task_bits),
        )
    return QuantizationConfig(
        schemes=schemes,
        rows=rows,
        row_tasks=tuple(given.row_tasks),
        evaluation=EvaluationConfig(readouts=("options",), batch_size=given.batch_size),
    )


def print_result(result: QuantizationResult) -> None:
    """One line a scheme, a cell, a contrast and a gain."""
    for scheme in result.schemes:
        e = result.damage(scheme.name)
        print(f"{scheme.name:24} added nats {e.effect:+.3f} [{e.low:+.3f}, {e.high:+.3f}]")
        print([change for change in result.masks if change.arm == scheme.name])
        for projection in result.errors.projections:
            parts = result.errors.of(scheme.name, projection)
            print(f"  error of {projection}: { {n: round(e.effect, 3) for n, e in parts.items()} }")
    rows = () if result.rows is None else result.rows.cells
    for c in (*result.cells, *rows):
        print(
            f"{c.arm:32} {c.task:20} n={c.score.n} {c.score.effect:.3f} change "
            f"{c.change.effect:+.3f} [{c.change.low:+.3f}, {c.change.high:+.3f}] "
            f"p={c.change.p_value:.2g} logits {c.logit_diff.effect:+.2f}"
        )
    for m in result.methods:
        print(m)
    for g in () if result.rows is None else result.rows.gains:
        print(
            f"rows at {g.bits} bits against {g.against:12} {g.measure:13} {g.task or 'text':18} "
            f"{g.gain.effect:+.4f} [{g.gain.low:+.4f}, {g.gain.high:+.4f}] n={g.gain.n} "
            f"p={g.gain.p_value:.2g} per extra bit {g.per_bit:.3f}"
        )


if __name__ == "__main__":
    main()
