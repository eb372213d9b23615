"""How much of the effect of the edit is the loss of the attention sink (C4, C5)?

Question: what is left of the damage when the first token's row is not edited (sink_preserving), and
what does editing its key alone do (sink_only)?
Refuted by: no damage with the first token's row kept, or all of it from that token's key alone:
then the sink explains the effect.
Cost: about 20 minutes on two cores for the default model; cells are shared with table1 and dose.
Command: python experiments/sink.py
"""

import argparse

from _battery import add_options, print_scores, run

PRESETS = ("paper", "sink_preserving", "sink_only", "random")


def main() -> None:
    """Run the arms that take the sink apart, at one dose."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options, presets=PRESETS, ks=(4,), n_seeds=1)
    given = options.parse_args()
    for name in given.models:
        print_scores(run("sink", name, given))


if __name__ == "__main__":
    main()
