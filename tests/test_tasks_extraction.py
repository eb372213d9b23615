"""Extraction of numbers, letters, digit runs and names from texts made to fool it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_massive.tasks.extraction import (
    extract_digits,
    extract_letter,
    extract_named,
    extract_number,
    last_number,
    normalise_number,
)

# --- numbers

NORMALISED = {
    "$1,234.00": "1234",
    "1,234": "1234",
    "-5": "-5",
    "\u22125": "-5",  # minus sign
    "-$5": "-5",
    "$-5.50": "-5.5",
    "-0": "0",
    "3/4": "3/4",
    "\\frac{3}{4}": "3/4",
    "007": "7",
    ".5": "0.5",
    "0.50": "0.5",
    "18.": "18",
    "18%": "18",
    " 18 ": "18",
    "10{,}000": "10000",
    "": None,
    "eighteen": None,
    "18 apples": None,
    "1 2": None,
}


@pytest.mark.parametrize("text", NORMALISED)
def test_numbers_are_compared_in_one_form(text):
    assert normalise_number(text) == NORMALISED[text]


@given(st.integers(-(10**9), 10**9))
def test_separators_signs_and_decimal_zeros_do_not_count(n):
    forms = (str(n), f"{n:,}", f"{n:,}.00", f"{n}%", f"The answer is {n:,}.", f"#### {n}")
    assert {extract_number(form) for form in forms} == {str(n)}


NUMBERS = {
    "": None,
    "No numbers here.": None,
    "18": "18",
    "#### 18": "18",
    "18 apples ... the answer is 20.": "20",
    "The answer is 20. There are 7 left over.": "20",
    "The answer is $1,234.00.": "1234",
    "the answer is -5": "-5",
    "The answer is \u22125.": "-5",
    "The answer is 3/4.": "3/4",
    "The answer is \\frac{3}{4}.": "3/4",
    "The answer is **18**.": "18",
    "**Final answer:** 18 dollars, 3 of them hers": "18",
    "Answer: \\(18\\), from 3 and 6": "18",
    "The answer to the question is 18, since 2 are lost": "18",
    "The final answer is $\\boxed{18}$ of 20.": "18",
    "So \\boxed{x = 18} of 20": "18",
    "\\boxed{\\$1{,}250} of 3": "1250",
    "\\boxed{\\text{18}}, not 3": "18",
    "The answer is 3 + 4 = 7. Check 9.": "7",
    "The answer is 16-3-4 = 9 eggs of 16": "9",
    "The answer is 3 + 4": "4",  # unresolved: the last number
    "The answer is 12. Wait, the correct answer is 15, as 2 are lost.": "15",
    "#### 18\nThe answer is 20": "20",
    "The answer is not 7 but 8": "8",
    "16-3-4=9": "9",
    "She has 5-3 apples": "3",
    "between 5\u201310": "10",
    "- 5 apples": "5",
    "It costs $18.": "18",
    "She answers 3 letters and writes 4": "4",
    "He has .5 litres": "0.5",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_last_stated_number_is_the_answer(text):
    assert extract_number(text) == NUMBERS[text]


def test_the_last_number_ignores_what_is_stated():
    assert last_number("The answer is 20. There are 7 left.") == "7"
    assert last_number("") is None


# --- option letters

LETTERS = {
    "": None,
    "C": "C",
    " C\n": "C",
    "C.": "C",
    "(C)": "C",
    "C)": "C",
    "C) 12": "C",
    "**C**": "C",
    "**C) 12**": "C",
    "Option C": "C",
    "The answer is C": "C",
    "The answer is (c).": "C",
    "The answer is **C**.": "C",
    "The answer is option C.": "C",
    "The correct option is C.": "C",
    "The answer is C) 12, not A) 7": "C",
    "The answer is not A) 7 but C) 12": "C",
    "A) 7 is too small. The answer is B.": "B",
    "The answer is B. Wait, the answer is D.": "D",
    "Answer: A": "A",
    "The answer is A because 3 < 4": "A",
    "The final answer is $\\boxed{C}$": "C",
    "\\boxed{\\text{C}}": "C",
    "A train leaves at noon and arrives at 3.": None,
    "A train leaves. That takes 5 hours, which is (D).": "D",
    "The answer is a train": None,
    "A, B and C work together for 5 days.": None,
    "B is twice as old as C.": None,
    "P(A) is one half": None,
    "A) 1 B) 2 C) 3 D) 4 E) 5": None,
    "Either (B) or (C)": None,
    "A)1 B)2 C)3 so C": "C",
    "A) 1 B) 2 C) 3 D) 4 E) 5. Therefore, it is (D).": "D",
    "A) 1 B) 2 C) 3": None,
    "A) 1 B) 2 C) 3, so B is the largest but one": None,
    "A) 7, because B) 12 is too much": "A",
    "Because 5 x 3 = 15, 12 is right.": None,
    "Clearly": None,
    "E": "E",
}


@pytest.mark.parametrize("text", LETTERS)
def test_the_letter_of_the_answer_is_found_and_the_article_is_none(text):
    assert extract_letter(text) == LETTERS[text]


# --- digit runs

DIGITS = {
    "": None,
    "none": None,
    " 123456. The": "123456",
    "sentence 3: 123456": "123456",
    "1234567": "1234567",
    "123 456": "123",
    "123-456": "123",
    "123,456": "123",
    "12345": "12345",
    "654321, then 123456": "654321",
}


@pytest.mark.parametrize("text", DIGITS)
def test_a_key_is_a_whole_run_of_digits(text):
    assert extract_digits(text, 6) == DIGITS[text]


# --- names


@pytest.mark.parametrize(
    ("text", "names", "named"),
    [
        (" Kenya.", ["Kenya", "Peru"], "Kenya"),
        ("It is PERU, not Kenya", ["Kenya", "Peru"], "Peru"),
        ("not Kenya but Peru", ["Kenya", "Peru"], "Peru"),
        ("not the Kenya but Peru", ["the Kenya", "Peru"], "Peru"),
        ("It isn\u2019t Kenya, it\u2019s Peru", ["Kenya", "Peru"], "Peru"),
        ("He wasn't in the Kenya but Peru", ["the Kenya", "Peru"], "Peru"),
        ("Rather than Kenya: Peru", ["Kenya", "Peru"], "Peru"),
        ("neither Kenya nor Peru", ["Kenya", "Peru"], None),
        ("I can't say. Kenya", ["Kenya", "Peru"], "Kenya"),
        ("It isn't K but M", ["K", "M"], "M"),
        ("Not Kenya. Kenya?", ["Kenya", "Peru"], "Kenya"),
        ("knot Kenya", ["Kenya", "Peru"], "Kenya"),
        ("Nigeria", ["Niger", "Peru"], None),
        ("Guinea-Bissau", ["Guinea", "Peru"], None),
        ("Guinea-Bissau", ["Guinea", "Guinea-Bissau"], "Guinea-Bissau"),
        ("Sao Paulo", ["São Paulo", "Peru"], "São Paulo"),
        ("in United\nStates", ["the United States", "Peru"], "the United States"),
        ("an old singer", ["a singer", "a painter"], "a singer"),
        ("N\u2019Djamena", ["N'Djamena", "Peru"], "N'Djamena"),
        ("Jane Austen's", ["Jane Austen", "Homer"], "Jane Austen"),
        ("Bolivia", ["Kenya", "Peru"], None),
        ("", ["Kenya", "Peru"], None),
        (" K. The", ["K", "M"], "K"),
        ("a k, then M", ["K", "M"], "M"),
        ("C. T. R. Wilson", ["C. T. R. Wilson", "Peru"], "C. T. R. Wilson"),
    ],
)
def test_the_first_name_in_whole_words_counts(text, names, named):
    assert extract_named(text, names) == named
