"""What does losing the massive values cost, task by task, beside controls (C4, C5, table 1)?

Question: does editing the k largest dimensions of each head cost contextual tasks more than
parametric ones, and more than editing others does?
Refuted by: parametric tasks that lose as much at equal chance correction, or a control matched in
size (norm_matched), band (same_band) or change of the attention (effect_matched) that costs the
same.
Cost: about 40 minutes on two cores for the default model and tasks; published models want a GPU:
the weights in bfloat16 (about 16 GB for 8 B parameters) plus 4 GB, and hours for the full tasks.
Command: python experiments/table1.py
         python experiments/table1.py --models meta-llama/Meta-Llama-3-8B-Instruct --chat \
             --tasks gsm8k aqua imdb passkey_128_6 cities sports art technology celebrity \
             --limit 1000 --generate all --k 1 --device cuda --dtype bfloat16 --batch-size 32
"""

import argparse

from _battery import add_options, print_scores, run

from mi_massive.published import TABLE1

PRESETS = (
    *("paper", "sink_preserving", "sink_only"),
    *("smallest", "random", "same_band", "norm_matched", "effect_matched"),
)


def main() -> None:
    """Run every model and print its rows, then the published ones."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options, presets=PRESETS, ks=(4,), n_seeds=1)
    given = options.parse_args()
    for name in given.models:
        print_scores(run("table1", name, given))
    print("published (vanilla / non-massive / massive disrupted, %), other models:")
    for model, row in TABLE1.items():
        print(
            model, "; ".join(f"{task} {'/'.join(map(str, three))}" for task, three in row.items())
        )


if __name__ == "__main__":
    main()
