"""Does losing the massive values make answers improbable and repetitive (C5, figure 3)?

Question: do the perplexity of the answers, scored by the intact model with their prompt, rise and
their 2-gram diversity fall under the edit, and more than under controls?
Refuted by: answers as probable and as varied as the intact model's, or as bad under the controls.
Cost: about ten minutes on two cores for the default model. The rows of the tasks come from the hub,
or from --data.
Command: python experiments/figure3.py --data data
"""

import argparse
from pathlib import Path

from _options import add_options, counter, load, record

from mi_massive import EvaluationConfig, load_tasks, make_arms
from mi_massive.fluency import measure_fluency
from mi_massive.published import FIGURE3

PRESETS = ("paper", "sink_preserving", "smallest", "random", "norm_matched")


def main() -> None:
    """Generate, score and record, then print the published numbers."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    options.add_argument("--tasks", nargs="+", default=["gsm8k", "aqua", "imdb"])
    options.add_argument("--data", type=Path, help="folder with TASK.jsonl; without it the hub")
    options.add_argument("--limit", type=int, default=12, help="examples of each task")
    options.add_argument("--k", type=int, default=4)
    options.add_argument("--max-new-tokens", type=int, default=48)
    given = options.parse_args()
    arms = make_arms(PRESETS, ks=(given.k,))
    asking = EvaluationConfig(
        chat=True, max_new_tokens=given.max_new_tokens, batch_size=given.batch_size
    )
    for name in given.models:
        model = load(name, given)
        tasks = load_tasks(model, given.tasks, data=given.data, limit=given.limit)
        told = counter("cells", (1 + len(arms)) * len(tasks))
        result = measure_fluency(
            model, tasks, arms, config=asking, cells=given.cells, on_progress=told
        )
        print(result.to_frame().to_string())
        record(result, "figure3", name, given)
    print("published for Llama3-8B (vanilla / non-massive / massive disrupted):")
    for task, measures in FIGURE3.items():
        said = (f"{name} {'/'.join(map(str, three))}" for name, three in measures.items())
        print(f"{task}: {'; '.join(said)}")


if __name__ == "__main__":
    main()
