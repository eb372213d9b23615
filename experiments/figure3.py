"""Does losing the massive values make answers improbable and repetitive (C5, figure 3)?

Question: do the perplexity of the answers, scored by the intact model with their prompt, rise and
their 2-gram diversity fall under the edit, and more than under controls?
Refuted by: answers as probable and as varied as the intact model's, or as bad under the controls.
Cost: about 15 minutes on two cores for the default model. The rows of GSM8K and AQuA come from the
hub, or from --data.
Command: python experiments/figure3.py --data folder/with/gsm8k.jsonl/and/aqua.jsonl
"""

import argparse
from pathlib import Path

from mi_massive import load_model, save_result
from mi_massive.arms import make_arms
from mi_massive.fluency import measure_fluency
from mi_massive.scores import EvaluationConfig
from mi_massive.tasks import load_task

HERE = Path(__file__).parent
PRESETS = ("paper", "sink_preserving", "smallest", "random", "norm_matched")


def main() -> None:
    """Generate, score and record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--tasks", nargs="+", default=["gsm8k", "aqua"])
    options.add_argument("--data", type=Path, help="folder with TASK.jsonl; without it the hub")
    options.add_argument("--limit", type=int, default=16)
    options.add_argument("--k", type=int, default=4)
    options.add_argument("--max-new-tokens", type=int, default=64)
    options.add_argument("--device", default="cpu")
    options.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    options.add_argument("--out", type=Path, default=HERE / "records")
    given = options.parse_args()
    model = load_model(given.model, device=given.device)
    files = {task: given.data and given.data / f"{task}.jsonl" for task in given.tasks}
    result = measure_fluency(
        model,
        [load_task(task, data=file, limit=given.limit) for task, file in files.items()],
        make_arms(PRESETS, ks=(given.k,)),
        config=EvaluationConfig(chat=True, max_new_tokens=given.max_new_tokens),
        cells=given.cells,
    )
    path = save_result(result, given.out / f"figure3_{given.model}.json")
    print(result.to_frame().to_string())
    print(f"record: {path}")


if __name__ == "__main__":
    main()
