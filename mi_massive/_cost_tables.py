"""What arms cost, as tables for a terminal: beside their controls, and by kind of task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from mi_massive._terminal import columns_of, print_records, signed
from mi_massive.contrasts import FEWEST, ArmContrast
from mi_massive.scores import INTACT

if TYPE_CHECKING:  # this loads transformers, which the help does not need
    from mi_massive.control_comparisons import ControlComparison


def print_costs(
    contrasts: Sequence[ArmContrast], comparisons: "Sequence[ControlComparison]", *, of: str = ""
) -> None:
    """Print what treatments cost more than controls, and what arms lose by kind of task.

    Args:
        contrasts: Of every arm; if no task could show a loss, that is said.
        comparisons: Of every treatment.
        of: Words before each title, which name the model.
    """
    for readout in dict.fromkeys(one.readout for one in comparisons):
        beside = [
            {
                "arm": one.arm,
                "beside": f"{one.control} ({one.n_seeds} seeds)"
                if one.n_seeds > 1
                else one.control,
                "task": one.task,
                "costs more": signed(one.score),
                "p": f"{one.score.p_value:.2g}",
            }
            | (
                {"nats more": signed(one.logit_diff), "p of nats": f"{one.logit_diff.p_value:.2g}"}
                if readout == "options"
                else {}
            )
            for one in comparisons
            if one.readout == readout and one.control != INTACT
        ]
        if beside:
            print_records(f"{of}Treatments beside controls by {readout} (p after Holm)", beside)
    losses = [
        {"arm": c.arm, "readout": c.readout, "loss": name, **columns_of(getattr(c, name))}
        for c in contrasts
        if c.contextual_tasks or c.parametric_tasks
        for name in ("contextual_loss", "parametric_loss", "contrast", "beyond_control")
        if name != "beyond_control" or c.control is not None
    ]
    if losses:
        print_records(f"{of}Share of the above-chance score lost", losses)
    else:
        typer.echo(
            f"{of}No losses are told: no task of at least {FEWEST} examples was surely above "
            "chance before any edit."
        )
