"""Conflicts: false objects are false, prompts match token by token, counts add up."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

import pytest

import mi_massive
from mi_massive.tasks._conflict_facts import STYLES, load_relations
from mi_massive.tasks._filler import FILLER
from mi_massive.tasks.conflicts import (
    FEWEST_OBJECTS,
    Conflict,
    ConflictSet,
    conflict_pairs,
    make_conflicts,
)

RELATIONS = load_relations()
NAMED = {
    *("country_capital", "city_country", "country_language"),
    *("athlete_sport", "book_author", "product_maker"),
}


class Words:
    """A tokenizer of whole words, each with the space before it, as byte-level ones have them.

    Words in `split` are two tokens; a first token stands before everything if `bos`.
    """

    def __init__(self, *, bos: bool = False, split: Sequence[str] = ()) -> None:
        self.bos = bos
        self.split = set(split)
        self.ids: dict[str, int] = {"<s>": 0}

    def __call__(self, text: str) -> list[int]:
        found = [0] if self.bos else []
        for piece in re.findall(r"\n| ?[\w'’-]+| ?[^\w\s]", text):
            parts = [piece]
            if piece.strip() in self.split:
                parts = [piece[:-1], piece[-1:]]
            found += [self.ids.setdefault(part, len(self.ids)) for part in parts]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        words = {number: word for word, number in self.ids.items()}
        return "".join(words[i] for i in ids)


@pytest.fixture(scope="module", name="words")
def fixture_words() -> Words:
    return Words()


@pytest.fixture(scope="module", name="made")
def fixture_made(words: Words) -> ConflictSet:
    return make_conflicts(words)


def times(word: str, text: str) -> int:
    """How often a word or name stands in a text as a whole."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text))


# --- the data


def test_every_relation_has_fifty_subjects_and_the_six_named_ones_are_there() -> None:
    assert set(RELATIONS) >= NAMED
    for relation in RELATIONS.values():
        assert len(relation.facts) >= 50
        assert len({fact.subject for fact in relation.facts}) == len(relation.facts)


@pytest.mark.parametrize("name", RELATIONS)
def test_every_style_names_subject_and_object_once_and_the_object_after_a_space(name: str) -> None:
    relation = RELATIONS[name]
    assert set(relation.contexts) == set(STYLES)
    assert Counter(field for _, field, _, _ in Formatter().parse(relation.cloze) if field) == {
        "subject": 1
    }
    assert "said" in relation.contexts["quoted"]
    assert relation.contexts["quoted"].count('"') == 2
    assert relation.contexts["according_to_text"].startswith("According to the text, ")
    assert relation.contexts["fictional"].startswith("In the novel, ")
    for template in relation.contexts.values():
        fields = Counter(field for _, field, _, _ in Formatter().parse(template) if field)
        assert fields == {"subject": 1, "object": 1}
        assert " {object}" in template
        assert template.endswith(".")
        for fact in relation.facts:
            # The sentence does not begin as the cloze does up to its end: no mere induction.
            cloze = relation.cloze.format(subject=fact.subject)
            assert cloze not in template.format(subject=fact.subject, object="X")


@pytest.mark.parametrize("name", RELATIONS)
def test_what_is_also_true_is_about_subjects_of_the_relation_and_not_the_fact(name: str) -> None:
    relation = RELATIONS[name]
    path = Path(mi_massive.__file__).parent / "data" / "conflicts.json"
    entry = json.loads(path.read_text(encoding="utf-8"))["relations"][name]
    subjects = {fact.subject for fact in relation.facts}
    assert set(entry.get("also_true", {})) <= subjects
    for fact in relation.facts:
        assert fact.object not in fact.also_true


def test_no_filler_names_a_subject_or_an_object() -> None:
    text = " ".join(FILLER)
    for relation in RELATIONS.values():
        for fact in relation.facts:
            assert times(fact.subject, text) == 0
            assert times(fact.object, text) == 0


def test_authors_are_asked_for_by_surname() -> None:
    by_subject = {fact.subject: fact.object for fact in RELATIONS["book_author"].facts}
    assert by_subject["Oliver Twist"] == "Dickens"
    assert by_subject["Rebecca"] == "du Maurier"
    assert by_subject["Love in the Time of Cholera"] == "García Márquez"
    assert "Candide" not in by_subject  # Voltaire is no surname
    assert "surname" in RELATIONS["book_author"].cloze


# --- what is made of it


