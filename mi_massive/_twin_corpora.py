"""What twins are trained on: text by bytes, or a mixture of recall and memorized facts.

Token ids are bytes 0..255; 256 begins every window, so that attention has a first token to sink
into. A window is drawn by its seed alone: all twins of a seed see the same windows, a resumed run
the same as an uninterrupted one.
"""

import hashlib
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from mi_massive._checks import require_in_range

BEGIN: Final = 256
N_VOCABULARY: Final = 257
ABILITIES: Final = ("recall", "facts")
"""What the mixture asks: values bound in the window, values bound in all windows alike."""

_MAX_BYTES: Final = 1 << 24
_STRIDE: Final = 1_000_003
_QUERY: Final = ord("?")
_SEPARATOR: Final = ord(";")
_VALUES: Final = torch.arange(ord("a"), ord("z") + 1)
_SYMBOLS: Final = 64
_NAMES: Final = 128  # first symbol of the names, which are bound anew in each window
_SUBJECTS: Final = 192  # first symbol of the subjects of the facts
_N_FACTS: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """Token ids of some windows, and which of them the model is scored on."""

    ids: Int[Tensor, "window pos"]
    scored: Bool[Tensor, "window pos"]
    """Tokens to be predicted from those before them."""
    asked: dict[str, Bool[Tensor, "window pos"]]
    """The tokens that each of `ABILITIES` has to predict; empty for text."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextCorpus:
    """Windows of running text, uniformly placed; the last part of it is held out."""

    name: str
    digest: str
    text: UInt8[Tensor, "byte"] = field(repr=False)
    held_out_bytes: int

    def draw(self, n: int, *, context: int, seed: int, held_out: bool = False) -> Windows:
        """Windows that begin with the first token and go on with `context` - 1 bytes of text."""
        cut = len(self.text) - self.held_out_bytes
        part = self.text[cut:] if held_out else self.text[:cut]
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(part) - context + 2, (n,), generator=generator)
        ids = torch.full((n, context), BEGIN)
        ids[:, 1:] = part[starts[:, None] + torch.arange(context - 1)].long()
        scored = torch.ones_like(ids, dtype=torch.bool)
        scored[:, 0] = False
        return Windows(ids=ids, scored=scored, asked={})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixtureCorpus:
    """Bindings of names to letters, then questions about them and about fixed facts, mixed.

    A window holds `n_bindings` triples of a name of two symbols and its letter, drawn anew, and
    then questions `? symbol symbol letter`: half ask a bound name (recall), half one of 256
    subjects whose letters never change (facts). Questions look alike; only the answers, half from
    the window and half from the weights, are scored.
    """

    name: str
    digest: str
    subjects: Int[Tensor, "fact 2"] = field(repr=False)
    letters: Int[Tensor, "fact"] = field(repr=False)
    n_bindings: int = 10

    def draw(self, n: int, *, context: int, seed: int, held_out: bool = False) -> Windows:
        """Windows with new bindings; those held out differ by their seed."""
        generator = torch.Generator().manual_seed(seed)
        begun = 2 + 3 * self.n_bindings
        n_questions = (context - begun) // 4
        if n_questions < 2:
            raise ValueError(
                f"context must hold {self.n_bindings} bindings and two questions of the mixture, "
                f"{begun + 8} tokens, got {context}; train with a larger context"
            )
        # Second symbols differ within a window, so that every question has one answer.
        order = torch.rand(n, _SYMBOLS, generator=generator).argsort(dim=1)
        second = _NAMES + order[:, : self.n_bindings]
        first = _NAMES + torch.randint(_SYMBOLS, second.shape, generator=generator)
        bound = _VALUES[torch.randint(len(_VALUES), second.shape, generator=generator)]
        bindings = torch.stack([first, second, bound], dim=2)
        which = torch.randint(self.n_bindings, (n, n_questions), generator=generator)
        recalled = bindings.gather(1, which[..., None].expand(-1, -1, 3))
        fact = torch.randint(_N_FACTS, (n, n_questions), generator=generator)
        known = torch.cat([self.subjects[fact], self.letters[fact][..., None]], dim=2)
        recalls = torch.rand(n, n_questions, generator=generator) < 0.5
        asked = torch.where(recalls[..., None], recalled, known)
        questions = torch.cat([torch.full_like(asked[..., :1], _QUERY), asked], dim=2)
        ids = torch.full((n, context), _SEPARATOR)
        ids[:, 0] = BEGIN
        ids[:, 1 : begun - 1] = bindings.flatten(1)
        ids[:, begun : begun + 4 * n_questions] = questions.flatten(1)
        answers = begun + 3 + 4 * torch.arange(n_questions)
        marks = {kind: torch.zeros_like(ids, dtype=torch.bool) for kind in ABILITIES}
        marks["recall"][:, answers] = recalls
        marks["facts"][:, answers] = ~recalls
        return Windows(ids=ids, scored=marks["recall"] | marks["facts"], asked=marks)


Corpus = TextCorpus | MixtureCorpus


def load_corpus(source: Literal["stdlib", "mixture"] | Path, *, context: int) -> Corpus:
    """The corpus of that name, or the text of a file.

    Args:
        source: `stdlib`, the sources of this Python's own standard library; `mixture`; or a UTF-8
            text file.
        context: Tokens of a window; the held-out part must hold at least 16 of them.

    Raises:
        ValueError: If a file is missing, is no UTF-8 text, or is too small for the context.
    """
    require_in_range("context", context, low=8, high=1 << 20, unit="tokens")
    if source == "mixture":
        # The facts are the same for every seed: what differs between seeds is the training.
        generator = torch.Generator().manual_seed(0)
        pairs = torch.randperm(_SYMBOLS**2, generator=generator)[:_N_FACTS]
        subjects = _SUBJECTS + torch.stack([pairs // _SYMBOLS, pairs % _SYMBOLS], dim=1)
        letters = _VALUES[torch.randint(len(_VALUES), (_N_FACTS,), generator=generator)]
        table = torch.cat([subjects, letters[:, None]], dim=1)
        drawn = cast("list[int]", table.flatten().tolist())
        digest = hashlib.sha256(bytes(drawn)).hexdigest()
        return MixtureCorpus(name="mixture", digest=digest, subjects=subjects, letters=letters)
    if source == "stdlib":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        content, name = b"".join(file.read_bytes() for file in files), "stdlib"
    else:
        content, name = _read_text(Path(source)), Path(source).name
    content = content[:_MAX_BYTES]
    held_out = len(content) // 10
    if held_out < 16 * context:
        raise ValueError(
            f"corpus must hold at least {160 * context} bytes for windows of {context} tokens, of "
            f"which a tenth is held out, got {len(content)} in {name}; use more text or a shorter "
            "context"
        )
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    digest = hashlib.sha256(content).hexdigest()
    return TextCorpus(name=name, digest=digest, text=text, held_out_bytes=held_out)


def training_seed(seed: int, step: int) -> int:
    """Seed of one batch: a function of both, so that a resumed run needs no generator's state."""
    return seed * _STRIDE + step + 1


def held_out_seed(seed: int) -> int:
    """Seed of the windows that a training never draws."""
    return -1 - seed


def _read_text(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise ValueError(f"corpus must be a readable text file, got {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus must be UTF-8 text, got {path.name}: {error.reason}") from error
    return content
