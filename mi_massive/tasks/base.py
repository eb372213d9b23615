"""What a task is: examples with gold answers, and the rule that grades a generated text.

Answers: what exactly a model is asked, and what counts as right. Costs nothing: a task is text and
knows no model; `mi_massive.evaluation` runs one on the other.

Does not show: that a task measures the use of context or of stored knowledge. `kind` is what it was
made for. Tasks of different kinds differ in format, length and floor as well; only `pairs_*` and
`letters*` hold these equal.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, NamedTuple

from mi_massive._checks import require_not_empty, require_positive

Kind = Literal["contextual", "parametric"]
"""`contextual`: the answer follows from the prompt; `parametric`: from what training stored."""

CountTokens = Callable[[str], int]
"""Number of tokens of a text, without special tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """Verdict on one generated text."""

    correct: bool

    extracted: str | None
    """The answer that was found in the text; None where none was found, which is never correct."""

    def __post_init__(self) -> None:
        """Refuse a correct answer that was not found."""
        if self.correct and self.extracted is None:
            raise ValueError(
                "extracted must be the answer found in the text for a correct grade, got None; "
                "a text in which nothing is found is not correct"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question with its gold answer."""

    id: str
    """Unique in its task and the same in every run."""

    prompt: str
    """Plain text that the model continues; the answer would begin with a space."""

    question: str
    """The user's message where a chat template is used."""

    answer: str
    """Gold answer, as the grader compares it."""

    options: tuple[str, ...] = ()
    """Continuations of `prompt`, leading space included, to compare by log-probability."""

    gold: int | None = None
    """Index of the right one among `options`; None exactly where there are no options."""

    condition: str = ""
    """Which variant of a matched question this is: closed_book, open_book, ..."""

    group: str = ""
    """Same for examples that belong together, within a task and between matched tasks."""

    facts: dict[str, str] = field(default_factory=dict[str, str], hash=False)
    """What else is known: the true fact behind the question, where the key stands, ..."""

    def __post_init__(self) -> None:
        """Refuse an example that cannot be asked or cannot be answered rightly."""
        for name, text in (("id", self.id), ("prompt", self.prompt), ("answer", self.answer)):
            if not text.strip():
                raise ValueError(f"{name} must not be empty, got {text!r} at {self.id!r}; fill it")
        if self.prompt.endswith((" ", "\t")):
            raise ValueError(
                f"prompt must not end in a space, got {self.prompt[-20:]!r} at {self.id!r}; "
                "remove it: tokens carry the space before a word"
            )
        _require_gold(self)


def _require_gold(example: Example) -> None:
    options, gold = example.options, example.gold
    if not options:
        if gold is not None:
            raise ValueError(
                f"gold must be None without options, got {gold} at {example.id!r}; give options"
            )
        return
    if gold is None or not 0 <= gold < len(options):
        raise ValueError(
            f"gold must be between 0 and {len(options) - 1} (options), got {gold} at "
            f"{example.id!r}; count from 0"
        )
    if len(options) == 1 or len(set(options)) < len(options) or not all(map(str.strip, options)):
        raise ValueError(
            f"options must be at least two different texts, got {options} at {example.id!r}; "
            "change or remove them"
        )


Grader = Callable[[str, Example], Grade]
"""Grades a generated text on an example."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Examples of one kind and the rule that grades their answers."""

    name: str

    kind: Kind

    version: int
    """Raised when the wording, the data or the grading changes: scores are then not comparable."""

    summary: str
    """What is asked, in one sentence."""

    examples: tuple[Example, ...] = field(repr=False)
    """In an order of which every prefix is as balanced as it can be."""

    grade: Grader = field(repr=False)
    """Our grading of a generated text."""

    legacy_grade: Grader | None = field(repr=False, default=None)
    """The published grading where it differs; to compare with published numbers only."""

    chance: float
    """Expected score of generation for a guesser who knows the format; 0 for open answers."""

    max_new_tokens: int

    stop: tuple[str, ...] = ()
    """Generation ends at any of these strings, which are no part of the answer."""

    def __post_init__(self) -> None:
        """Refuse a task without examples, with the same id twice, or with senseless numbers."""
        remedy = "give at least one, or a larger limit"
        require_not_empty(f"examples of task {self.name}", self.examples, remedy=remedy)
        seen: set[str] = set()
        for i, example in enumerate(self.examples):
            if example.id in seen:
                raise ValueError(
                    f"id must be unique in task {self.name}, got {example.id!r} again at "
                    f"examples[{i}]; rename it"
                )
            seen.add(example.id)
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be between 0 and 1, got {self.chance}; it is a share")
        require_positive("version", self.version)
        require_positive("max_new_tokens", self.max_new_tokens)

    @property
    def options_chance(self) -> float:
        """Expected score of a guess among the options; NaN where no example has any.

        mean of 1 / len(options) over the examples with options
        """
        shares = [Fraction(1, len(e.options)) for e in self.examples if e.options]
        return float(sum(shares) / len(shares)) if shares else math.nan

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over name, version and every field of every example."""
        fields = ("id", "prompt", "question", "answer", "options", "gold", "condition", "group")
        listed = [
            [*(getattr(example, name) for name in fields), sorted(example.facts.items())]
            for example in self.examples
        ]
        text = json.dumps([self.name, self.version, listed], separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def first(self, n: int) -> "Task":
        """Return the task with its first `n` examples, or all if it has fewer.

        Raises:
            ValueError: If `n` is not positive.
        """
        require_positive("n", n)
        return replace(self, examples=self.examples[:n])


def require_different_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError if two tasks have one name: results are found by it."""
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks must have different names, got {name!r} twice; rename one")


class HubSet(NamedTuple):
    """Where a data set lies on the Hugging Face hub."""

    dataset: str
    config: str
    split: str


class Row(NamedTuple):
    """One row of a data file, and its place there for error texts."""

    where: str
    values: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInput:
    """What a task is built from."""

    rows: tuple[Row, ...] = field(repr=False, default=())
    """Every row of the data; empty for tasks that the package writes itself."""

    limit: int
    """Examples wanted; there are fewer where the data hold fewer."""

    seed: int = 0
    """Seed of every draw."""

    count_tokens: CountTokens | None = field(repr=False, default=None)
    """Given for every task that needs a tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSource:
    """How a task by this name is made."""

    name: str

    kind: Kind

    summary: str

    default_limit: int
    """Examples where the caller names no limit."""

    build: "Callable[[TaskSource, TaskInput], Task]" = field(repr=False)

    version: int = 1
    """Version of the tasks that it builds; see `Task.version`."""

    hub: HubSet | None = None
    """The data set behind the task; None where the package writes or holds the data."""

    columns: tuple[str, ...] = ()
    """Columns that a file must have to stand in for the data set."""

    needs_tokenizer: bool = False
    """Whether the prompts depend on `count_tokens`."""
