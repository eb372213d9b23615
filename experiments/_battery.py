"""What the disruption experiments share: options, the run with kept cells, printed rows."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from _options import add_options as add_shared_options
from _options import counter, load, record, short

from mi_massive import (
    DisruptionConfig,
    DisruptionResult,
    EvaluationConfig,
    load_tasks,
    make_arms,
    run_disruption,
)
from mi_massive.answer_files import AnswerFile

TASKS = (
    *("passkey_128_6", "pairs_open_book", "pairs_counterfactual", "letters"),
    *("pairs_closed_book", "letters_recall", "cities", "sports"),
)
"""Those that the default model can do, and two yes/no categories, at which it is at chance."""


def add_options(
    parser: argparse.ArgumentParser, *, presets: Sequence[str], ks: Sequence[int], n_seeds: int
) -> None:
    """Options of every disruption experiment, with the defaults of this one."""
    add_shared_options(parser)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--limit", type=int, default=40, help="examples of each task")
    parser.add_argument("--presets", nargs="+", default=list(presets))
    parser.add_argument(
        *("--k",),
        nargs="*",
        type=int,
        default=list(ks),
        help="dimensions of each head; without a number each preset's own, which for authors_* is "
        "that of the published code",
    )
    parser.add_argument("--seeds", type=int, default=n_seeds)
    parser.add_argument(
        *("--generate",),
        nargs="*",
        default=["passkey_128_6"],
        help="tasks answered by generation too; 'all' for every task",
    )
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl for tasks of the hub")
    parser.add_argument("--answers", type=Path, help="folder for the models' answers in words")
    parser.add_argument("--chat", action="store_true", help="ask in the chat template")
    parser.add_argument("--record", help="beginning of the record's name instead of the script's")


def run(experiment: str, name: str, given: argparse.Namespace) -> DisruptionResult:
    """Run one model on every task and arm, and record it; finished cells are taken from disk."""
    model = load(name, given)
    tasks = load_tasks(model, given.tasks, data=given.data, limit=given.limit, chat=given.chat)
    arms = make_arms(given.presets, ks=given.k or None, n_seeds=given.seeds)
    config = DisruptionConfig(
        evaluation=EvaluationConfig(
            readouts=("generation", "options"), chat=given.chat, batch_size=given.batch_size
        ),
        generated=None if "all" in given.generate else tuple(given.generate),
    )
    told = counter("cells", (1 + len(arms)) * len(tasks))
    answers = given.answers and given.answers / f"{experiment}_{short(name)}.jsonl"
    result = run_disruption(
        model,
        tasks,
        arms,
        config=config,
        cells=given.cells,
        on_progress=told,
        on_result=AnswerFile(answers, tasks) if answers else None,
    )
    record(result, given.record or experiment, name, given)
    return result


def print_scores(result: DisruptionResult) -> None:
    """One line a cell, an arm's effects and its contrast."""
    for c in result.cells:
        print(
            f"{c.arm:28} {c.task:22} {c.kind:10} {c.readout:10} n={c.score.n} "
            f"{c.score.effect:.3f} [{c.score.low:.3f}, {c.score.high:.3f}] chance {c.floor:.2f} "
            f"change {c.change.effect:+.3f} p={c.change.p_value:.3g} lost {c.lost_share:.2f}"
        )
    for arm in result.effects.arms:
        effects = {name: f"{e.effect:.3f}" for name, e in result.effects.of(arm).items()}
        print(f"{arm:28} {effects}")
    for s in result.seed_spreads:
        for kind in ("contextual_loss", "parametric_loss", "contrast"):
            own = getattr(s, kind)
            print(
                f"{s.control:16} {s.n_seeds} seeds {s.readout:10} {kind:16} "
                f"{min(own.drawn):.2f} to {max(own.drawn):.2f}, median {own.median:.2f}; "
                f"{s.treatment} {own.treated:.2f} p={own.p_value:.2f}"
            )
    for c in result.contrasts:
        print(
            f"{c.arm:28} {c.readout:10} contextual loss {c.contextual_loss.effect:.2f} parametric "
            f"{c.parametric_loss.effect:.2f} contrast {c.contrast.effect:+.2f} "
            f"[{c.contrast.low:+.2f}, {c.contrast.high:+.2f}] beyond control "
            f"{c.beyond_control.effect:+.2f} [{c.beyond_control.low:+.2f}, "
            f"{c.beyond_control.high:+.2f}]"
        )
