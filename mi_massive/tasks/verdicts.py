"""Finding a verdict in words: yes or no, positive or negative.

Answers: does this text say yes or no (positive or negative)? Words are compared whole, a negation
turns a verdict round, and a text that says both has none.

Does not show: what a text means that never says so ("He was born elsewhere."): that has no verdict.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal

Verdict = Literal["yes", "no"]
Sentiment = Literal["positive", "negative"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_YES: Final = _set("yes yeah yep yup")
_NO: Final = _set("no nope nah")
_RIGHT: Final = _set("true correct right accurate")
_WRONG: Final = _set("false incorrect wrong untrue inaccurate")

# "No" before these is a determiner: "no idea", "no longer".
_AFTER_DETERMINER: Final = _set(
    "body clue doubt evidence idea indication information knowledge less longer matter mention "
    "more need one opinion other possibility problem proof question reason record report sense "
    "single source such way worries"
)
# "The answer is no because ...": the verdict goes on.
_AFTER_VERDICT: Final = _set("and as because but for it since that this")
_NEGATORS: Final = _set("cannot hardly neither never nor not")
_NEGATING_PAIRS: Final = frozenset({("far", "from"), ("anything", "but")})
_ADVERBS: Final = _set(
    "absolutely actually also certainly clearly completely course definitely entirely fact "
    "factually historically however in indeed of perfectly quite simply still totally very"
)
_BE: Final = _set("am are be been he's is it's seems she's sounds that's was were")
_ARTICLES: Final = _set("a an the")
_CLAIMS: Final = _set("answer assertion claim fact information statement")
# A verdict under one of these is not clear: "I am not sure that is correct", "partly true".
_HEDGES: Final = _set(
    "almost both certain could half if likely maybe may might nearly partially partly perhaps "
    "possibly probably somewhat sure unclear unsure whether"
)
_OF_PLACE: Final = _set("after at away before behind beside by in next now on outside")

_VERDICT_WORD: Final = r"yes|no|true|false|correct|incorrect|right|wrong"
_ECHO: Final = re.compile(rf"\b(?:{_VERDICT_WORD})(?:\s+or\s+|\s*/\s*)(?:{_VERDICT_WORD})\b")
_BOTH: Final = re.compile(
    rf"\b(?:{_VERDICT_WORD}),?\s+(?:and|nor|&)\s+(?:{_VERDICT_WORD})\b(?!\s+\w)"
)
_BOTH_SENTIMENTS: Final = re.compile(
    r"\b(?:positive|negative)(?:\s+(?:or|and|nor|&)\s+|\s*/\s*)(?:positive|negative)\b"
)
# What a review's verdict may stand before: "a negative review", but not "positive aspects".
_REVIEWED: Final = _set(
    "about because feeling for impression it's on one opinion overall rating review sentiment "
    "since this tone toward towards"
)
_WEAKENED: Final = _set("all completely entirely exactly fully overly totally wholly")


def extract_verdict(text: str) -> Verdict | None:
    """Return the first clear verdict of the text.

    "Yes" and "no" are verdicts where they stand alone or open a clause; "true", "correct", "right",
    "accurate" and their opposites where they are said of something ("that is not correct" is no).
    Questions, an echo of "yes or no", "know", "nothing" and "no idea" hold no verdict.

    Returns:
        None without a clear verdict, and for "yes and no".
    """
    for clause, end in _clauses(text):
        asserted = _ECHO.sub(" ", clause)
        if _BOTH.search(asserted):
            return None
        if end == "?":
            continue
        for part in asserted.split(","):
            verdict = _verdict_of(_words(part))
            if verdict is not None:
                return verdict
    return None


def extract_sentiment(text: str) -> Sentiment | None:
    """Return the first clear sentiment of the text, else the only one that it names.

    Clear is the word alone, at the end of its clause or before "review" and the like; a negation
    turns it round. "Positive and negative" names none.
    """
    named: list[Sentiment] = []
    for clause, end in _clauses(text):
        if end == "?":
            continue
        for part in _BOTH_SENTIMENTS.sub(" ", clause).split(","):
            words = _words(part)
            for i, word in enumerate(words):
                if word not in ("positive", "negative") or _WEAKENED & {*words[max(0, i - 1) : i]}:
                    continue
                sentiment = _turned(word, words[max(0, i - 4) : i])
                heading = end == ":" and len(words) == 1
                if not heading and (i + 1 == len(words) or words[i + 1] in _REVIEWED):
                    return sentiment
                named.append(sentiment)
    return named[0] if len(set(named)) == 1 else None


def _clauses(text: str) -> Iterator[tuple[str, str]]:
    """Clauses in small letters without markup, each with the sign that ends it."""
    plain = text.replace("\u2019", "'").casefold()
    parts = re.split(r"([.!?;:\n]+|\s-+\s|\s*\u2014\s*)", re.sub(r"[*_\"“”`#()\[\]]", " ", plain))
    for clause, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if clause.strip():
            yield clause, "?" if "?" in end else end[:1]


def _words(clause: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?|\d+", clause)


def _verdict_of(words: Sequence[str]) -> Verdict | None:
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        if word in _YES:
            return "no" if i and words[i - 1] == "not" else "yes"
        if word in _NO and _is_verdict_no(words[:i], after):
            return "no"
        if word in _RIGHT | _WRONG and _is_predicate(words[:i], word, after):
            holds = (word in _RIGHT) == (_n_negations(words[:i]) % 2 == 0)
            return "yes" if holds else "no"
    certainly_not = len(words) > 1 and words[-1] == "not" and {*words[:-1]} <= _ADVERBS
    return "no" if certainly_not else None


def _is_verdict_no(before: Sequence[str], after: str) -> bool:
    if not after:
        return True
    if not before:
        return after not in _AFTER_DETERMINER
    return before[-1] in _BE | {"answer"} and after in _AFTER_VERDICT


def _is_predicate(before: Sequence[str], word: str, after: str) -> bool:
    """Whether the adjective judges what was said: "that is (not) correct", "a true statement"."""
    if _HEDGES & {*before} or (word == "right" and after in _OF_PLACE):
        return False
    rest = list(before)
    article = False
    while rest and (rest[-1] in _ADVERBS | _NEGATORS | _ARTICLES):
        article = rest.pop() in _ARTICLES or article
    if rest and not (rest[-1] in _BE or rest[-1].endswith("n't")):
        return False
    if article:  # "the correct answer" alone judges nothing, "a true statement" does
        return after in _CLAIMS and (bool(rest) or before[0] != "the")
    return bool(rest) or not after or after in _AFTER_VERDICT


def _n_negations(words: Sequence[str]) -> int:
    pairs = sum(pair in _NEGATING_PAIRS for pair in pairwise(words))
    return pairs + sum(word in _NEGATORS or word.endswith("n't") for word in words)


def _turned(word: str, before: Sequence[str]) -> Sentiment:
    positive = (word == "positive") == (_n_negations(before) % 2 == 0)
    return "positive" if positive else "negative"
