"""Are queries and keys concentrated in a few head dimensions, and values not? (C1, C2, C3, C9).

Question: how many massive dimensions do q, k and v hold, do heads agree on them, from which layer
on, and does a model without rotary position embeddings lack them?
Refuted by: max/mean in q or k no larger than in v; agreement of heads within the permutation null;
the control as concentrated as the model.
Cost: about a minute on two cores for the default model.
Command: python experiments/concentration.py
"""

import argparse
from pathlib import Path

from _options import add_placement, load

from mi_massive import (
    ConcentrationConfig,
    capture_norms,
    concentration,
    default_passages,
    save_result,
)

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Capture both models on the same passages and record their concentration."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--control", default="all-minilm-l6-v2")
    add_placement(options)
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    for name in (given.model, given.control):
        norms = capture_norms(load(name, given), default_passages())
        result = concentration(norms, config=ConcentrationConfig())
        path = save_result(result, given.out / f"concentration_{name}.json")
        for projection in ("q", "k", "v"):
            part = result.of(projection)
            print(
                f"{name} {projection}: {int(part.massive.sum())} massive dimensions, "
                f"largest max/mean {float(part.max_over_mean.max()):.1f}, "
                f"agreement of heads {part.head_overlap.effect:.2f}"
            )
        print(f"record: {path}")


if __name__ == "__main__":
    main()
