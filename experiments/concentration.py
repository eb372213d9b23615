"""Are queries and keys concentrated in a few head dimensions, and values not? (C1, C2, C3, C9)

Question: how many massive dimensions do q, k and v hold, do heads agree on them, from which layer
on, and does a model without rotary position embeddings lack them?
Refuted by: max/mean in q or k no larger than in v; agreement of heads within the permutation null;
the control as concentrated as the model.
Cost: about a minute on two cores for the default model.
Command: python experiments/concentration.py
"""

import argparse
from pathlib import Path

from mi_massive import (
    ConcentrationConfig,
    capture_norms,
    concentration,
    default_passages,
    load_model,
    save_result,
    scoreboard,
)

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Capture both models on the same passages and record concentration and verdicts."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--control", default="all-minilm-l6-v2")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    results = {}
    for role, name in (("model", given.model), ("control", given.control)):
        norms = capture_norms(load_model(name, device=given.device), default_passages())
        results[role] = concentration(norms, config=ConcentrationConfig())
        save_result(results[role], given.out / f"concentration_{name}.json")
    claims = scoreboard(results["model"], control=results["control"])
    path = save_result(claims, given.out / "concentration_claims.json")
    for claim in claims.claims:
        print(f"{claim.id} {claim.verdict}: {claim.reading}")
    print(f"record: {path}")


if __name__ == "__main__":
    main()
