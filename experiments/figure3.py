"""Does losing the massive values make answers improbable and repetitive (C5, figure 3)?

Question: do the perplexity of the answers, scored by the intact model with their prompt, rise and
their 2-gram diversity fall under the edit, and more than under controls?
Refuted by: answers as probable and as varied as the intact model's, or as bad under the controls.
Cost: about five minutes on two cores for the default model. The rows of GSM8K and AQuA come from
the hub, or from --data.
Command: python experiments/figure3.py --data data
"""

import argparse
from pathlib import Path

from mi_massive import EvaluationConfig, load_model, load_tasks, make_arms, save_result
from mi_massive.fluency import measure_fluency

HERE = Path(__file__).parent
PRESETS = ("paper", "sink_preserving", "random", "norm_matched")


def main() -> None:
    """Generate, score and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--tasks", nargs="+", default=["gsm8k", "aqua"])
    options.add_argument("--data", type=Path, help="folder with TASK.jsonl; without it the hub")
    options.add_argument("--limit", type=int, default=8)
    options.add_argument("--k", type=int, default=4)
    options.add_argument("--max-new-tokens", type=int, default=48)
    options.add_argument("--device", default="cpu")
    options.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    options.add_argument("--out", type=Path, default=HERE / "records")
    given = options.parse_args()
    model = load_model(given.model, device=given.device)
    tasks = load_tasks(model, given.tasks, data=given.data, limit=given.limit)
    result = measure_fluency(
        model,
        tasks,
        make_arms(PRESETS, ks=(given.k,)),
        config=EvaluationConfig(chat=True, max_new_tokens=given.max_new_tokens),
        cells=given.cells,
    )
    path = save_result(result, given.out / f"figure3_{given.model}.json")
    print(result.to_frame().to_string())
    print(f"record: {path}")


if __name__ == "__main__":
    main()
