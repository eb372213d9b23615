"""The pictures of README: a report's page, and the curves of a record of twins.

Question: what does one get? Not a measurement.
Refuted by: nothing; look at the picture.
Cost: seconds; needs Chromium or Chrome (`BROWSER_PATH` names another).
Command: python experiments/picture.py report/report.html docs/report.png
         python experiments/picture.py experiments/records/twins_stdlib_small.json docs/twins.png
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from mi_massive import TwinsResult, load_result
from mi_massive.viz import find_browser, plot_emergence, save_figure

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> None:
    """Write the picture of a page or of a record."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("source", type=Path, help="page of a report, or record of twins")
    options.add_argument("picture", type=Path)
    options.add_argument("--height", type=int, default=3180, help="pixels of the page to show")
    given = options.parse_args()
    if given.source.suffix == ".json":
        twins = load_result(given.source)
        if not isinstance(twins, TwinsResult):
            raise SystemExit(
                f"{given.source} must be a record of twins, got a {type(twins).__name__}"
            )
        save_figure(plot_emergence(twins), given.picture)
    else:
        photograph(given.source, given.picture, height=given.height)
    print(f"picture: {given.picture}")


def photograph(page: Path, picture: Path, *, height: int) -> None:
    """Open a page at a width of 1180 pixels and write what one sees at the top of it."""
    browser = find_browser()
    if browser is None:
        raise SystemExit("a browser must be on the PATH, got none; install Chromium or Chrome")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size=1180,{height}",
                "--virtual-time-budget=20000",
                f"--screenshot={picture.resolve()}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )


if __name__ == "__main__":
    main()
