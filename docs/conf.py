"""The site: MyST pages whose code is executed, the API from docstrings, figures without a network.

`make docs` builds it into `_build/html`, a folder that can be served, or opened, as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from plotly.offline import get_plotlyjs
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import mi_massive
from mi_massive.viz.base import DARK
from mi_massive.viz.patterns import json_for_html

HERE = Path(__file__).parent

project = "mi_massive"
author = "The mi_massive authors"
project_copyright = author
version = release = mi_massive.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_static", "jupyter_execute"]
root_doc = "index"
default_role = "literal"  # single backticks, which `_marked` has not made a link

# --- pages and their code: each page runs in a kernel of its own, and an error fails the build
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 240
nb_merge_streams = True
nb_output_stderr = "error"  # a block that warns is one to mend
# A kernel starts with this file, and with nothing of the reader's own set-up of IPython.
os.environ["PYTHONSTARTUP"] = str(HERE / "_kernel.py")
os.environ["IPYTHONDIR"] = str(HERE / "_build" / "ipython")
os.environ.setdefault("TQDM_DISABLE", "1")

# --- API
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True}
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source", "Sources"]
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
# Types of other libraries, and those of this package that are no public names, need no target.
nitpick_ignore_regex = [
    ("py:.*", r"(?!mi_massive\.).*"),
    ("py:.*", r"mi_massive\.(?:\w+\.)*_\w.*"),
    ("py:class", r"mi_massive\.\w+(\.\w+)+"),
]

# --- look
html_theme = "furo"
html_title = "mi_massive"
html_static_path = ["_static", "../mi_massive/report/report.js"]
html_extra_path = ["llms.txt"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def _public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.reference | None:
    """Links an annotation's home, such as mi_massive.arms.Arm, to the public name."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in mi_massive.__all__:
        return None
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"mi_massive.{name}", node, contnode
    )


def _draw(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Adds the report's own drawing script, and Plotly, to the pages that hold a figure."""
    if 'class="plot"' in context.get("body", ""):
        app.add_js_file("plotly.min.js", loading_method="defer")
        app.add_js_file("report.js", loading_method="defer")
        palette = json_for_html(DARK)
        context["body"] += f'<script type="application/json" id="palette">{palette}</script>'


def _library(app: Sphinx, error: Exception | None) -> None:
    """Writes Plotly from the installed wheel once, beside the other static files."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "plotly.min.js"
        target.write_text(get_plotlyjs(), encoding="utf-8")


def _marked(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Reads a docstring's single backticks: public names become links, all else is code."""

    def mark(found: re.Match[str]) -> str:
        text = found[1]
        public = text in mi_massive.__all__
        return f":py:obj:`~mi_massive.{text}`" if public else f"``{text}``"

    text = re.sub(r"(?<![`:\w])`([^`\n]+(?:\n[^`\n]+)?)`(?![`_])", mark, "\n".join(lines))
    # Bars of an absolute value would be read as a substitution.
    lines[:] = re.sub(r"(?<!`)\|(\w[\w ]*)\|(?!`)", r"\\|\1\\|", text).split("\n")
    if what in ("attribute", "property", "data"):
        # An empty comment, else napoleon takes what stands before a colon for the type.
        lines[:0] = ["..", ""]


def _readable(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Writes the default that a dataclass makes on demand so that a signature can be parsed."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("missing-reference", _public)
    app.connect("html-page-context", _draw)
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-process-docstring", _marked, priority=400)  # before napoleon
    app.connect("build-finished", _library)
