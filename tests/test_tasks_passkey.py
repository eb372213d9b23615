"""Pass keys: as long as they say, the key anywhere, and found only as a whole run of digits."""

import re

import pytest
from test_tasks_registry import build, count_words

from mi_massive.tasks import TASKS, load_task
from mi_massive.tasks._filler import FILLER

PRESETS = {"passkey_128_6": (128, 6), "passkey_256_12": (256, 12), "passkey_1024_48": (1024, 48)}
LONGEST = max(map(count_words, FILLER))


def count_pieces(text: str) -> int:
    """A tokenizer that splits words and digits, so that single sentences do not add up."""
    return len(re.findall(r"[0-9]|[^\W\d]{1,4}|[^\w\s]|\n", text))


def test_the_presets_are_those_published():
    assert [name for name in TASKS if name.startswith("passkey")] == list(PRESETS)


@pytest.mark.parametrize("count", [count_words, count_pieces], ids=["words", "pieces"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_prompt_lacks_less_than_one_sentence_of_its_stated_length(name, count):
    n_tokens, n_digits = PRESETS[name]
    longest = max(map(count, FILLER))
    for example in build(name, limit=30, count_tokens=count).examples:
        assert n_tokens - longest < count(example.prompt) <= n_tokens + 1
        assert int(example.facts["n_tokens"]) == count(example.prompt)
        assert re.fullmatch(rf"[1-9]\d{{{n_digits - 1}}}", example.answer)


@pytest.mark.parametrize("name", PRESETS)
def test_the_key_stands_between_two_whole_sentences_and_every_prompt_asks_for_it(name):
    for example in build(name, limit=20).examples:
        sentence = f"The pass key is {example.answer}. Remember it. {example.answer} is the pass"
        before, found, after = example.prompt.partition(sentence)
        assert found
        assert before.endswith((". ", ".\n\n"))
        assert after.startswith((" key. ", " key.\n\n"))
        assert example.prompt.endswith("What is the pass key? The pass key is")
        assert "What is the pass key?" in example.question
        assert set(re.findall(r"\d+", example.prompt)) == {example.answer}


def test_the_key_stands_anywhere_from_the_first_place_to_the_last():
    task = build("passkey_1024_48", limit=200)
    shares = []
    for example in task.examples:
        slot, last = map(int, re.findall(r"\d+", example.facts["position"]))
        shares.append(slot / last)
        place = example.prompt.index(example.answer) / len(example.prompt)
        assert abs(place - slot / last) < 0.1
    assert min(shares) < 0.02
    assert max(shares) > 0.98
    # Each quarter of the prompt holds a quarter of 200 keys: 50, standard deviation 6.
    quarters = [sum(q <= 4 * share < q + 1 for share in shares) for q in range(3)]
    assert all(32 <= n <= 68 for n in quarters)


def test_options_are_random_keys_of_the_same_length_in_random_order():
    task = build("passkey_256_12")
    for example in task.examples:
        assert len(set(example.options)) == 4
        assert {len(option) for option in example.options} == {13}
        assert example.gold is not None
        assert example.options[example.gold] == f" {example.answer}"
    assert {example.gold for example in task.examples} == {0, 1, 2, 3}
    assert (task.chance, task.options_chance) == (0, 1 / 4)


def test_the_filler_varies_and_holds_no_digit():
    assert len(set(FILLER)) == len(FILLER) >= 12
    assert not any(re.search(r"\d", sentence) for sentence in FILLER)
    starts = {example.prompt.split("\n\n")[1][:20] for example in build("passkey_128_6").examples}
    assert len(starts) > 12


def test_a_longer_run_that_holds_the_key_is_no_answer():
    task = build("passkey_128_6", limit=1)
    (example,) = task.examples
    assert task.grade(f" {example.answer}. {example.answer} is", example).correct
    assert not task.grade(f"1{example.answer}", example).correct
    assert not task.grade(f"{example.answer[:3]} {example.answer[3:]}", example).correct
    assert task.legacy_grade is not None
    assert task.legacy_grade(f"1{example.answer}", example).correct


def test_a_tokenizer_of_letters_leaves_no_room_and_is_refused():
    message = (
        r"n_tokens must be at least \d{3} to hide a key of 6 digits with this tokenizer, got 128 "
        r"at passkey_128_6/0/0; take a preset with more tokens"
    )
    with pytest.raises(ValueError, match=message):
        load_task("passkey_128_6", count_tokens=len)


def test_the_examples_of_a_seed_are_the_same_on_every_machine():
    assert [example.answer for example in build("passkey_128_6", limit=3).examples] == [
        *("346686", "162407", "374717")
    ]
