"""Results -> one self-contained HTML page: no network, no page of its own logic but drawing.

Every text passes through the template's escaping; data travel as inert JSON; the page's content
security policy names the hash of each of its scripts: no other script runs, nothing is fetched.
"""

import base64
import hashlib
import math
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from mi_massive.claims import Claim
from mi_massive.report import tables, text
from mi_massive.report.results import ReportResults
from mi_massive.report.sections import general_notes, sections
from mi_massive.viz.base import DARK
from mi_massive.viz.patterns import (
    circuitsvis_bundle,
    json_for_html,
    patterns_script,
    script_for_html,
)

_VERDICTS: Final = {
    "supported": ("supported", "✓"),
    "not supported": ("refuted", "✕"),
    "inconclusive": ("open", "?"),
}


def render_page(results: ReportResults) -> str:
    """The report as HTML."""
    shown = sections(results)
    scripts = [script_for_html(get_plotlyjs())]
    if any(section.tokens for section in shown):
        scripts += [circuitsvis_bundle(), patterns_script()]
    scripts.append(script_for_html(_asset("report.js")))
    html = (
        _environment()
        .get_template("template.html.j2")
        .render(
            model=results.provenance.model,
            ratio=results.concentration.config.ratio,
            facts=_facts(results),
            claims=[_claim(claim) for claim in results.scoreboard.claims],
            counts=_counts(results.scoreboard.claims),
            notes=general_notes(results),
            sections=shown,
            provenance=_provenance(results),
            palette=json_for_html(DARK),
            style=_asset("report.css"),
            scripts=scripts,
            script_hashes=[_hash(script) for script in scripts],
        )
    )
    return text.printable(html)


def _facts(results: ReportResults) -> list[tuple[str, str]]:
    source, q, k = results.provenance, results.concentration.q, results.concentration.k
    n_layers, n_heads, d_head = q.norms.shape
    shape = f"{n_layers} layers, {n_heads} heads"
    if k.norms.shape[1] != n_heads:
        shape += f" ({k.norms.shape[1]} key-value heads)"
    return [
        ("Model", source.model),
        ("Revision", source.revision or "not stated"),
        ("Weights", source.weights_note or "as published"),
        ("Attention", f"{shape}, {d_head} dimensions a head"),
        ("Prompts", f"{source.n_prompts:,}"),
    ]


def _claim(claim: Claim) -> dict[str, Any]:
    estimate = claim.estimate
    kind, sign = _VERDICTS[claim.verdict]
    return {
        "id": claim.id,
        "statement": claim.statement,
        "reading": claim.reading,
        "verdict": claim.verdict,
        "kind": kind,
        "sign": sign,
        "effect": text.number(estimate.effect),
        "interval": text.interval(estimate),
        "defined": not math.isnan(estimate.effect),
        "level": text.level(estimate),
        "quantity": claim.quantity,
        "null": "" if math.isnan(estimate.null) else f", null {text.null(estimate)}",
        "p": text.p_value(estimate.p_value),
        "n": text.counted(estimate),
        "test": estimate.test,
    }


def _counts(claims: tuple[Claim, ...]) -> list[dict[str, Any]]:
    return [
        {
            "verdict": verdict,
            "kind": kind,
            "sign": sign,
            "n": sum(claim.verdict == verdict for claim in claims),
        }
        for verdict, (kind, sign) in _VERDICTS.items()
    ]


def _provenance(results: ReportResults) -> list[tables.Table]:
    shown = [tables.provenance_table("The model", results.provenance)]
    if results.control is not None:
        shown.append(tables.provenance_table("The control", results.control.provenance))
    if results.disruption is not None:
        source = results.disruption.provenance
        shown.append(tables.provenance_table("The disruption’s neutral text", source))
    if results.conflict is not None:
        shown.append(tables.provenance_table("The conflicts", results.conflict.provenance))
    if results.patching:
        source = results.patching[0].provenance
        shown.append(tables.provenance_table("The patched pairs", source))
    if results.quantization is not None:
        source = results.quantization.provenance
        shown.append(tables.provenance_table("The quantized states’ neutral text", source))
    if results.surgery is not None:
        source = results.surgery.provenance
        shown.append(tables.provenance_table("The surgery’s neutral text", source))
    for twins in results.twins:
        shown.append(tables.provenance_table("The twins", twins.provenance))
    return [*shown, tables.config_table(results.configs)]


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (resources.files("mi_massive.report") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mi_massive.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
