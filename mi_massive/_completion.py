"""What the shell offers for the values of options: names of models, presets, tasks and arms."""

from collections.abc import Callable, Iterable

from mi_massive.models.wheel import BUILT_IN
from mi_massive.tasks import TASKS
from mi_massive.twin_arms import TWIN_ARMS

Completer = Callable[[str], list[str]]


def one_of(names: Iterable[str]) -> Completer:
    """Names that begin with what has been typed."""
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def listed(names: Iterable[str]) -> Completer:
    """The same for the last name of a list with commas; names already in the list are left out."""
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{n}" for n in known if n.startswith(last) and n not in given]

    return complete


def complete_presets(incomplete: str) -> list[str]:
    """Presets, imported when they are asked for."""
    from mi_massive.presets import PRESETS

    return listed(PRESETS)(incomplete)


complete_models = one_of(BUILT_IN)
complete_tasks = listed(("pairs", *TASKS))
complete_arms = listed(TWIN_ARMS)
