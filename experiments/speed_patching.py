"""What does a patch cost beside TransformerLens' own loop over the same cells? (speed).

Question: is `patch` at least 4 times as fast as generic_activation_patch on the same heads of the
same layers and pairs, with the same effects to 1e-5 of the whole difference?
Refuted by: a median ratio below 4, or effects further apart.
Cost: about five minutes on one core for the default model; other programs do not disturb CPU time.
Command: python experiments/speed_patching.py
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from _options import short

from mi_massive import conflict_pairs, load_conflicts, load_model, save_result
from mi_massive.patch_speed import measure_patch_speed

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Measure and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--pairs", type=int, default=2, help="conflicts of the commonest length")
    options.add_argument("--layers", type=int, nargs="+", default=list(range(1, 30, 3)))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model)
    found = load_conflicts(model).conflicts
    length = Counter(len(conflict.conflicting) for conflict in found).most_common(1)[0][0]
    chosen = [conflict for conflict in found if len(conflict.conflicting) == length]
    # The loop has no placebo: neither has `patch` here.
    pairs = [replace(pair, placebo=None) for pair in conflict_pairs(chosen[: given.pairs])]
    result = measure_patch_speed(model, pairs, layers=given.layers, n_rounds=given.rounds)
    r = result.ratio
    print(
        f"{r.effect:.2f} [{r.low:.2f}, {r.high:.2f}] times as fast on {result.n_cells} cells, "
        f"{result.n_pairs} pairs of {result.n_tokens} tokens"
    )
    print(f"largest difference: {result.largest_difference:.2g} of the whole difference")
    path = given.out / f"speed_patching_{short(given.model)}_cpu.json"
    print(f"record: {save_result(result, path)}")


if __name__ == "__main__":
    main()
