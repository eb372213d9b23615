"""Finding the answer in a generated text: numbers, option letters, digit runs and names.

Answers: which answer does this text state? Each function returns None where it finds none, or
several of which none stands out; that is a failed extraction, not a wrong answer.

Does not show: that the reasoning before the answer is right, or that the answer was not a guess.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

# Minus sign, en dash and typographic apostrophe as plain characters.
_PLAIN: Final = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2019": "'"})

# A minus after a digit, a letter or a closing bracket subtracts; elsewhere it is a sign.
_NUMBER: Final = (
    r"(?P<sign>(?<![\w)\]])-\$?|\$-)?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?P<below>/\d+)?"
)
_FIND_NUMBER: Final = re.compile(_NUMBER)
_WHOLE_NUMBER: Final = re.compile(rf"\s*\$?{_NUMBER}\s*[%.]?\s*")

# "The answer is", "Answer:", "**Final answer** =", "the answer to this question would be".
_ANSWER_IS: Final = (
    r"(?i:\b(?:answers?|(?:correct|right|best|final)\s+(?:option|choice|letter))\b(?:\s+to\s+[\w\s']{1,60}?)?[\s*_\"']*"
    r"(?:\b(?:is|was|are|equals|comes\s+to|(?:would|should|must|will)\s+be)\b|[:=])"
    r"(?:\s+(?:therefore|thus|then|simply|just|exactly|about|approximately|equal\s+to|"
    r"a\s+total\s+of|option|choice|letter)\b)*)"
)
_MARKUP: Final = r"(?:[\s*_\"'(\[$:=~]|\\\(|\\\[|\\boxed\{|\\text\{)*"
_BOXED: Final = r"\\boxed\{(?:\\text\{|[\s$(])*"

_STATED_NUMBER: Final = re.compile(
    rf"(?:####[\s$]*|{_BOXED}(?:[a-zA-Z]\s*=\s*)?|{_ANSWER_IS}{_MARKUP}(?:[a-zA-Z]\s*=\s*)?){_NUMBER}"
)
_OPERATOR: Final = re.compile(r"\s*(?:[-+*/^×÷x]|\\times|\\cdot|\\div)\s*[\d($.]")
_CLAUSE_END: Final = re.compile(r"\n|\.(?!\d)")

# "A" before a small letter is the article, but for words that go on about option A.
_LETTER: Final = r"(?:A(?!\s+(?!(?:because|since|as|and|with|which|not|is)\b)[a-z])|[B-E])(?![\w'])"
_STATED_LETTER: Final = re.compile(
    rf"(?:{_BOXED}|{_ANSWER_IS}{_MARKUP})(?P<letter>{_LETTER}|(?<=\()[a-e](?=\)))"
)
_FIRST_LETTER: Final = re.compile(
    r"[\s*_\"'(\[]*(?i:(?:option|choice)\s+)?\(?(?P<letter>[A-E])(?=[)\].:*_\"']|\s*(?:\n|$)|\s+-\s)"
)
_MARKED_LETTER: Final = re.compile(
    r"(?<!\bnot )(?:(?<!\w)\((?P<round>[A-E])\)|(?<![\w(])(?P<half>[A-E])\)|\*\*(?P<bold>[A-E])\*\*"
    r"|(?i:\b(?:option|choice))\s+(?P<named>[A-E])\b)"
)
# "So C." after a list of the options; "so B is twice as old" goes on.
_CONCLUDED: Final = re.compile(
    r"(?i:\b(?:so|therefore|thus|hence)\b)[\s,:*_]+(?i:(?:it\s+is|it's|option|choice)\s+)?[(*_]*"
    r"(?P<letter>[A-E])(?![\w'])[)*_]*\s*(?:[.!\n]|$)"
)
_ARTICLE: Final = re.compile(r"^(?:an?|the) (?=.)")
# A name after these is not the answer: "isn't France", "rather than in France".
_DENIED: Final = re.compile(
    r"(?i:\b(?:not|cannot|never|neither|nor|rather than|instead of|far from)|n't)"
    r"(?: (?:an?|the|in|from|of|by|actually|really|at|to|be))* $"
)

_MANY_LETTERS: Final = 4  # a text that marks so many options repeats the list


def normalise_number(text: str) -> str | None:
    """Return the one number that `text` consists of, in the form in which numbers are compared.

    No dollar and percent signs, thousands separators, leading zeros or trailing decimal zeros:
    "$1,234.00" and "1234" are the same. A fraction stays one: "3/4" is not "0.75".

    Returns:
        None if `text` is anything but a number.
    """
    match = _WHOLE_NUMBER.fullmatch(_plain(text))
    return None if match is None else _canonical(match)


def extract_number(text: str) -> str | None:
    r"""Return the last number stated as the answer, else the last number of the text.

    Stated are `#### 18`, `\boxed{18}` and "the answer is 18" with its variants; of a calculation
    ("the answer is 3 + 4 = 7") what stands after the last equals sign.

    Returns:
        The number as `normalise_number` writes it; None without any number.
    """
    plain = _plain(text)
    stated = [_stated_number(plain, match) for match in _STATED_NUMBER.finditer(plain)]
    found = [number for number in stated if number is not None]
    return found[-1] if found else last_number(text)


def last_number(text: str) -> str | None:
    """Return the last number of the text as `normalise_number` writes it; None without any."""
    matches = list(_FIND_NUMBER.finditer(_plain(text)))
    return _canonical(matches[-1]) if matches else None


def extract_letter(text: str) -> str | None:
    r"""Return the option, A to E, that the text answers with.

    In this order: the last that is stated ("The answer is C", `\boxed{C}`); the one that the text
    begins with ("C", "(C)", "C) 12", "**C**"); the only one that is marked anywhere. The article
    in "A train leaves" is no option. A text that repeats the list of options names what it then
    concludes ("so C"), or none.
    """
    plain = text.translate(_PLAIN)
    stated = [match["letter"].upper() for match in _STATED_LETTER.finditer(plain)]
    if stated:
        return stated[-1]
    found = [letter for groups in _MARKED_LETTER.findall(plain) for letter in groups if letter]
    marked = list(dict.fromkeys(found))
    if len(marked) >= _MANY_LETTERS or marked[:3] == ["A", "B", "C"]:
        concluded = [match["letter"] for match in _CONCLUDED.finditer(plain)]
        return concluded[-1] if concluded else None
    first = _FIRST_LETTER.match(plain)
    if first is not None:
        return first["letter"]
    return marked[0] if len(marked) == 1 else None


def extract_digits(text: str, n_digits: int) -> str | None:
    """Return the first run of exactly `n_digits` digits, else the first run of any length.

    A run ends at whatever is no digit: "123 456" and "123,456" are two runs of three.
    """
    runs: list[str] = re.findall(r"[0-9]+", text)
    return next((run for run in runs if len(run) == n_digits), runs[0] if runs else None)


def extract_named(text: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that the text names first, in whole words.

    Accents, a leading article and, but for single letters, case do not count; of two names that
    begin at the same word the longer one wins ("Guinea-Bissau" is not "Guinea"). A name after
    "not", "isn't", "rather than" and the like is passed over.
    """
    keep_case = any(len(name) == 1 for name in names)
    by_form = {_ARTICLE.sub("", _fold(name, keep_case=keep_case)): name for name in names}
    forms = "|".join(re.escape(form) for form in sorted(by_form, key=len, reverse=True))
    folded = _fold(text, keep_case=keep_case)
    for match in re.finditer(rf"(?<!\w)(?:{forms})(?!\w|-\w)", folded):
        if _DENIED.search(folded[: match.start()]) is None:
            return by_form[match[0]]
    return None


def _plain(text: str) -> str:
    """Signs, thousands separators, dollars and fractions without typography and LaTeX."""
    plain = text.translate(_PLAIN).replace("{,}", ",").replace("\\,", "").replace("\\$", "$")
    return re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", plain)


def _canonical(match: re.Match[str]) -> str:
    whole, _, decimals = match["digits"].replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    number = (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    sign = "-" if match["sign"] and "-" in match["sign"] and number != "0" else ""
    return f"{sign}{number}{match['below'] or ''}"


def _stated_number(plain: str, match: re.Match[str]) -> str | None:
    if _OPERATOR.match(plain, match.end()) is None:
        return _canonical(match)
    end = _CLAUSE_END.search(plain, match.end())
    clause = plain[match.end() : end.start() if end else len(plain)]
    _, equals, result = clause.rpartition("=")
    number = _FIND_NUMBER.search(result) if equals else None
    return None if number is None else _canonical(number)


def _fold(text: str, *, keep_case: bool) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    letters = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join((letters if keep_case else letters.casefold()).split())
