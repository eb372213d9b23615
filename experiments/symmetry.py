"""Do massive dimensions form two symmetric clusters, one in each half of the head? (C8).

Question: are the two members of a rotary pair large together, in single heads and over the heads of
a layer, do clusters mirror each other, and by what phase do q and k differ in the massive pairs?
Refuted by: partners that correlate no more than shifted ones; heads without two mirror clusters.
Cost: about a minute on two cores for the default model.
Command: python experiments/symmetry.py
"""

import argparse
from pathlib import Path

from _options import add_placement, load

from mi_massive import (
    SymmetryConfig,
    capture_norms,
    default_passages,
    save_result,
    symmetry,
)

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Record partner agreement, clusters and phases of the model on the default passages."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    add_placement(options)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    norms = capture_norms(load(given.model, given), default_passages())
    result = symmetry(norms, config=SymmetryConfig())
    path = save_result(result, given.out / f"symmetry_{given.model}.json")
    for projection in ("q", "k", "v"):
        part = getattr(result, projection)
        print(
            f"{projection}: halves of a layer's profile correlate with "
            f"{part.layer_agreement.effect:.2f}, heads with two mirror clusters "
            f"{part.two_mirror_share.effect:.1%}"
        )
    phase = result.phase_offset_magnitude
    print(f"|phase q - phase k| in the strongest pair: median {phase.effect:.0f} degrees")
    print(f"record: {path}")


if __name__ == "__main__":
    main()
