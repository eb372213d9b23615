"""Saved results that options name: of the kind, the model and the weights that a report is on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_massive.records import Provenance, load_result

if TYPE_CHECKING:  # this loads transformers, which the help does not need
    from mi_massive.models import HookedModel


class SavedResults:
    """Results read for a report: by the model's name at once, by its weights once it is loaded."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._read: list[tuple[str, Path, Provenance]] = []

    def one(self, option: str, path: Path | None, kinds: tuple[str, ...]) -> Any:
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
                f"{option} must name a saved {' or '.join(kinds)}, got a "
                f"{type(result).__name__}: {path}"
            )
        provenance: Provenance = result.provenance
        if provenance.model != self._model:
            raise ValueError(
                f"{option} must be of the model {self._model}, got one of {provenance.model}: "
                f"{path}"
            )
        self._read.append((option, path, provenance))
        return result

    def quantization(self, paths: list[Path]) -> dict[str, Any]:
        """The results behind `--quantization`, as `run_study` takes them.

        Raises:
            ValueError: If two files hold results of one kind (see also `one`).
        """
        words = {"StateQuantizationResult": "quantization", "QuantizationResult": "quantized"}
        found: dict[str, Any] = {}
        for path in paths:
            result = self.one("--quantization", path, tuple(words))
            word = words[type(result).__name__]
            if word in found:
                raise ValueError(
                    f"--quantization must name at most one {type(result).__name__}, got two: {path}"
                )
            found[word] = result
        return found

    def patches(self, paths: list[Path]) -> dict[str, Any]:
        """The results behind `--patched`, as `run_study` takes them, in the order given.

        Raises:
            ValueError: See `one`.
        """
        words = {"PatchingResult": "patching", "AttributionResult": "attributions"}
        found = [self.one("--patched", path, tuple(words)) for path in paths]
        return {
            word: tuple(result for result in found if type(result).__name__ == kind)
            for kind, word in words.items()
        }

    def require_weights(self, model: "HookedModel") -> None:
        """Raise unless every result is of this revision and type of the weights.

        A revision is compared where both are known; that of a folder is not. Notes on the weights
        say in words what the revision has settled.

        Raises:
            ValueError: If one is of others; the file and both are named.
        """
        dtype = str(model.dtype).removeprefix("torch.")
        for option, path, of in self._read:
            known = model.revision is not None and of.revision is not None
            if known and of.revision != model.revision:
                raise ValueError(
                    f"{option} must be of the revision {model.revision} of {self._model}, got one "
                    f"of {of.revision}: {path}; compute it again"
                )
            if of.dtype != dtype:
                raise ValueError(
                    f"{option} must be of {self._model} in {dtype}, got one in {of.dtype}: {path}; "
                    f"compute it again, or report in {of.dtype}"
                )


def require_one_source(measure: str, number: int, read: str, given: object) -> None:
    """Raise ValueError if a part is both to be measured and read from a saved result."""
    if number and given:
        raise ValueError(
            f"{measure} must not come with {read}, got both; measure the part or show what is saved"
        )
