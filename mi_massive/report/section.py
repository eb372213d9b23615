"""What the page holds of one analysis."""

from dataclasses import dataclass

from mi_massive.report.pictures import Picture
from mi_massive.report.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One analysis on the page."""

    word: str
    """The analysis, as everywhere else: concentration, control, bands, symmetry, patterns,
    disruption, conflict, patching, quantization, surgery, twins."""
    title: str
    question: str
    """What it answers, in plain words."""
    limits: tuple[str, ...]
    """What it does not show."""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    tokens: str | None = None
    """Data of the CircuitsVis views, inert JSON."""
    tokens_reading: str = ""
    """How to read them, where the question does not say it."""
    absent: bool = False
    notes: tuple[str, ...] = ()
    number: int = 1
    """Among the sections of the same word."""

    @property
    def anchor(self) -> str:
        """Where links within the page lead."""
        return self.word if self.number == 1 else f"{self.word}-{self.number}"

    @property
    def label(self) -> str:
        """The word for readers, with the number where there are several."""
        return self.word if self.number == 1 else f"{self.word} {self.number}"
