"""Pairs: the same cloze, options and length in the three conditions; only the context differs."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tasks_passkey import count_pieces
from test_tasks_registry import build, count_words

from mi_massive.tasks._filler import FILLER, matched_filler
from mi_massive.tasks.facts import load_facts
from mi_massive.tasks.pairs import DATA_FILES

CONDITIONS = ("closed_book", "open_book", "counterfactual")


def three(**changes):
    tasks = (build(f"pairs_{condition}", **changes) for condition in CONDITIONS)
    return zip(*(task.examples for task in tasks), strict=True)


def test_the_conditions_share_groups_options_and_clozes_in_the_same_order():
    n = 0
    for closed, opened, counter in three():
        n += 1
        assert closed.group == opened.group == counter.group
        assert closed.options == opened.options == counter.options
        ends = {example.prompt.split("\n")[1] for example in (closed, opened, counter)}
        assert len(ends) == 1
        assert (closed.gold, opened.gold, counter.gold) == (0, 0, 1)
        assert closed.answer == opened.answer == closed.facts["object"]
        assert counter.answer == counter.facts["counterfactual"]
        assert {e.condition for e in (closed, opened, counter)} == set(CONDITIONS)
    assert n == 240


def test_the_context_states_the_gold_answer_or_nothing():
    for closed, opened, counter in three():
        subject, (true, false) = closed.facts["subject"], (o.strip() for o in closed.options)
        assert subject in opened.facts["context"]
        assert true in opened.facts["context"]
        assert subject in counter.facts["context"]
        assert false in counter.facts["context"]
        # As "Russia is" may hold "us", whole words count.
        for name in (subject, true, false):
            assert not re.search(rf"\b{re.escape(name)}\b", closed.facts["context"], re.IGNORECASE)


@pytest.mark.parametrize("count", [count_words, count_pieces], ids=["words", "pieces"])
def test_the_filler_is_as_long_as_the_context_within_two_tokens(count):
    missed = Counter()
    for closed, opened, _ in three(count_tokens=count):
        difference = count(closed.facts["context"]) - count(opened.facts["context"])
        assert abs(difference) <= 2
        missed[difference] += 1
    assert missed[0] > 100
    assert abs(sum(d * n for d, n in missed.items())) < 60  # not longer or shorter on average


@given(st.integers(1, 120), st.integers(0, 99))
def test_filler_of_any_length_ends_as_a_sentence_within_two_tokens(n, seed):
    filler = matched_filler("x " * n, "x", count_tokens=count_words, rng=random.Random(seed))
    shortest = min(map(count_words, FILLER))
    assert abs(count_words(filler) - n) <= (2 if n >= shortest - 2 else shortest)
    assert filler.endswith(".")
    assert filler[0].isupper()


def test_relations_of_all_data_files_take_turns():
    relations = {fact.relation for category in DATA_FILES for fact in load_facts(category)}
    wanted = {"city_country", "athlete_sport", "country_capital", "country_language"}
    assert relations >= wanted | {"product_maker", "book_author"}
    examples = build("pairs_open_book").examples
    counts = Counter(example.facts["relation"] for example in examples)
    assert set(counts) == relations
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {e.facts["relation"] for e in examples[: len(relations)]} == relations


def test_groups_stay_together_at_any_limit_and_seed():
    for limit, seed in ((1, 0), (17, 5)):
        for closed, opened, counter in three(limit=limit, seed=seed):
            assert closed.group == opened.group == counter.group


def test_only_the_counterfactual_answer_tells_reading_from_memory():
    task = build("pairs_counterfactual", limit=20)
    for example in task.examples:
        assert not task.grade(example.facts["object"], example).correct
        assert task.grade(example.facts["counterfactual"], example).correct
        assert task.grade("something else", example).extracted is None
