"""Letters and recall: the same surface, one answered by the prompt and one by memory alone."""

import re

from test_tasks_registry import build

from mi_massive.tasks.letters import N_ENTRIES

ENTRY = re.compile(r"The capital of (.+?): (.+?)\.(?= The)")


def entries(prompt: str) -> dict[str, str]:
    found = ENTRY.findall(prompt)
    assert len(found) == len(dict(found)) == N_ENTRIES
    return dict(found)


def both(**changes):
    tasks = (build(name, **changes) for name in ("letters", "letters_recall"))
    return zip(*(task.examples for task in tasks), strict=True)


def test_both_tasks_ask_for_the_same_country_after_equally_many_entries():
    n = 0
    for letters, recall in both():
        n += 1
        assert letters.group == recall.group
        end = f"The capital of {letters.facts['subject']}:"
        assert letters.prompt.endswith(f". {end}")
        assert recall.prompt.endswith(f". {end}")
        shared = set(entries(letters.prompt)) & set(entries(recall.prompt))
        assert len(shared) == N_ENTRIES - 1
    assert n == 100


def test_letters_are_told_by_the_prompt_and_capitals_are_not():
    for letters, recall in both():
        subject, capital = letters.facts["subject"], letters.facts["object"]
        assert entries(letters.prompt)[subject] == letters.answer
        assert subject not in entries(recall.prompt)
        assert capital not in entries(recall.prompt).values()
        assert recall.answer == capital


def test_options_are_the_answers_of_the_list_with_gold_in_the_same_place():
    for letters, recall in both():
        assert letters.options == tuple(f" {x}" for x in entries(letters.prompt).values())
        shown = [f" {x}" for x in entries(recall.prompt).values()]
        gold = recall.gold
        assert letters.gold == gold is not None
        assert [o for i, o in enumerate(recall.options) if i != gold] == [
            o for i, o in enumerate(shown) if i != gold
        ]
        assert recall.options[gold] == f" {recall.answer}"


def test_no_letter_is_a_word_or_begins_its_country_or_capital():
    for letters, recall in both():
        assert letters.answer not in "AI"
        assert len(set(letters.options)) == N_ENTRIES
        names = f"{letters.facts['subject']} {recall.answer}".split()
        assert letters.answer not in {name[0].upper() for name in names}


def test_the_asked_entry_stands_anywhere_in_the_list():
    golds = [letters.gold for letters, _ in both()]
    assert set(golds) == set(range(N_ENTRIES))


def test_the_floors_are_those_of_the_answers():
    letters, recall = build("letters"), build("letters_recall")
    assert letters.options_chance == recall.options_chance == 1 / N_ENTRIES
    assert (letters.chance, recall.chance) == (1 / N_ENTRIES, 0)
    assert (letters.kind, recall.kind) == ("contextual", "parametric")
