"""The claims table of README, written from the record.

Question: none; it copies numbers, so that none is typed by hand.
Refuted by: `tests/test_experiments.py` fails where README and record differ.
Cost: seconds.
Command: python experiments/readme_table.py experiments/records/claims_smollm2-135m-instruct.json
"""

import argparse
from pathlib import Path

from mi_massive import Claim, load_result


def row(claim: Claim) -> str:
    """One claim as a row of a Markdown table."""
    e = claim.estimate
    number = f"{e.effect:.2f} [{e.low:.2f}, {e.high:.2f}]"
    return (
        f"| {claim.id} | {claim.statement} | **{claim.verdict}** | {number} | {claim.quantity} | "
        f"{e.n} {e.n_of} | {claim.reading} |"
    )


def table(record: Path) -> str:
    """The scoreboard of a record as a Markdown table."""
    head = "| | claim | verdict | effect | of what | n | found |\n|---|---|---|---|---|---|---|\n"
    return head + "\n".join(row(claim) for claim in load_result(record).claims)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("record", type=Path)
    print(table(options.parse_args().record))


if __name__ == "__main__":
    main()
