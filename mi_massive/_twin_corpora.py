"""What twins are trained on: text by bytes, or a mixture of recall and memorized facts.

Facts of the mixture are asked by two symbols in order, or, `mixture_unordered`, by one symbol and a
subject that stands anywhere in the window: then neither ability needs to know positions.

Token ids of text are bytes 0..255; 256 begins every window, so that attention has a first token to
sink into. A window is drawn by its seed alone: all twins of a seed see the same windows, a resumed
run the same as an uninterrupted one.
"""

import hashlib
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from mi_massive._checks import require_in_range

BEGIN: Final = 256
N_VOCABULARY: Final = 257
ABILITIES: Final = ("recall", "facts")
"""What the mixture asks: values bound in the window, values bound in all windows alike."""

_MIXTURES: Final = ("mixture", "mixture_unordered")
_MAX_BYTES: Final = 1 << 30
_STRIDE: Final = 1_000_003
_N_NAMES: Final = 8
N_VALUES: Final = 16
"""Answers that a question of the mixture can have."""
_N_SYMBOLS: Final = 12
_N_FACTS: Final = _N_SYMBOLS**2
# Token ids of the mixture: bindings (a name and its value in one token), names asked for, first and
# second symbols of questions, values, and what fills the rest of a window.
_NAMES: Final = _N_NAMES * N_VALUES
_FIRST: Final = _NAMES + _N_NAMES
_SECOND: Final = _FIRST + _N_SYMBOLS
_VALUES: Final = _SECOND + _N_SYMBOLS
_REST: Final = _VALUES + N_VALUES


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
    """Bindings of names to values, then questions about them and about fixed facts, mixed.

    A window begins with a binding of each of 8 names, one token that says both name and value;
    names stand in random order, values are drawn anew. Questions follow, each of two symbols and
    its answer. Half ask a name (recall): the first symbol says nothing, the second is the name.
    Half ask one of 144 pairs of symbols whose value never changes (facts), so that the answer needs
    another symbol as well, and both abilities attention. Answers alone are scored.

    `ordered`: the other symbol of a fact stands just before, so that facts need positions and
    recall does not. Not `ordered`: it is the window's subject, which stands once, anywhere among
    the bindings, and is found by what it is, as a binding is; all first symbols are one.

    Differs: associative recall is mostly asked with a key and a value in two tokens, which needs a
    head for the token before; twins of two layers do not form it in minutes.
    """

    name: str
    digest: str
    values: Int[Tensor, "fact"] = field(repr=False)
    """Value of each pair of symbols, first symbol major."""
    ordered: bool

    def draw(self, n: int, *, context: int, seed: int, held_out: bool = False) -> Windows:
        """Windows with new bindings; those held out differ by their seed."""
        generator = torch.Generator().manual_seed(seed)
        begun = 1 + _N_NAMES + (not self.ordered)
        n_questions = (context - begun) // 3
        if n_questions < 2:
            raise ValueError(
                f"context must hold what the mixture tells and two questions, {begun + 6} tokens, "
                f"got {context}; train with a larger context"
            )
        names = torch.rand(n, _N_NAMES, generator=generator).argsort(dim=1)
        bound = torch.randint(N_VALUES, (n, _N_NAMES), generator=generator)
        which = torch.randint(_N_NAMES, (n, n_questions), generator=generator)
        fact = torch.randint(_N_FACTS, (n, n_questions), generator=generator)
        recalls = torch.rand(n, n_questions, generator=generator) < 0.5
        told, first = names * N_VALUES + bound, _FIRST + fact // _N_SYMBOLS
        if not self.ordered:
            subject = torch.randint(_N_SYMBOLS, (n, 1), generator=generator)
            order = torch.rand(n, _N_NAMES + 1, generator=generator).argsort(dim=1)
            told = torch.cat([told, _FIRST + subject], dim=1).gather(1, order)
            fact, first = subject * _N_SYMBOLS + fact % _N_SYMBOLS, torch.full_like(fact, _REST)
        second = torch.where(recalls, _NAMES + names.gather(1, which), _SECOND + fact % _N_SYMBOLS)
        answer = _VALUES + torch.where(recalls, bound.gather(1, which), self.values[fact])
        ids = torch.full((n, context), _REST)
        ids[:, 0] = BEGIN
        ids[:, 1:begun] = told
        questions = torch.stack([first, second, answer], dim=2)
        ids[:, begun : begun + 3 * n_questions] = questions.flatten(1)
        answers = begun + 2 + 3 * torch.arange(n_questions)
        marks = {kind: torch.zeros_like(ids, dtype=torch.bool) for kind in ABILITIES}
        marks["recall"][:, answers] = recalls
        marks["facts"][:, answers] = ~recalls
        return Windows(ids=ids, scored=marks["recall"] | marks["facts"], asked=marks)


Corpus = TextCorpus | MixtureCorpus


def load_corpus(source: str | Path, *, context: int) -> Corpus:
    """The corpus of that name, or the text of a file.

    Args:
        source: `stdlib`, the sources of this Python's own standard library; `mixture`;
            `mixture_unordered`; or the path of a UTF-8 text file.
        context: Tokens of a window; the held-out part must hold at least 16 of them.

    Raises:
        ValueError: If a file is missing, is no UTF-8 text, is too small for the context, or exceeds
            a GiB.
    """
    require_in_range("context", context, low=8, high=1 << 20, unit="tokens")
    if source in _MIXTURES:
        name = str(source)
        # The facts are the same for every seed: what differs between seeds is the training.
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(N_VALUES, (_N_FACTS,), generator=generator)
        drawn = cast("list[int]", values.tolist())
        ordered = name == "mixture"
        what = [_N_NAMES, N_VALUES, _N_SYMBOLS, *drawn, *([] if ordered else [0])]
        digest = hashlib.sha256(bytes(what)).hexdigest()
        return MixtureCorpus(name=name, digest=digest, values=values, ordered=ordered)
    if source == "stdlib":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        content, name = b"".join(file.read_bytes() for file in files), "stdlib"
    else:
        content, name = _read_text(Path(source)), Path(source).name
    if len(content) > _MAX_BYTES:
        raise ValueError(
            f"corpus must have at most {_MAX_BYTES:,} bytes, got {len(content):,} in {name}; cut it"
        )
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
