"""How do treatment and controls compare at each dose k (C4, C5)?

Question: is there a dose at which the largest dimensions cost more than others of the same number?
Refuted by: curves of the controls that lie on or above that of the treatment at every k.
Cost: about 40 minutes on one core for 20 examples a task of the default model.
Command: python experiments/dose.py --limit 20
"""

import argparse

from _battery import add_options, print_scores, run

PRESETS = (
    *("paper", "sink_preserving", "sink_only"),
    *("smallest", "random", "same_band", "norm_matched", "effect_matched"),
)
TASKS = ("passkey_128_6", "pairs_counterfactual", "pairs_closed_book", "letters_recall")
"""Two contextual and two parametric tasks that the default model can do."""


def main() -> None:
    """Run every dose."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options, presets=PRESETS, ks=(1, 2, 4), n_seeds=2)
    options.set_defaults(tasks=list(TASKS))
    given = options.parse_args()
    for name in given.models:
        print_scores(run("dose", name, given))


if __name__ == "__main__":
    main()
