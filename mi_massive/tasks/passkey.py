"""Pass keys: a digit string hidden between sentences about nothing, to be given back.

Answers: can the model copy from anywhere in its prompt? The key stands between two sentences, in a
place drawn uniformly from the first to the last. The length is counted with the model's tokenizer:
a prompt of `passkey_128_6` has at most 128 tokens and lacks less than one sentence.

Does not show: understanding of the prompt. Copying a digit string after its announcement needs one
induction step; a model may pass here and fail at everything else that is contextual.

Source:
    Mohtashami and Jaggi 2023, arXiv:2305.16300; presets of Jin et al. 2025.
    Differs: the stated length is that of the whole prompt (the published (128, 6) prompts have 126
    to 558 tokens); every model is asked the question; the filler varies; the key is a whole run of
    digits in the answer, not a substring.
"""

import random
from functools import partial

from mi_massive.tasks._filler import FILLER
from mi_massive.tasks.base import CountTokens, Example, Task, TaskInput, TaskSource
from mi_massive.tasks.scoring import grade_digits, legacy_grade_digits

_PRESETS = ((128, 6), (256, 12), (1024, 48))  # tokens, digits
_INTRO = "One sentence of the text below tells a pass key. Find it and remember it."
_KEY = "The pass key is {key}. Remember it. {key} is the pass key."
_N_OPTIONS = 4
_MIN_SENTENCES = 2  # with fewer the key is not hidden


def _build(source: TaskSource, given: TaskInput, *, n_tokens: int, n_digits: int) -> Task:
    assert given.count_tokens is not None  # load_task gives it to tasks that need a tokenizer
    rng = random.Random(f"{source.name}:{given.seed}")
    sizes = {s: max(1, given.count_tokens(f" {s}")) for s in FILLER}
    return Task(
        name=source.name,
        kind=source.kind,
        version=source.version,
        summary=source.summary,
        examples=tuple(
            _example(
                f"{source.name}/{given.seed}/{i}",
                keys=_random_keys(rng, n_digits),
                n_tokens=n_tokens,
                sizes=sizes,
                count_tokens=given.count_tokens,
                rng=rng,
            )
            for i in range(given.limit)
        ),
        grade=grade_digits,
        legacy_grade=legacy_grade_digits,
        chance=0.0,
        max_new_tokens=n_digits + 12,  # a key at one token a digit, after a few words
    )


def _random_keys(rng: random.Random, n_digits: int) -> tuple[str, ...]:
    """Different random digit strings; the first digit is never 0."""
    keys: set[str] = set()
    while len(keys) < _N_OPTIONS:
        keys.add(str(rng.randrange(10 ** (n_digits - 1), 10**n_digits)))
    return tuple(rng.sample(sorted(keys), _N_OPTIONS))


def _example(
    name: str,
    *,
    keys: tuple[str, ...],
    n_tokens: int,
    sizes: dict[str, int],
    count_tokens: CountTokens,
    rng: random.Random,
) -> Example:
    gold = rng.randrange(len(keys))
    order = rng.sample(FILLER, len(FILLER))
    sentences = _fill(order, keys[gold], n_tokens, sizes, count_tokens)
    if len(sentences) < _MIN_SENTENCES:
        least = count_tokens(_prompt(_text(order[:_MIN_SENTENCES], keys[gold], 0)))
        raise ValueError(
            f"n_tokens must be at least {least} to hide a key of {len(keys[gold])} digits with "
            f"this tokenizer, got {n_tokens} at {name}; take a preset with more tokens"
        )
    slot = rng.randint(0, len(sentences))
    text = _text(sentences, keys[gold], slot)
    return Example(
        id=name,
        prompt=_prompt(text),
        question=f"{text}\n\nWhat is the pass key? Answer with the digits alone.",
        answer=keys[gold],
        options=tuple(f" {key}" for key in keys),
        gold=gold,
        group=name,
        facts={
            "position": f"{slot} of {len(sentences)} sentences before the key",
            "n_tokens": str(count_tokens(_prompt(text))),
        },
    )


def _fill(
    order: list[str], key: str, n_tokens: int, sizes: dict[str, int], count_tokens: CountTokens
) -> list[str]:
    """As many sentences, in this order over and over, as fit into the prompt."""

    def sentences(n: int) -> list[str]:
        return [order[i % len(order)] for i in range(n)]

    def total(n: int) -> int:
        return count_tokens(_prompt(_text(sentences(n), key, n)))

    # Estimated from single sentences, whose sum may be a little off; then counted as a whole.
    n, left = 0, n_tokens - total(0)
    while sizes[order[n % len(order)]] <= left:
        left -= sizes[order[n % len(order)]]
        n += 1
    while n > 0 and total(n) > n_tokens:
        n -= 1
    while total(n + 1) <= n_tokens:
        n += 1
    return sentences(n)


def _text(sentences: list[str], key: str, slot: int) -> str:
    hidden = [*sentences[:slot], _KEY.format(key=key), *sentences[slot:]]
    return f"{_INTRO}\n\n{' '.join(hidden)}"


def _prompt(text: str) -> str:
    return f"{text}\n\nWhat is the pass key? The pass key is"


SOURCES = tuple(
    TaskSource(
        name=f"passkey_{n_tokens}_{n_digits}",
        kind="contextual",
        summary=f"A key of {n_digits} digits hidden in a prompt of {n_tokens} tokens.",
        default_limit=100,
        build=partial(_build, n_tokens=n_tokens, n_digits=n_digits),
        version=2,
        needs_tokenizer=True,
    )
    for n_tokens, n_digits in _PRESETS
)
