"""Graders: is a generated text the right answer to an example?

Answers: correct or not, and what was taken for the answer. Pure functions of text and example; the
extractors stand in `extraction` and `verdicts`.

Does not show: graded strength. A generation is right or wrong; the log-probability of options
(`Example.options`) moves long before that.

The `legacy_*` graders do as the authors' published code does, to compare with published numbers;
they err (see each), so nothing else uses them.

Source:
    Jin et al. 2025, arXiv:2502.01563; behaviour of the repository MingyuJ666/Rope_with_LLM.
"""

import re

from mi_massive.tasks.base import Example, Grade
from mi_massive.tasks.extraction import (
    extract_digits,
    extract_letter,
    extract_named,
    extract_number,
)
from mi_massive.tasks.verdicts import extract_sentiment, extract_verdict

_LEGACY_POSITIVE = ("yes", "true", "correct", "right")
_LEGACY_NEGATIVE = ("no", "false", "incorrect", "wrong")


def grade_number(text: str, example: Example) -> Grade:
    """Compare the number that the text states last with the gold answer, both normalised."""
    return _compared(extract_number(text), example.answer)


def grade_letter(text: str, example: Example) -> Grade:
    """Compare the option letter, A to E, that the text answers with."""
    return _compared(extract_letter(text), example.answer)


def grade_verdict(text: str, example: Example) -> Grade:
    """Compare the first clear yes or no of the text."""
    return _compared(extract_verdict(text), example.answer)


def grade_sentiment(text: str, example: Example) -> Grade:
    """Compare the sentiment that the text states, positive or negative."""
    return _compared(extract_sentiment(text), example.answer)


def grade_digits(text: str, example: Example) -> Grade:
    """Compare the first run of as many digits as the gold answer has."""
    return _compared(extract_digits(text, len(example.answer)), example.answer)


def grade_named(text: str, example: Example) -> Grade:
    """Compare which option the text names first; without options, look for the gold answer.

    `extracted` is None where the text names none of them, be it another answer or no answer.
    """
    if example.gold is None:
        return _compared(extract_named(text, (example.answer,)), example.answer)
    names = [option.strip() for option in example.options]
    return _compared(extract_named(text, names), names[example.gold])


def legacy_grade_number(text: str, example: Example) -> Grade:
    """Compare the last unsigned number of the text, stated as the answer or not.

    Differs: -10 counts as 10, and any number after the answer replaces it.
    """
    found, gold = _last_unsigned(text), _last_unsigned(example.answer)
    correct = found is not None and gold is not None and float(found) == float(gold)
    return Grade(correct=correct, extracted=found)


def legacy_grade_option_text(text: str, example: Example) -> Grade:
    """Look for the text of the gold option (`facts["option"]`) anywhere, as a substring.

    Differs: "12" is found in "120" and in a calculation, and the letter alone is wrong.
    """
    option = example.facts["option"]
    found = option if option in text else None
    return Grade(correct=found is not None, extracted=found)


def legacy_grade_verdict(text: str, example: Example) -> Grade:
    """Look for positive words, then for negative ones, as substrings.

    Differs: "No, that is incorrect" holds "correct" and is yes; "I know" holds "no" and is no.
    """
    low = text.lower()
    found = None
    if any(word in low for word in _LEGACY_POSITIVE):
        found = "yes"
    elif any(word in low for word in _LEGACY_NEGATIVE):
        found = "no"
    return _compared(found, example.answer)


def legacy_grade_sentiment(text: str, example: Example) -> Grade:
    """Look for "positive" and "negative" as substrings; a text with both is wrong.

    Differs: "not positive" is positive.
    """
    present = [word for word in ("positive", "negative") if word in text.lower()]
    return _compared(present[0] if len(present) == 1 else None, example.answer)


def legacy_grade_digits(text: str, example: Example) -> Grade:
    """Look for the pass key anywhere, as a substring.

    Differs: a longer run of digits that contains the key is right.
    """
    found = example.answer if example.answer in text else None
    return _compared(found, example.answer)


def _compared(found: str | None, gold: str) -> Grade:
    return Grade(correct=found is not None and found == gold, extracted=found)


def _last_unsigned(text: str) -> str | None:
    runs: list[str] = re.findall(r"\d+(?:,\d\d\d)*(?:\.\d+)?", text)
    return runs[-1].replace(",", "") if runs else None
