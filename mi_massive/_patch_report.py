"""What a report shows of patching: a small battery, or saved results with a view of their heads."""

from collections.abc import Sequence
from typing import Any, cast

from mi_massive._terminal import progress, waiting
from mi_massive.patch_results import PatchingResult

_SAVED = "patching: The patches are saved results."


def patching_for_report(
    model: Any, n_pairs: int, *, batch_size: int, quiet: bool
) -> dict[str, Any]:
    """The patches of a report as arguments of `run_study`; nothing for no pairs."""
    if not n_pairs:
        return {}
    from mi_massive.patch_battery import n_steps, run_patch_battery

    with waiting("asking facts closed-book", quiet=quiet):
        pairs, n_asked = known_pairs(model, n_pairs)
    if not pairs:
        return {"notes": (f"patching: The model knows none of {n_asked} facts closed-book.",)}
    with progress(n_steps(model), quiet=quiet, what="patches") as advance:
        found = run_patch_battery(model, pairs, batch_size=8 * batch_size, on_progress=advance)
    return {
        "patching": found.patches,
        "attributions": found.attributions,
        "patched_patterns": found.patterns,
    }


def view_for_report(
    model: Any, patches: Sequence[PatchingResult], *, quiet: bool
) -> dict[str, Any]:
    """Attention of the heads that matter in saved patches, on the first conflict that is known.

    As arguments of `run_study`; a note says what was run, or why nothing was.
    """
    heads = next((r for r in patches if r.granularity == "head" and "head" in r.axes), None)
    if heads is None:
        return {"notes": (f"{_SAVED} No patch of whole heads is among them to show attention of.",)}
    if not all(layer.rotary for layer in model.geometry.layers):
        return {"notes": (f"{_SAVED} The model does not rotate, so no query is shown patched.",)}
    from mi_massive.patch_battery import heads_that_matter
    from mi_massive.patched_patterns import capture_patched_patterns

    with waiting("recording the attention of patched heads", quiet=quiet):
        pairs, n_asked = known_pairs(model, 1, batch_size=1)
        if not pairs:
            return {"notes": (f"{_SAVED} The model knows none of {n_asked} facts closed-book.",)}
        view = capture_patched_patterns(model, pairs[0], heads=heads_that_matter(heads))
    attention = "The attention was recorded for this page, on one conflict that the model knows."
    return {"patched_patterns": view, "notes": (f"{_SAVED} {attention}",)}


def known_pairs(
    model: Any, limit: int, *, corrupted: str = "consistent", batch_size: int = 8
) -> tuple[list[Any], int]:
    """Pairs of the first conflicts that the model knows, and how many it could have been asked."""
    from mi_massive.model_conflicts import known_conflicts, load_conflicts
    from mi_massive.tasks.conflicts import conflict_pairs

    found = load_conflicts(model)
    known = known_conflicts(model, found, limit=limit, batch_size=batch_size)
    return conflict_pairs(known, corrupted=cast(Any, corrupted)), len(found.conflicts)
