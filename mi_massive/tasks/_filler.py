"""Sentences about nothing in particular, and a text of them that is as long as another one.

Answers: what to put where something else stood, so that only the content differs. No sentence holds
a name, a number, a country, a trade or a sport.
"""

import random
from typing import Final

from mi_massive.tasks.base import CountTokens

FILLER: Final[tuple[str, ...]] = (
    "The rain stopped early.",
    "Nobody closed the window.",
    "The lamp was still warm.",
    "A door creaked down the hall.",
    "The soup needed more salt again.",
    "Someone had left the gate open.",
    "The shelf was full of old jars.",
    "A thin layer of dust covered everything.",
    "The kettle took a long time to boil.",
    "Two chairs stood by the window all week.",
    "The blanket on the sofa was soft and grey.",
    "Leaves gathered slowly in the corner of the yard.",
    "A bicycle leaned against the wall behind the shed.",
    "The path to the pond was muddy after the storm.",
    "Every morning the baker swept the step before the shop opened.",
    "The curtains moved a little whenever somebody opened the front door.",
    "A neighbour borrowed the ladder and brought it back before it was dark.",
    "The children drew long lines with chalk on the pavement until supper time.",
    "There was a smell of wet grass, and the benches in the park were empty.",
    "The old clock in the kitchen ran slow, so everyone had learned to leave early.",
    "A box of letters lay under the bed, tied with a string that had lost its colour.",
    "The bus was late again, and the people at the stop talked about the weather to pass time.",
    "On the table stood a bowl of pears, a jug of water and a candle that had burned down.",
    "The cat slept on the warm stones near the steps and did not move when the rain began to fall.",
    "Paint was peeling from the fence.",
    "The carpet had a small dark stain.",
    "Fresh bread cooled on the counter.",
    "The stairs were steep and rather narrow.",
    "A moth circled the light for an hour.",
    "The garden hose lay coiled beside the tap.",
    "Somebody had folded the towels and put them away.",
    "The river was low, and the stones were dry.",
    "A basket of apples waited in the cool dark cellar.",
    "The wind pushed the clouds quickly over the hills all day.",
    "The letter arrived late because the envelope had the wrong stamp on it.",
    "The broom stood in its usual place behind the door of the pantry.",
    "In the evening the street grew quiet and the lights came on one after another.",
    "The shop on the corner sold thread, buttons, ribbons and a few rolls of plain cloth.",
    "A row of jars stood along the sill, and one was cracked.",
    "The coat on the hook by the door had been wet since early that morning.",
    "Nobody could say when the tree had been planted, but it gave good shade in summer.",
    "The floor had just been washed, so they waited outside until it was dry and talked in low "
    "voices.",
    "The road bends twice before it reaches the mill, and after heavy rain it is better to walk "
    "along the bank.",
    "She put the cups back on the shelf, wiped the table with a damp cloth and opened the window "
    "to let in some air.",
    "When the light began to fade they gathered the tools, covered the boat with an old sheet and "
    "walked slowly up to the house.",
)
"""Four to twenty-four words each."""

_CLOSE: Final = 1  # tokens by which a whole sentence may miss before a text is cut to length


def matched_filler(text: str, other: str, *, count_tokens: CountTokens, rng: random.Random) -> str:
    """Return filler that has as many tokens as `text`, as nearly as whole words allow.

    Drawn among the sentences that come nearest to `text`, then to `other`. If none comes within
    one token, sentences are joined and words dropped from the end.

    Args:
        text: What the filler stands for.
        other: Decides between sentences that are equally near to `text`.
        count_tokens: Number of tokens of a text.
        rng: Draws among equals.
    """
    wanted, second = count_tokens(text), count_tokens(other)

    def distance(filler: str) -> tuple[int, int]:
        n = count_tokens(filler)
        return abs(n - wanted), abs(n - second)

    by_distance = {sentence: distance(sentence) for sentence in FILLER}
    nearest = min(by_distance.values())
    if nearest[0] <= _CLOSE:
        return rng.choice([s for s, far in by_distance.items() if far == nearest])
    words: list[str] = []
    while count_tokens(" ".join(words)) < wanted:
        words += rng.choice(FILLER).split()
    # Cut anywhere: the last words need not be a whole sentence, but they end in a full stop.
    cuts = [" ".join(words[:n]).rstrip(".,") + "." for n in range(1, len(words) + 1)]
    return min([*cuts, *FILLER], key=distance)


def filler_of_length(
    n_tokens: int, *, count_tokens: CountTokens, rng: random.Random, n_tries: int = 40
) -> str | None:
    """Return filler of exactly so many tokens.

    A sentence if one has the length; else sentences joined, with words dropped from the end where
    whole ones do not fit.

    Args:
        n_tokens: Tokens wanted.
        count_tokens: Number of tokens that a filler takes where it will stand.
        rng: Draws the sentences.
        n_tries: Draws of joined sentences.

    Returns:
        The text; None if no draw has the length.
    """
    fitting = [sentence for sentence in FILLER if count_tokens(sentence) == n_tokens]
    if fitting:
        return rng.choice(fitting)
    for _ in range(n_tries):
        words: list[str] = []
        while count_tokens(" ".join(words)) < n_tokens:
            words += rng.choice(FILLER).split()
        for n in range(len(words), 0, -1):
            text = " ".join(words[:n]).rstrip(".,") + "."
            if (found := count_tokens(text)) == n_tokens:
                return text
            if found < n_tokens:
                break
    return None
