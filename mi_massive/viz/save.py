"""Static copies of figures for a paper, drawn by an installed Chromium or Chrome."""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, Final, cast

import plotly.graph_objects as go

from mi_massive.records import write_atomically
from mi_massive.viz.base import SLIDER_SPACE

FORMATS: Final = ("png", "svg", "pdf", "jpg", "jpeg", "webp")
_BROWSERS: Final = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


def find_browser() -> str | None:
    """The browser that kaleido drives: `BROWSER_PATH`, else an installed Chromium or Chrome."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return shutil.which(named)
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def save_figure(
    figure: go.Figure,
    path: str | Path,
    *,
    width: int = 1000,
    height: int | None = None,
    scale: float = 2.0,
) -> Path:
    """Write a figure as a picture on white, without its slider (the layer shown first stays).

    Args:
        figure: From one of the `plot_*` functions.
        path: Target; its ending chooses the format. The folder is made if it is missing.
        width: Width in pixels before scaling.
        height: Height in pixels before scaling; the figure's own if None.
        scale: Pixels drawn per pixel, for PNG, JPEG and WebP.

    Returns:
        The path written.

    Raises:
        ValueError: If the ending is no known format.
        RuntimeError: If kaleido or a browser is missing.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {path.name!r}")
    kaleido = _kaleido()
    browser = find_browser()
    if browser is None:
        raise RuntimeError(
            "save_figure needs an installed Chromium or Chrome, found none; install one "
            "(Debian: apt-get install chromium) or set BROWSER_PATH to its executable"
        )
    spec = _static(figure)
    data = kaleido.calc_fig_sync(
        spec,
        opts={
            "format": "jpg" if kind == "jpeg" else kind,
            "width": width,
            "height": height or spec["layout"]["height"],
            "scale": scale,
        },
        kopts={"path": browser, "mathjax": False},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_bytes(data))
    return path


def _kaleido() -> Any:
    try:
        return importlib.import_module("kaleido")
    except ImportError as missing:
        raise RuntimeError(
            "save_figure needs kaleido, found none; pip install 'mi-massive[figures]'"
        ) from missing


def _static(figure: go.Figure) -> dict[str, Any]:
    spec = cast("dict[str, Any]", figure.to_dict())
    layout = spec["layout"]
    spec.pop("frames", None)
    if layout.pop("sliders", None):
        layout["height"] -= SLIDER_SPACE
        layout["margin"]["b"] -= SLIDER_SPACE
    layout["paper_bgcolor"] = "white"
    return spec
