"""What a page's kernel does first: go to the repository's root, and show figures as the site does.

The code on the pages stays what a reader would type: the last line of a block is a figure. No name
of this file is left behind, so that a page cannot use what it has not imported.
"""


def _start():
    import os
    import warnings
    from pathlib import Path

    from IPython import get_ipython

    os.chdir(Path(os.environ["PYTHONSTARTUP"]).parent.parent)
    # Whether progress bars can be drawn depends on the machine; they are no part of a page.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # The figure's own representation would load a script from the network.
    get_ipython().display_formatter.ipython_display_formatter.for_type_by_name(
        "plotly.graph_objs._figure", "Figure", _shown()
    )


def _shown():
    """Publishes a figure as the report holds it: data, which `report.js` draws."""
    import html
    import itertools

    from IPython.display import publish_display_data

    numbers = itertools.count()

    def show(figure):
        from mi_massive.report.pictures import picture  # not before the page's own first import

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
        drawn = (
            f'<div class="plot">{slider}<div class="canvas" role="img" aria-label="Figure; the '
            f'text says how to read it"></div><noscript><p>This figure needs script.</p></noscript>'
            f'<script type="application/json" class="plot-data">{p.data}</script></div>'
        )
        publish_display_data({"text/html": drawn, "text/plain": "Figure"})

    return show


_start()
del _start, _shown
