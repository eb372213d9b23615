"""C3b, C8e and C9b: which estimates of trained twins decide them, and what they say in words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mi_massive._disruption_claims import Finding
from mi_massive.axes import Projection
from mi_massive.small_samples import student_estimate
from mi_massive.stats import Estimate
from mi_massive.twin_arms import TWIN_ARMS, leading_rotation, rotating
from mi_massive.twin_results import TwinsResult

_LEARNED = 0.9
"""Share of the untrained loss that the trained twins of every arm must be below."""
_UNTRAINED = (
    "The twins have hardly learned: their loss is above nine tenths of that of random weights."
)
_ROTATED: tuple[Projection, ...] = ("q", "k")


def twin_findings(results: Sequence[TwinsResult]) -> list[Finding]:
    """What twins say about cause, frequencies and first layer; none say nothing.

    The first set with rotation and without says what causes the concentration, every set on which
    frequencies it lies. Twins that have hardly learned say nothing.
    """
    if not results:
        return []
    trained = [result for result in results if _has_learned(result)]
    if not trained:
        return [(claim, [], _UNTRAINED) for claim in ("C3b", "C8e", "C9b")]
    cause = next((each for each in trained if _has_both(each.config.arms)), None)
    arm = None if cause is None else leading_rotation(cause.config.arms)
    if cause is None or arm is None:
        missing = "Twins were trained, but not both with and without RoPE."
        return [("C3b", [], missing), _frequency_finding(trained), ("C9b", [], missing)]
    turning = rotating(cause.config.arms)
    others = [other for other in cause.config.arms if other not in turning]
    whole = {o: [cause.contrast(p, arm=arm, against=o) for p in _ROTATED] for o in others}
    first = {o: [cause.contrast(p, arm=arm, against=o, layer=0) for p in _ROTATED] for o in others}
    rest = _other_rotations(cause, [a for a in turning if a != arm], others[-1])
    return [
        ("C3b", _flat(whole), f"{_said(cause, arm, whole)} {_in_values(cause, arm)}{rest}"),
        _frequency_finding(trained),
        (
            "C9b",
            _flat(first),
            f"{_said(cause, arm, first, where='layer 0')} {_order(cause, turning)}",
        ),
    ]


def _has_both(arms: Sequence[str]) -> bool:
    """True for a set with rotation and without."""
    return 0 < len(rotating(arms)) < len(arms)


def _has_learned(result: TwinsResult) -> bool:
    """True unless the loss of an arm, mean over seeds that did not diverge, has hardly fallen."""
    losses = [
        np.array([run.loss.numpy()[[0, -1]] for run in result.of(a)]) for a in result.config.arms
    ]
    falls = [
        np.nanmean(loss[:, 1]) / np.nanmean(loss[:, 0])
        for loss in losses
        if not np.isnan(loss[:, 1]).all()
    ]
    return all(fall < _LEARNED for fall in falls)


def _frequency_finding(results: Sequence[TwinsResult]) -> Finding:
    """C8e, over all sets; twins that several sets hold are told once."""
    estimates: list[Estimate] = []
    told: list[str] = []
    seen = set[tuple[object, ...]]()
    for result in results:
        same = (result.corpus_digest, replace(result.config, arms=("rope",)))
        shares = {a: e for a, e in _slow_shares(result).items() if (*same, a) not in seen}
        seen |= {(*same, arm) for arm in shares}
        if shares:
            estimates += _flat(shares)
            told.append(_frequencies(result, shares))
    return "C8e", estimates, " ".join(told) or "No twin with RoPE was trained."


def _flat(by_arm: dict[str, list[Estimate]]) -> list[Estimate]:
    return [estimate for estimates in by_arm.values() for estimate in estimates]


def _said(
    result: TwinsResult, arm: str, contrasts: dict[str, list[Estimate]], where: str = "all layers"
) -> str:
    shape = result.config.shape
    parts = "; ".join(
        f"{TWIN_ARMS[other].statement} {q.effect:.2f} (q) and {k.effect:.2f} (k)"
        for other, (q, k) in contrasts.items()
    )
    return (
        f"Twins of {shape.n_layers} layers trained on {result.provenance.settings['corpus']}, "
        f"{result.config.n_seeds} seeds: max/mean of {TWIN_ARMS[arm].statement} over that of other "
        f"encodings at equal loss, {where}: {parts}."
    )


def _slow_shares(result: TwinsResult) -> dict[str, list[Estimate]]:
    """Of each arm with plain RoPE, else of the first that rotates, for queries and keys.

    An arm whose every dimension makes a full turn within the window can show nothing here.
    """
    turning = rotating(result.config.arms)
    plain = [a for a in turning if TWIN_ARMS[a].encoding == "rope"]
    shares = {a: [result.slow_share(a, p) for p in _ROTATED] for a in plain or turning[:1]}
    return {arm: found for arm, found in shares.items() if found[0].null > 0}


def _other_rotations(result: TwinsResult, arms: list[str], against: str) -> str:
    parts = [
        f"{TWIN_ARMS[a].statement} {q.effect:.2f} (q) and {k.effect:.2f} (k)"
        for a in arms
        for q, k in [[result.contrast(p, arm=a, against=against) for p in _ROTATED]]
    ]
    if not parts:
        return ""
    return f" Other rotations over {TWIN_ARMS[against].statement}: {'; '.join(parts)}."


def _in_values(result: TwinsResult, arm: str) -> str:
    q, k = (result.excess(projection, arm=arm) for projection in _ROTATED)
    return f"Over its own values: {q.effect:.2f} (q) and {k.effect:.2f} (k)."


def _frequencies(result: TwinsResult, slow: dict[str, list[Estimate]]) -> str:
    parts = "; ".join(
        f"{TWIN_ARMS[arm].statement}: {q.effect:.0%} (q) and {k.effect:.0%} (k), by chance "
        f"{q.null:.0%}, median wavelength {result.top_wavelength(arm, 'q').effect:.0f} and "
        f"{result.top_wavelength(arm, 'k').effect:.0f} tokens"
        for arm, (q, k) in slow.items()
    )
    return (
        f"No full turn of the heads' largest dimension within windows of "
        f"{result.config.shape.context} tokens of {result.provenance.settings['corpus']}: {parts}."
    )


def _order(result: TwinsResult, arms: list[str]) -> str:
    """When keys over values and the sink were half there, in each arm that rotates."""
    return " ".join(
        f"{TWIN_ARMS[arm].statement}: k over v {_dated(result, arm, 'k')}, the attention on the "
        f"first token {_dated(result, arm, 'sink')} of {result.config.n_steps} (it ends at "
        f"{result.sink(arm).effect:.2f})."
        for arm in arms
    )


def _dated(result: TwinsResult, arm: str, what: Literal["k", "sink"]) -> str:
    steps = result.halfway(arm, what)
    date = student_estimate(_logs(steps), n_of="seeds", geometric=True)
    if date.n == 0:
        return f"rose in none of {len(steps)} seeds"
    return f"half there at step {date.effect:.0f} in {date.n} of {len(steps)} seeds"


def _logs(values: list[float]) -> Float[np.ndarray, "unit"]:
    return np.log(np.array(values))
