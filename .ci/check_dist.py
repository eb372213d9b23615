"""Say what is wrong with the wheel and the source distribution in a folder: check_dist.py dist."""

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = (  # what only the wheel's rule for packages brings along
    *("py.typed", "data/passages.jsonl", "data/conflicts.json", "data/facts/cities.json"),
    *("report/template.html.j2", "report/report.css", "report/report.js", "viz/patterns.js"),
)
SOURCES = ("pyproject.toml", "constraints.txt", "tests/conftest.py", "CHANGELOG.md", "CITATION.cff")
BUILT = re.compile(r"_build/|jupyter_execute/|__pycache__|\.(pyc|gguf)$|^(dist|build|report)/")


def problems(folder: Path) -> Iterator[str]:
    """One sentence each."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        files = (member.name for member in archive.getmembers() if member.isfile())
        sources = {name.partition("/")[2] for name in files}
    package = {name for name in sources if name.startswith("mi_massive/")}
    needed = {f"mi_massive/{name}" for name in DATA}
    yield from (f"{wheel.name} lacks {name}" for name in sorted((package | needed) - shipped))
    yield from (f"{wheel.name} has {name} too" for name in sorted(shipped - package))
    yield from (f"{sdist.name} lacks {name}" for name in SOURCES if name not in sources)
    yield from (
        f"{sdist.name} has the built {name}" for name in sorted(sources) if BUILT.search(name)
    )


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or 0)