def test_a_false_object_is_of_the_relation_and_not_true(made: ConflictSet) -> None:
    for conflict in made.conflicts:
        facts = RELATIONS[conflict.relation].facts
        true = {x for f in facts if f.subject == conflict.subject for x in (f.object, *f.also_true)}
        assert conflict.fact in true
        assert conflict.counterfactual not in true
        assert conflict.counterfactual in {f.object for f in facts}


@pytest.mark.parametrize("seed", range(5))
def test_objects_that_are_also_true_are_never_drawn(words: Words, seed: int) -> None:
    for conflict in make_conflicts(words, relations=["athlete_sport"], seed=seed).conflicts:
        if conflict.subject == "Michael Jordan":
            assert conflict.counterfactual not in ("baseball", "golf", "basketball")


def test_contexts_hold_subject_and_object_exactly_once(made: ConflictSet) -> None:
    for c in made.conflicts:
        assert times(c.subject, c.context) == times(c.counterfactual, c.context) == 1
        assert times(c.fact, c.context) == (1 if c.fact in c.counterfactual.split() else 0)


def test_three_prompts_match_token_by_token(words: Words, made: ConflictSet) -> None:
    for c in made.conflicts:
        assert words.decode(c.conflicting) == f"{c.context}\n{c.cloze}"
        assert words.decode(c.neutral) == f"{c.neutral_context}\n{c.cloze}"
        assert len(c.conflicting) == len(c.consistent) == len(c.neutral) == len(c.unrelated)
        differ = [
            i
            for i, pair in enumerate(zip(c.conflicting, c.consistent, strict=True))
            if pair[0] != pair[1]
        ]
        assert tuple(differ) == c.groups["object"]
        (place,) = differ
        assert c.conflicting[place] == c.context_answer
        assert c.consistent[place] == c.parametric_answer
        n_cloze = len(words(c.cloze))
        assert c.neutral[-n_cloze:] == c.conflicting[-n_cloze:]
        assert words(c.cloze + " " + c.fact)[-1] == c.parametric_answer
        assert times(c.subject, c.neutral_context) == times(c.fact, c.neutral_context) == 0


def test_groups_hold_the_words_they_are_named_after(words: Words, made: ConflictSet) -> None:
    for c in made.conflicts:
        parts = {
            name: words.decode([c.conflicting[p] for p in ps]) for name, ps in c.groups.items()
        }
        assert parts["subject"].strip() == parts["query_subject"].strip() == c.subject
        assert parts["object"] == f" {c.counterfactual}"
        assert c.groups["first"] == (0,)
        assert c.groups["last"] == (len(c.conflicting) - 1,)
        assert max(c.groups["subject"]) < min(c.groups["query_subject"])


def test_a_first_special_token_is_part_of_every_prompt() -> None:
    words = Words(bos=True)
    made = make_conflicts(words, relations=["country_language"])
    for c in made.conflicts:
        assert {ids[0] for ids in (c.conflicting, c.consistent, c.neutral, c.unrelated)} == {0}
        assert c.groups["first"] == (0,)
        named = words.decode([c.conflicting[p] for p in c.groups["subject"]])
        assert named.strip() == c.subject


def test_candidates_are_the_single_tokens_of_the_relations_objects(
    words: Words, made: ConflictSet
) -> None:
    for name, tokens in made.candidates.items():
        objects = {f.object for f in RELATIONS[name].facts if len(words(f" {f.object}")) == 1}
        assert {words.decode([token]) for token in tokens} == {f" {thing}" for thing in objects}
        own = [c for c in made.conflicts if c.relation == name]
        assert {c.context_answer for c in own} | {c.parametric_answer for c in own} <= set(tokens)


def test_objects_of_several_tokens_are_left_out_and_counted() -> None:
    every = {c.relation: c for c in make_conflicts(Words()).counts}
    counts = {c.relation: c for c in make_conflicts(Words(split=["Kenya", "Japan"])).counts}
    lost = sum(f.object in ("Kenya", "Japan") for f in RELATIONS["city_country"].facts)
    before, after = every["city_country"], counts["city_country"]
    assert after.not_one_token == before.not_one_token + lost
    assert after.kept == before.kept - lost
    for count in counts.values():
        dropped = count.not_one_token + count.too_few_alternatives + count.not_aligned
        assert count.kept + dropped == count.subjects == len(RELATIONS[count.relation].facts)


