"""What does a capture cost beside the plain forward pass, and beside other ways? (speed).

Question: is the capture of q, k and v norms within 1.10 times the time of the plain transformers
forward pass (SDPA) on 1 x 1024 tokens, and within 1.2 times its peak memory at 8192 tokens? How do
the bridge with hooks, and run_with_cache then reduce, compare?
Refuted by: a median ratio above these bounds.
Cost: about ten minutes on two cores for the default model. Timings want an idle machine.
Command: python experiments/speed.py
"""

import argparse
from pathlib import Path

from mi_massive import save_result
from mi_massive.speed import measure_speed

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Measure and record times and peak memory."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    result = measure_speed(given.model, n_rounds=given.rounds)
    path = save_result(result, given.out / f"speed_{given.model}_cpu.json")
    for way, full, body in zip(result.ways, result.ratios, result.ratios_to_body, strict=True):
        forward = f"{full.effect:.2f} [{full.low:.2f}, {full.high:.2f}] x the plain forward"
        print(f"{way}: {forward}, {body.effect:.2f} [{body.low:.2f}, {body.high:.2f}] x its body")
    for way, peak in result.peak_mb.items():
        print(f"{way}: peak {peak:.0f} MiB at {result.n_tokens_peak} tokens")
    print(f"record: {path}")


if __name__ == "__main__":
    main()
