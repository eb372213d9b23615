"""What a page's kernel does first: go to the repository's root, and show figures as the site does.

The code on the pages stays what a reader would type: the last line of a block is a figure.
"""

import html
import itertools
import os
import warnings

os.chdir(os.environ["MI_MASSIVE_ROOT"])
# Progress bars of the libraries below depend on the machine; they are no part of a page.
warnings.filterwarnings("ignore", message="IProgress not found")


def _register():
    from IPython import get_ipython

    numbers = itertools.count()

    def drawn(figure):
        from mi_massive.report.pictures import picture

        p = picture(f"page-{next(numbers)}", "", "", figure)
        slider = ""
        if p.layers:
            last, layer = len(p.layers) - 1, html.escape(p.layers[p.shown])
            slider = (
                f'<div class="slider" hidden><label for="layer-{p.id}">Layer</label>'
                f'<input type="range" id="layer-{p.id}" min="0" max="{last}" step="1" '
                f'value="{p.shown}" aria-valuetext="layer {layer}">'
                f'<output for="layer-{p.id}">{layer}</output></div>'
            )
        return (
            f'<div class="plot">{slider}<div class="canvas" role="img" aria-label="Figure; the '
            f'text says how to read it"></div><noscript><p>This figure needs script.</p></noscript>'
            f'<script type="application/json" class="plot-data">{p.data}</script></div>'
        )

    formatters = get_ipython().display_formatter.formatters
    formatters["text/html"].for_type_by_name("plotly.graph_objs._figure", "Figure", drawn)
    # The figure's own representation would bring a second copy and a script of the network.
    display = get_ipython().display_formatter
    display.ipython_display_formatter.for_type_by_name(
        "plotly.graph_objs._figure", "Figure", lambda figure: _publish(drawn(figure))
    )


def _publish(text):
    from IPython.display import publish_display_data

    publish_display_data({"text/html": text, "text/plain": "Figure"})


_register()
