"""`mi-massive models`, `tasks` and `presets`: what there is."""

import dataclasses

from mi_massive import _options as opt
from mi_massive._terminal import print_json, print_records
from mi_massive.tasks import TASKS


def models_command(*, as_json: opt.AsJson = False) -> None:
    """List built-in models with their state, and the model families that are proven to work."""
    from mi_massive.models.cache import find_cached
    from mi_massive.models.families import FAMILIES
    from mi_massive.models.wheel import BUILT_IN

    built_in = [
        {
            "name": entry.name,
            "state": "in the cache" if find_cached(entry.key) else "fetched at first use",
            "wheel_mb": round(entry.wheel_size / 1e6),
            "summary": entry.summary,
            "licence": entry.licence,
        }
        for entry in BUILT_IN.values()
    ]
    families = [dataclasses.asdict(family) for family in FAMILIES]
    if as_json:
        print_json({"built_in": built_in, "families": families})
        return
    print_records("Built-in models", built_in, below=("summary", "licence"))
    print_records("Families (transformers model type)", families)


def tasks_command(*, as_json: opt.AsJson = False) -> None:
    """List the tasks: what they ask, of which kind they are, and what they need."""
    rows = [
        {
            "task": source.name,
            "kind": source.kind,
            "examples": source.default_limit,
            "data": "hub or --data" if source.hub else "in the package",
            "summary": source.summary,
        }
        for source in TASKS.values()
    ]
    if as_json:
        print_json({"tasks": rows})
    else:
        print_records("Tasks", rows, below=("summary",))


def presets_command(*, as_json: opt.AsJson = False) -> None:
    """List the named interventions: treatments and controls."""
    from mi_massive.presets import PRESETS

    rows = [
        {
            "preset": name,
            "role": entry.role,
            "k": entry.k if entry.dosed else None,
            "summary": entry.summary,
        }
        for name, entry in PRESETS.items()
    ]
    if as_json:
        print_json({"presets": rows})
    else:
        shown = [row | {"k": "any" if row["k"] is None else row["k"]} for row in rows]
        print_records("Presets", shown, below=("summary",))
