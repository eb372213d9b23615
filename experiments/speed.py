"""What do captures and disrupted generation cost beside other ways to do the same? (speed).

Question: is the capture of q, k and v norms within 1.10 times the time of the plain transformers
forward pass (SDPA) on 1 x 1024 tokens, and within 1.2 times its peak memory at 8192 tokens? How do
the bridge with hooks, and run_with_cache then reduce, compare? Does disrupted generation in batches
reach 0.85 times the examples per second of plain generate, and 4 times those of the published way?
Refuted by: a median ratio beyond these bounds.
Cost: about ten minutes on two cores for captures, two for generation (default model). Timings want
an idle machine.
Command: python experiments/speed.py
"""

import argparse
from pathlib import Path

from _options import short

from mi_massive import Estimate, save_result
from mi_massive.generation_speed import measure_generation_speed
from mi_massive.speed import measure_speed

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Measure and record what is asked for."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--what", nargs="+", choices=[*MEASURED], default=[*MEASURED])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    for what in given.what:
        print(f"record: {MEASURED[what](given.model, given.rounds, given.out)}")


def capture(model: str, rounds: int, out: Path) -> Path:
    result = measure_speed(model, n_rounds=rounds)
    for way, full, body in zip(result.ways, result.ratios, result.ratios_to_body, strict=True):
        print(f"{way}: {_said(full)} x the plain forward, {_said(body)} x its body")
    for way, peak in result.peak_mb.items():
        print(f"{way}: peak {peak:.0f} MiB at {result.n_tokens_peak} tokens")
    return save_result(result, out / f"speed_{short(model)}_cpu.json")


def generation(model: str, rounds: int, out: Path) -> Path:
    result = measure_generation_speed(model, n_rounds=rounds)
    for way, relative in zip(result.ways, result.throughput, strict=True):
        print(f"{way}: {_said(relative)} x the examples per second of plain generate")
    print(f"disrupted generate over the published way: {_said(result.speedup)}")
    return save_result(result, out / f"generation_speed_{short(model)}_cpu.json")


def _said(ratio: Estimate) -> str:
    return f"{ratio.effect:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


MEASURED = {"capture": capture, "generation": generation}

if __name__ == "__main__":
    main()
