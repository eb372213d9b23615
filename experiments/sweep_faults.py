"""Does a sweep lose or repeat finished cells when parts of it die?

Question: after kill -9 of a worker within a cell, of the driver or of a Ray node, with cells that
raise, a full disk, a truncated result or two drivers on one folder, are finished cells kept and is
the table at the end that of an undisturbed sweep, byte for byte?
Refuted by: a finished and undamaged cell that is written again, or another table.
Cost: 15 minutes on two busy cores (default model); nearly all of it is the start of processes.
The full disk is a small file system of memory in a user namespace (Linux, `unshare`).
Command: python experiments/sweep_faults.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import yaml
from _faults import FAULTS, state

from mi_massive import load_result, save_result
from mi_massive.records import text_of
from mi_massive.sweep import (
    SweepFault,
    SweepFaultsResult,
    load_sweep,
    read_grid,
    run_sweep,
)

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as held:
        path = Path(held, "grid.yaml")
        axes = {"models": [given.model], "presets": ["paper", "smallest", "random"], "k": [4]}
        asked = {"tasks": ["pairs_open_book", "letters"], "readouts": ["options"], "limit": 4}
        path.write_text(yaml.safe_dump(axes | asked))
        grid, plain = read_grid(path), Path(held, "undisturbed")
        began = time.monotonic()
        total = run_sweep(grid, plain).done
        undisturbed, faults = time.monotonic() - began, list[SweepFault]()
        table = text_of(load_sweep(plain))
        for name, (engine, disturb) in FAULTS.items():
            folder, began = Path(held, name.replace(" ", "_")), time.monotonic()
            folder.mkdir()
            before, n_started = disturb(path, folder)
            run_sweep(grid, folder)
            after = state(folder)[0]
            fault = SweepFault(
                name=name,
                engine=engine,
                done_before=len(before),
                in_flight=n_started,
                done_again=sum(after[cell] != at for cell, at in before.items()),
                same_table=text_of(load_sweep(folder)) == table,
                seconds=time.monotonic() - began,
            )
            faults.append(fault)
            print(fault, flush=True)
        first = load_result(min((plain / "cells").glob("*.json")))
    result = SweepFaultsResult(
        n_cells=total,
        undisturbed_seconds=undisturbed,
        faults=tuple(faults),
        provenance=first.provenance,
    )
    print(f"record: {save_result(result, given.out / f'sweep_faults_{given.model}.json')}")


if __name__ == "__main__":
    main()
