"""Saved results that options name: of the kind and of the model that a report is on."""

from pathlib import Path
from typing import Any

from mi_massive.records import load_result


def saved_result(option: str, path: Path | None, kinds: tuple[str, ...], model: str) -> Any:
    """A saved result of the model to report on; None for no path.

    Raises:
        ValueError: If the file holds another result, or that of another model.
        FileNotFoundError: If it is missing.
    """
    if path is None:
        return None
    result: Any = load_result(path)
    if type(result).__name__ not in kinds:
        raise ValueError(
            f"{option} must name a saved {' or '.join(kinds)}, got a {type(result).__name__}: "
            f"{path}"
        )
    if result.provenance.model != model:
        raise ValueError(
            f"{option} must be of the model {model}, got one of {result.provenance.model}: {path}"
        )
    return result


def saved_quantization(paths: list[Path], model: str) -> dict[str, Any]:
    """The results behind `--quantization`, as `run_study` takes them.

    Raises:
        ValueError: If two files hold results of one kind (see also `saved_result`).
    """
    words = {"StateQuantizationResult": "quantization", "QuantizationResult": "quantized"}
    found: dict[str, Any] = {}
    for path in paths:
        result = saved_result("--quantization", path, tuple(words), model)
        word = words[type(result).__name__]
        if word in found:
            raise ValueError(
                f"--quantization must name at most one {type(result).__name__}, got two: {path}"
            )
        found[word] = result
    return found


def saved_patches(paths: list[Path], model: str) -> dict[str, Any]:
    """The results behind `--patched`, as `run_study` takes them, in the order given.

    Raises:
        ValueError: See `saved_result`.
    """
    words = {"PatchingResult": "patching", "AttributionResult": "attributions"}
    found = [saved_result("--patched", path, tuple(words), model) for path in paths]
    return {
        word: tuple(result for result in found if type(result).__name__ == kind)
        for kind, word in words.items()
    }


def require_one_source(measure: str, number: int, read: str, given: object) -> None:
    """Raise ValueError if a part is both to be measured and read from a saved result."""
    if number and given:
        raise ValueError(
            f"{measure} must not come with {read}, got both; measure the part or show what is saved"
        )
