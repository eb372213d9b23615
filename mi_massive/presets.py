"""The named interventions: what the paper describes, what its code does, and the controls.

One table; adding an arm is adding one entry. Each takes the number k of dimensions and a seed.
`authors_*` are what the published code does for each family (it differs between them), at the k
that it uses there unless another is given.

Does not show: which control is the fair one. Random dimensions are matched in number, `same_band`
in frequency, `norm_matched` in size, `effect_matched` in how far the attention moves, and
`sink_preserving` and `sink_only` take apart what the loss of the attention sink does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from mi_massive._choices import Intervention, Where
from mi_massive._replacements import Value
from mi_massive._selections import Rule, Selection

Role = Literal["treatment", "control"]

DEFAULT_K: Final = 4
"""Dimensions of each head where nobody says how many; the paper does not either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named arm of an experiment."""

    summary: str
    role: Role
    make: Callable[[int, int], Intervention]
    """From k and the seed."""
    k: int = DEFAULT_K
    """Dimensions of each head unless another number is asked for."""
    dosed: bool = True
    """False if k means nothing to it."""
    seeded: bool = False
    """True if other seeds give other dimensions."""
    matched_to: str | None = None
    """Preset whose change of the attention sets this one's strength (`match_effect`)."""


def _by(
    rule: Rule,
    where: Where = Where(),  # noqa: B008
    value: Value = Value(),  # noqa: B008
) -> Callable[[int, int], Intervention]:
    def make(k: int, seed: int) -> Intervention:
        selection = Selection(rule=rule, k=k, seed=seed)
        return Intervention(selection=selection, value=value, where=where)

    return make


def _authors_qwen2(k: int, seed: int) -> Intervention:
    del seed
    return Intervention(
        selection=Selection(k=k), value=Value(kind="joint_mean"), where=Where(cache="clean")
    )


def _authors_gemma2(k: int, seed: int) -> Intervention:
    del seed
    return Intervention(
        selection=Selection(rule="across_heads", k=k),
        value=Value(kind="zero"),
        where=Where(cache="edited_global"),
    )


PRESETS: Final[dict[str, Preset]] = {
    "paper": Preset(
        summary="the k largest dimensions of each head to their token mean, q and k, prompt only",
        role="treatment",
        make=_by("largest"),
    ),
    "zero": Preset(
        summary="as paper, with zero in place of the token mean",
        role="treatment",
        make=_by("largest", value=Value(kind="zero")),
    ),
    "shuffled": Preset(
        summary="as paper, with the entries of the prompt's tokens in another order",
        role="treatment",
        make=_by("largest", value=Value(kind="shuffled")),
    ),
    "massive": Preset(
        summary="all dimensions above 5 times their head's mean norm, whatever k, as paper",
        role="treatment",
        make=_by("massive"),
        k=1,
        dosed=False,
    ),
    "authors_llama": Preset(
        summary="published code for Llama and Mistral: the largest dimension to its token mean",
        role="treatment",
        make=_by("largest"),
        k=1,
    ),
    "authors_qwen2": Preset(
        summary="published code for Qwen2: the 3 largest to one mean over tokens and dimensions, "
        "cache left clean",
        role="treatment",
        make=_authors_qwen2,
        k=3,
    ),
    "authors_gemma2": Preset(
        summary="published code for Gemma-2: at each token the 22 dimensions of largest norm over "
        "heads to zero in all heads, cache of sliding layers left clean",
        role="treatment",
        make=_authors_gemma2,
        k=22,
    ),
    "sink_preserving": Preset(
        summary="as paper, with the first token's row left as it is",
        role="treatment",
        make=_by("largest", Where(rows="after_first")),
    ),
    "sink_only": Preset(
        summary="as paper, in the key of the first token alone",
        role="treatment",
        make=_by("largest", Where(projections=("k",), rows="first")),
    ),
    "smallest": Preset(
        summary="the k smallest dimensions: the published control",
        role="control",
        make=_by("smallest"),
    ),
    "random": Preset(
        summary="k random dimensions among the others",
        role="control",
        make=_by("random"),
        seeded=True,
    ),
    "same_band": Preset(
        summary="k random dimensions from the frequency bands of the largest",
        role="control",
        make=_by("same_band"),
        seeded=True,
    ),
    "norm_matched": Preset(
        summary="the k dimensions that follow the largest in rank",
        role="control",
        make=_by("norm_matched"),
    ),
    "effect_matched": Preset(
        summary="random dimensions, moved so far that the attention changes by the same KL as "
        "under paper",
        role="control",
        make=_by("random"),
        seeded=True,
        matched_to="paper",
    ),
}
"""Every named arm. The published code's Mistral control (a random dimension) is `random` at k=1."""


def preset(name: str, *, k: int | None = None, seed: int = 0) -> Intervention:
    """The intervention of a named arm.

    Args:
        name: A key of `PRESETS`.
        k: Dimensions of each head; None takes the preset's own number.
        seed: For arms that draw their dimensions.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    entry = PRESETS[name]
    return entry.make(entry.k if k is None else k, seed)


def with_strength(intervention: Intervention, strength: float) -> Intervention:
    """The same edit, moved so far: 1 replaces, above 1 overshoots."""
    return replace(intervention, value=replace(intervention.value, strength=strength))
