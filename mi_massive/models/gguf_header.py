"""What a GGUF file says about itself: metadata and the table of tensors, checked against its size.

Reading a header costs a few seconds (the vocabulary is most of it); no tensor is dequantized. The
check shows that every byte the header describes is there, not that the bytes are right.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from gguf.constants import GGUFValueType

from mi_massive.models.errors import UnsupportedModelError

_MAGIC = b"GGUF"
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """The facts of a GGUF file that the conversion needs."""

    path: Path
    architecture: str
    values: dict[str, Any]
    """Every metadata entry that is not a list, by its full key."""
    n_weights: int
    """Numbers in all tensors but the rotary factors, which are not parameters."""
    n_weights_by_type: dict[str, int]
    """The same, by storage type such as Q4_1."""
    rope_tensors: dict[str, tuple[float, ...]]
    """Divisors of the rotary frequencies that the file carries as tensors."""

    def own(self, key: str, default: Any = None) -> Any:
        """The metadata entry `<architecture>.<key>`."""
        return self.values.get(f"{self.architecture}.{key}", default)

    @property
    def weights_note(self) -> str:
        """One phrase for every report: how far the weights were rounded before we saw them."""
        total = sum(self.n_weights_by_type.values())
        counts = sorted(self.n_weights_by_type.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{100 * n / total:.0f}% {kind}" for kind, n in counts)
        main = counts[0][0]
        if all(kind in _FLOATS for kind, _ in counts):
            return f"weights come from a {main} GGUF file ({shares})"
        return f"weights were dequantized from a {main} GGUF file ({shares})"


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ValueError: If the file is not GGUF, or is truncated or damaged.
        UnsupportedModelError: If it is one part of a split model, or names no architecture.
    """
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ValueError(
            f"{path} must be a GGUF file, got one that starts with {magic!r}; download it again"
        )
    size = path.stat().st_size
    try:
        # Maps the bytes of every tensor, dequantizing none: one that ends beyond the file raises.
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{path} must hold all that its GGUF header describes, got a truncated or damaged file "
            f"of {size} bytes ({type(error).__name__}: {error}); download it again"
        ) from error
    return _facts(path, reader)


def _facts(path: Path, reader: GGUFReader) -> GgufHeader:
    values = {
        key: field.contents()
        for key, field in reader.fields.items()
        if field.types and field.types[0] != GGUFValueType.ARRAY
    }
    n_parts = values.get("split.count", 1)
    if n_parts > 1:
        raise UnsupportedModelError(
            f"a GGUF model must be one file, got {path} as one of {n_parts} parts; join them with "
            "`llama-gguf-split --merge`"
        )
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not reader.tensors:
        raise UnsupportedModelError(
            f"a GGUF model must name its architecture and hold tensors, got {path} with "
            f"architecture {architecture!r} and {len(reader.tensors)} tensors; give a model file, "
            "not a vocabulary or an adapter"
        )
    weights = [tensor for tensor in reader.tensors if tensor.name not in _ROPE_TENSORS]
    by_type: Counter[str] = Counter()
    for tensor in weights:
        by_type[tensor.tensor_type.name] += int(tensor.n_elements)
    return GgufHeader(
        path=path,
        architecture=architecture,
        values=values,
        n_weights=by_type.total(),
        n_weights_by_type=dict(by_type),
        rope_tensors={
            tensor.name: tuple(float(x) for x in tensor.data)
            for tensor in reader.tensors
            if tensor.name in _ROPE_TENSORS
        },
    )
