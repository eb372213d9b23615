"""Token views drawn by CircuitsVis, offline: massive dimensions along a prompt, attention patterns.

CircuitsVis' own Python wrapper repeats its 1.3 MB bundle for every view, points at a CDN, and
writes tokens unescaped (its token component even reads them as HTML). Here the bundle is taken from
the installed wheel, once a page; the data travel as escaped JSON; and a token can never become
markup.
"""

import json
from functools import cache
from importlib import resources
from typing import Any, Final

import torch

from mi_massive._checks import require_finite, require_not_empty
from mi_massive.patch_results import PatchedPatternsResult
from mi_massive.patterns import HeadView, PatternsResult
from mi_massive.viz.base import rounded

MAX_WEIGHTS: Final = 250_000
"""Attention weights (patterns x pos x pos) that a view accepts: about 1.5 MB of JSON."""

_JOINER: Final = "\u2060"
_VISIBLE: Final = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_CAUSAL_ATOL: Final = 1e-6


def view_patterns(result: PatternsResult) -> str:
    """The prompt's tokens coloured by the massive dimension, and attention patterns, as HTML.

    How to read: one strip of tokens a head, blue for positive and orange for negative activations
    of the head's largest dimension, white for zero; each strip has its own symmetric range, written
    beside it. A massive dimension that is a near-constant offset shows as one even colour broken at
    the first token. Below it the attention of one head at a time: a row is the token that looks, a
    column the token that is looked at.

    Args:
        result: From a run of `patterns`.

    Returns:
        A fragment with script and data inside, for a notebook (`IPython.display.HTML(...)`) or a
        page; about 1.3 MB.

    Raises:
        ValueError: If there is no head, an activation or weight is not finite, or the view holds
            more than `MAX_WEIGHTS` weights.
    """
    return _view(patterns_data(result))


def view_patched_patterns(result: PatchedPatternsResult) -> str:
    """Attention of each head in the clean, the corrupted and the patched run, side by side.

    How to read: a row is the token that looks, a column the token that is looked at. A patch that
    brings the clean run's attention back makes the third pattern like the first.

    Args:
        result: From `capture_patched_patterns`.

    Returns:
        A fragment as `view_patterns` gives it.

    Raises:
        ValueError: If a weight is not finite, or the view holds more than `MAX_WEIGHTS` weights.
    """
    return _view(patched_patterns_data(result))


def patched_patterns_data(result: PatchedPatternsResult) -> dict[str, Any]:
    """What the script draws: three runs a head.

    Raises:
        ValueError: As `view_patched_patterns`.
    """
    _require_small(3 * len(result.heads), len(result.clean_tokens))
    clean, corrupted = (
        [display_token(token) for token in tokens]
        for tokens in (result.clean_tokens, result.corrupted_tokens)
    )
    patterns: list[dict[str, Any]] = []
    for view in result.heads:
        runs = (
            ("clean", clean, view.clean),
            ("corrupted", corrupted, view.corrupted),
            (f"patched: its clean {result.site}", corrupted, view.patched),
        )
        for label, _, weights in runs:
            require_finite(
                f"{label} pattern", weights, remedy="show a head whose pattern is defined"
            )
        patterns.append(
            {
                "label": f"L{view.block}H{view.head}",
                "runs": [
                    {"label": label, "tokens": tokens, "weights": rounded(weights)}
                    for label, tokens, weights in runs
                ],
            }
        )
    return {"tokens": clean, "strips": [], "patterns": patterns, "causal": True}


def _view(drawn: dict[str, Any]) -> str:
    data = json_for_html(drawn)
    return (
        '<div class="mi-patterns"></div>\n'
        f'<script type="application/json" class="mi-patterns-data">{data}</script>\n'
        # A second view in the same notebook finds the library loaded; loading it twice warns.
        f"<script>if (!window.CircuitsVis) {{{circuitsvis_bundle()}}}</script>\n"
        f"<script>{patterns_script()}\nmiMassivePatterns.renderAll(document);</script>\n"
    )


def patterns_data(result: PatternsResult) -> dict[str, Any]:
    """What the script draws: display tokens, one strip a head view, one pattern a head.

    Raises:
        ValueError: As `view_patterns`.
    """
    require_not_empty("heads", result.heads, remedy="choose at least one head to show")
    views = {(view.block, view.head): view for view in result.heads}
    _require_small(len(views), len(result.tokens))
    for view in result.heads:
        name = f"activations of {head_name(view)}"
        require_finite(name, view.activations, remedy="show a head whose activations are defined")
        require_finite("pattern", view.pattern, remedy="show a head whose pattern is defined")
    upper = torch.stack([view.pattern.triu(1).abs().max() for view in views.values()])
    return {
        "tokens": [display_token(token) for token in result.tokens],
        "strips": [
            {
                "label": head_name(view),
                "values": rounded(view.activations),
                "limit": float(f"{float(view.activations.abs().max()):.3g}"),
            }
            for view in result.heads
        ],
        "patterns": [
            {"label": f"L{block}H{head}", "weights": rounded(view.pattern)}
            for (block, head), view in views.items()
        ],
        "causal": bool((upper <= _CAUSAL_ATOL).all()),
    }


def head_name(view: HeadView) -> str:
    """Head and dimension in words: `L9H3, q dimension 57`."""
    return f"L{view.block}H{view.head}, {view.projection} dimension {view.dimension}"


def display_token(token: str) -> str:
    """A token as it is shown: line breaks and tabs as signs, nothing that HTML reads as markup.

    CircuitsVis sets tokens as inner HTML. An invisible joiner after `<` and `&` keeps both readable
    and inert: HTML opens a tag only where `<` stands before a letter, `/`, `!` or `?`, and a
    reference where `&` stands before a letter, digit or `#`.
    """
    for sign, shown in _VISIBLE.items():
        token = token.replace(sign, shown)
    return token.replace("<", "<" + _JOINER).replace("&", "&" + _JOINER) or "∅"


def json_for_html(data: Any) -> str:
    """JSON that is inert inside a script element, without raw line separators; refuses NaN."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def script_for_html(text: str) -> str:
    """A script that does not end its element early and, hashed, equals what a browser reads."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def circuitsvis_bundle() -> str:
    """CircuitsVis' browser bundle from the installed wheel; defines the global `CircuitsVis`."""
    file = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    text = file.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0]
    return script_for_html(text)


@cache
def patterns_script() -> str:
    """The script that draws `patterns_data`; defines the global `miMassivePatterns`."""
    file = resources.files("mi_massive.viz") / "patterns.js"
    return script_for_html(file.read_text(encoding="utf-8"))


def _require_small(n_patterns: int, n_tokens: int) -> None:
    weights = n_patterns * n_tokens * n_tokens
    if weights > MAX_WEIGHTS:
        raise ValueError(
            f"patterns must hold at most {MAX_WEIGHTS:,} attention weights, got {weights:,} "
            f"({n_patterns} heads x {n_tokens} x {n_tokens} tokens); "
            "show fewer heads or a shorter prompt"
        )
