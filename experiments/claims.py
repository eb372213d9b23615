"""Which of the paper's claims hold on a model? (C1 to C9).

Question: the verdicts of the report's scoreboard, with effect, interval, n and test. C4 and C5 are
judged on the records of `table1.py` and `figure3.py`, C6 on that of `conflict.py`, C7 on those of
`state_quantization.py` and `quantization.py`, C3b, C8e and C9b on those of `twins.py`, where there
are any.
Refuted by: what each rule states; a verdict "not supported" is a finding.
Cost: about three minutes on two cores for the default model and its control.
Command: python experiments/claims.py
"""

import argparse
from pathlib import Path

from _options import short

from mi_massive import (
    StudyConfig,
    default_passages,
    load_model,
    load_result,
    run_study,
    save_result,
)

# The first with rotation and without judges the cause, all of them the frequencies.
TWINS = (
    *("stdlib", "stdlib_theta", "stdlib_window_32", "stdlib_window_512", "mixture"),
    "mixture_unordered",
)
RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Run the whole study and record the scoreboard."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--control", default="all-minilm-l6-v2")
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    table1, conflict, answers, states, weights = (
        RECORDS / f"{name}_{short(given.model)}.json"
        for name in ("table1", "conflict", "figure3", "state_quantization", "quantization")
    )
    sets = [RECORDS / f"twins_{name}_small.json" for name in TWINS]
    twins = [path for path in sets if path.exists()]
    results = run_study(
        load_model(given.model, device=given.device),
        default_passages(),
        control=load_model(given.control, device=given.device),
        disruption=load_result(table1) if table1.exists() else None,
        conflict=load_result(conflict) if conflict.exists() else None,
        fluency=load_result(answers) if answers.exists() else None,
        quantization=load_result(states) if states.exists() else None,
        quantized=load_result(weights) if weights.exists() else None,
        twins=[load_result(path) for path in twins],
        config=StudyConfig(n_pattern_heads=0),
    )
    path = save_result(results.scoreboard, given.out / f"claims_{short(given.model)}.json")
    for claim in results.scoreboard.claims:
        print(f"{claim.id} {claim.verdict}: {claim.reading}")
    print(f"record: {path}")


if __name__ == "__main__":
    main()
