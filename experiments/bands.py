"""Where on the frequency axis of RoPE do norm and massive dimensions lie? (C8).

Question: which rotary pairs hold the energy and the massive dimensions of q and k, before and after
the rotation, and do they make a full turn within the training context (Jonasson 2025)?
Refuted by: massive dimensions in the slower half of the pairs no more often than in permuted pairs;
v, which does not rotate, with the same profile.
Cost: about a minute on two cores for the default model.
Command: python experiments/bands.py
"""

import argparse
from pathlib import Path

from _options import add_placement, load

from mi_massive import BandsConfig, bands, capture_norms, default_passages, save_result

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Record the frequency profiles of the model on the default passages."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    add_placement(options)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    norms = capture_norms(load(given.model, given), default_passages())
    result = bands(norms, config=BandsConfig())
    path = save_result(result, given.out / f"bands_{given.model}.json")
    for projection in ("q", "k", "v"):
        share = getattr(result, projection).low_half_share
        print(f"{projection}: energy in the slower half {share.effect:.3f} (null {share.null:.2f})")
    cycle = result.partial_cycle
    print(f"massive pairs that make no full turn {cycle.effect:.3f} (null {cycle.null:.3f})")
    print(f"record: {path}")


if __name__ == "__main__":
    main()
