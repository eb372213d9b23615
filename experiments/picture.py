"""A picture of a report's page, as README shows it.

Question: what does one get? Not a measurement.
Refuted by: nothing; look at the picture.
Cost: seconds; needs Chromium or Chrome (`BROWSER_PATH` names another).
Command: python experiments/picture.py report/report.html docs/report.png
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from mi_massive.viz import find_browser

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> None:
    """Open the page at a width of 1180 pixels and write what one sees at the top of it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("page", type=Path)
    options.add_argument("picture", type=Path)
    options.add_argument("--height", type=int, default=3180, help="pixels of the page to show")
    given = options.parse_args()
    browser = find_browser()
    if browser is None:
        raise SystemExit("a browser must be on the PATH, got none; install Chromium or Chrome")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size=1180,{given.height}",
                "--virtual-time-budget=20000",
                f"--screenshot={given.picture.resolve()}",
                given.page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )
    print(f"picture: {given.picture}")


if __name__ == "__main__":
    main()
