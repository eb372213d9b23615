"""Results -> a folder with one offline HTML page, a summary for machines, and Parquet tables.

Reads results only: no model is run and no statistic computed here. Takes a few seconds; the page
has about 7 MB for a small model (6 MB of it libraries) and grows with layers x heads x d_head.
"""

import json
from pathlib import Path

from mi_massive.report.folder import (
    PAGE,
    SUMMARY,
    require_replaceable,
    table_file,
    write_folder,
)
from mi_massive.report.frames import frames
from mi_massive.report.page import render_page
from mi_massive.report.results import ReportResults
from mi_massive.report.summary import summary

__all__ = ["ReportResults", "build_report"]


def build_report(results: ReportResults, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the report as the folder `path`: `report.html`, `summary.json` and Parquet tables.

    The folder is filled elsewhere and then swapped in: an interrupt leaves the old report, never a
    mixture. An earlier report on the same model is replaced whole.

    Args:
        results: What to show.
        path: The report's folder; made with its parents if it is missing.
        overwrite: Replace a report on another model too, and write into a folder that holds other
            files; those are kept.

    Returns:
        Path of the page.

    Raises:
        FileExistsError: If `path` is a file, or holds another model's report or other files and
            `overwrite` is False.
        ValueError: If the token views of `patterns` are too large, see `view_patterns`.
    """
    folder = Path(path).resolve()
    require_replaceable(folder, model=results.provenance.model, overwrite=overwrite)
    page = render_page(results).encode("utf-8")
    document = json.dumps(summary(results), indent=1, allow_nan=False) + "\n"

    def fill(target: Path) -> None:
        (target / PAGE).write_bytes(page)
        (target / SUMMARY).write_text(document, encoding="utf-8")
        for name, frame in frames(results).items():
            frame.to_parquet(target / table_file(name), index=False)

    write_folder(folder, fill)
    return folder / PAGE