def test_words_that_a_tokenizer_does_not_know_are_no_objects() -> None:
    words = Words()

    def encode(text: str) -> list[int]:
        sports = ("golf", "rugby", "skiing")
        ids = words(text)
        unknown = {words.ids[f" {sport}"] for sport in sports if f" {sport}" in words.ids}
        return [999_999 if token in unknown else token for token in ids]

    made = make_conflicts(encode, relations=["athlete_sport"])
    things = {c.counterfactual for c in made.conflicts} | {c.fact for c in made.conflicts}
    assert not things & {"golf", "rugby", "skiing"}
    assert 999_999 not in made.candidates["athlete_sport"]


def test_a_relation_with_under_four_objects_is_left_out_whole() -> None:
    sports = {f.object for f in RELATIONS["athlete_sport"].facts if " " not in f.object}
    kept = sorted(sports)[: FEWEST_OBJECTS - 1]
    encode = Words(split=sorted(sports - set(kept)))
    made = make_conflicts(encode, relations=["athlete_sport", "country_language"])
    (count,) = (c for c in made.counts if c.relation == "athlete_sport")
    assert count.kept == 0
    assert count.too_few_alternatives == sum(
        f.object in kept for f in RELATIONS["athlete_sport"].facts
    )
    assert set(made.candidates) == {"country_language"}


def test_a_tokenizer_that_merges_across_the_parts_leaves_facts_out_and_counts_them() -> None:
    words = Words()

    def merging(text: str) -> list[int]:
        # "Kenya" and what follows it are one token: the subject has no end of its own.
        return words(re.sub(r"Australia (\w+)", r"Australia-\1", text))

    counts = make_conflicts(merging, relations=["country_language", "country_capital"]).counts
    capital = counts[1]
    assert capital.not_aligned == 1
    assert capital.kept == make_conflicts(words, relations=["country_capital"]).counts[0].kept - 1


def test_relations_and_styles_take_turns_in_every_prefix(words: Words, made: ConflictSet) -> None:
    first = make_conflicts(words, limit=4 * len(RELATIONS)).conflicts
    assert first == made.conflicts[: len(first)]
    assert set(Counter(c.relation for c in first).values()) == {4}
    assert set(Counter((c.relation, c.style) for c in first).values()) == {1}


def test_each_subject_of_a_relation_is_asked_once(made: ConflictSet) -> None:
    assert len({(c.relation, c.subject) for c in made.conflicts}) == len(made.conflicts)


def test_seeds_decide_and_the_same_seed_gives_the_same(words: Words, made: ConflictSet) -> None:
    assert make_conflicts(words).digest == made.digest
    other = make_conflicts(words, seed=1)
    assert other.digest != made.digest
    assert other.counts == made.counts
    assert {c.subject for c in other.conflicts} == {c.subject for c in made.conflicts}


def test_bad_arguments_are_refused(words: Words) -> None:
    with pytest.raises(ValueError, match=r"relations must be among country_capital, .*got 'moons'"):
        make_conflicts(words, relations=["moons"])
    with pytest.raises(ValueError, match="limit must be finite and positive, got 0"):
        make_conflicts(words, limit=0)
    with pytest.raises(ValueError, match=r"encode must give one token .* got none; ask another"):
        make_conflicts(lambda text: list(text.encode()), relations=["country_capital"])


# --- pairs for patching


@pytest.mark.parametrize("corrupted", ["consistent", "neutral"])
def test_pairs_hold_the_prompts_the_answers_and_a_placebo(
    words: Words, made: ConflictSet, corrupted: str
) -> None:
    pairs = conflict_pairs(made.conflicts, corrupted=corrupted)
    assert [pair.id for pair in pairs] == [c.id for c in made.conflicts]
    for pair, c in zip(pairs, made.conflicts, strict=True):
        assert pair.clean == c.conflicting
        assert pair.corrupted == getattr(c, corrupted)
        assert (pair.answer, pair.other) == (c.context_answer, c.parametric_answer)
        assert set(pair.groups) == {"first", "subject", "object", "query_subject", "last"}
        assert pair.placebo is not None
        said = words.decode(pair.placebo)
        assert times(c.subject, said) == times(c.fact, said) == times(c.counterfactual, said) == 0


def test_pairs_take_any_selection_in_its_order(made: ConflictSet) -> None:
    some: list[Conflict] = [made.conflicts[5], made.conflicts[2]]
    assert [pair.id for pair in conflict_pairs(some)] == [some[0].id, some[1].id]
