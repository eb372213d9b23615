"""Graders compare what was found with the gold answer; the published ones err as they did."""

from typing import Any

import pytest

from mi_massive.tasks import Example
from mi_massive.tasks.scoring import (
    grade_digits,
    grade_letter,
    grade_named,
    grade_number,
    grade_sentiment,
    grade_verdict,
    legacy_grade_digits,
    legacy_grade_number,
    legacy_grade_option_text,
    legacy_grade_sentiment,
    legacy_grade_verdict,
)


def asked(answer: str, **changes: Any) -> Example:
    return Example(**({"id": "a", "prompt": "p", "question": "q", "answer": answer} | changes))


def test_numbers_are_graded_after_normalisation():
    assert grade_number("The answer is $18.00.", asked("18")).correct
    assert not grade_number("The answer is 180.", asked("18")).correct
    assert not grade_number("The answer is 18.", asked("-18")).correct
    failed = grade_number("I cannot say.", asked("18"))
    assert (failed.correct, failed.extracted) == (False, None)


def test_the_published_number_grader_takes_the_last_number_without_its_sign():
    assert legacy_grade_number("The answer is 10.", asked("-10")).correct
    assert not legacy_grade_number("The answer is 20. 7 are left.", asked("20")).correct
    assert legacy_grade_number("$1,234.00", asked("1234")).correct
    assert not legacy_grade_number("none", asked("1")).correct


def test_letters_are_graded():
    assert grade_letter("The answer is C.", asked("C")).correct
    assert not grade_letter("The answer is D.", asked("C")).correct
    assert grade_letter("A train leaves", asked("A")).extracted is None


def test_the_published_option_grader_looks_for_the_text_of_the_option_anywhere():
    example = asked("C", facts={"option": "12"})
    assert legacy_grade_option_text("120 by way of 3", example).correct
    assert not legacy_grade_option_text("The answer is C.", example).correct


def test_verdicts_are_graded():
    assert grade_verdict("No, that is incorrect.", asked("no")).correct
    assert not grade_verdict("No, that is incorrect.", asked("yes")).correct
    assert grade_verdict("I don't know", asked("no")).extracted is None


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("No, that is incorrect.", "yes"),
        ("I know", "no"),
        ("It is not true", "yes"),
        ("Tokyo", None),
        ("No.", "no"),
    ],
)
def test_the_published_verdict_grader_looks_for_positive_words_first(text, published):
    assert legacy_grade_verdict(text, asked("yes")).extracted == published
    assert legacy_grade_verdict(text, asked("yes")).correct == (published == "yes")


def test_sentiments_are_graded_and_the_published_grader_ignores_negation():
    assert grade_sentiment("not positive", asked("negative")).correct
    assert legacy_grade_sentiment("not positive", asked("positive")).correct
    both = legacy_grade_sentiment("Positive, not negative", asked("positive"))
    assert (both.correct, both.extracted) == (False, None)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (" 123456. The", True),
        ("sentence 3: 123456", True),
        ("1234567", False),
        ("123 456", False),
        ("123,456", False),
        ("654321, then 123456", False),
    ],
)
def test_a_key_is_graded_as_the_first_whole_run_of_its_length(text, correct):
    assert grade_digits(text, asked("123456")).correct == correct


def test_the_published_key_grader_accepts_a_longer_run():
    assert legacy_grade_digits("91234567", asked("123456")).correct
    assert not legacy_grade_digits("12345", asked("123456")).correct


def test_named_answers_are_graded_against_the_gold_option():
    example = asked("Kenya", options=(" Peru", " Kenya"), gold=1)
    assert grade_named("Kenya, not Peru", example).correct
    assert not grade_named("Peru, not Kenya", example).correct
    assert grade_named("Bolivia", example).extracted is None


def test_without_options_the_answer_is_looked_for():
    assert grade_named("I think it is blue.", asked("blue")).correct
    assert grade_named("Blueish", asked("blue")).extracted is None
