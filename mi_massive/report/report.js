/* Draws the page's figures when they come near the window, in the reader's colours and width. */
(function () {
  "use strict";
  var dark = matchMedia("(prefers-color-scheme: dark)");
  var narrow = matchMedia("(max-width: 760px)");
  var palette = JSON.parse(document.getElementById("palette").textContent);
  var instant = { mode: "immediate", frame: { duration: 0, redraw: true }, transition: { duration: 0 } };
  var config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  /* A page with a switch of its own says so on its body; else the reader's system decides. */
  function isDark() {
    var chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && dark.matches);
  }

  function painted(text) {
    if (!isDark()) return text;
    Object.keys(palette).forEach(function (color) {
      text = text.split('"' + color + '"').join('"' + palette[color] + '"');
    });
    return text;
  }

  function axis(layout, letter, panel) {
    return layout[letter + "axis" + (panel ? panel + 1 : "")];
  }

  function inLegend(trace) {
    return trace.name && trace.showlegend !== false;
  }

  /* On a narrow page the panels of a row stand below each other. */
  function stack(layout, legendEntries) {
    var panels = layout.meta.panels;
    var tall = layout.meta.panel_height || 235;
    var gap = panels > 1 ? 70 / (panels * tall) : 0;
    var each = (1 - gap * (panels - 1)) / panels;
    for (var panel = 0; panel < panels; panel += 1) {
      var end = 1 - panel * (each + gap);
      axis(layout, "x", panel).domain = [0, 1];
      axis(layout, "y", panel).domain = [Math.max(0, end - each), end];
      axis(layout, "y", panel).title = axis(layout, "y", 0).title;
      axis(layout, "y", panel).showticklabels = axis(layout, "y", 0).showticklabels;
      if (panel < panels - 1) delete axis(layout, "x", panel).title;
    }
    var above = layout.legend.yanchor === "bottom";
    var legend = 26 * legendEntries;
    var top = 34 + (above ? legend : 0);
    var bottom = 74 + (above ? 0 : legend);
    var left = axis(layout, "y", 0).showticklabels === false ? 8 : 58;
    layout.margin = { l: left, r: 8, t: top, b: bottom, pad: 2 };
    layout.height = top + bottom + panels * tall;
    Object.assign(layout.legend, { orientation: "v", font: { size: 11 } });
    layout.legend.y = above ? 1 + 30 / (panels * tall) : -50 / (panels * tall);
    if (layout.coloraxis) {
      var bar = layout.coloraxis.colorbar;
      bar.orientation = "h";
      bar.title = { text: bar.title.text.split("<br>").join(" ").trim(), side: "top", font: { size: 12 } };
      bar.len = 0.9; /* Half of the last tick label stands beyond the bar. */
      bar.x = 0.5;
      bar.y = 1 + 34 / (panels * tall);
      bar.yanchor = "bottom";
      bar.ypad = 0;
      /* Enough for the bar: a margin that Plotly has to enlarge displaces the axis titles. */
      layout.margin.t += 84;
      layout.height += 84;
    }
  }

  function draw(figure) {
    var box = figure.querySelector(".canvas");
    var slider = figure.querySelector("input[type=range]");
    var spec = JSON.parse(painted(figure.querySelector(".plot-data").textContent));
    if (narrow.matches) stack(spec.layout, spec.data.filter(inLegend).length);
    spec.config = config;
    /* Plotly follows the box when the window changes: the box must not follow Plotly. */
    box.style.height = spec.layout.height + "px";
    figure.dataset.drawn = "true";
    return Plotly.newPlot(box, spec).then(function () {
      return slider ? show(figure, slider) : null;
    });
  }

  function show(figure, slider) {
    var box = figure.querySelector(".canvas");
    var name = JSON.parse(slider.dataset.layers)[slider.value];
    slider.setAttribute("aria-valuetext", "layer " + name);
    figure.querySelector("output").textContent = name;
    if (!figure.dataset.drawn) return null;
    return Plotly.animate(box, [name], instant).then(
      function () {
        figure.dataset.layer = name;
      },
      function (reason) {
        /* A frame that a later one overtakes is rejected without a reason. */
        if (reason !== undefined) throw reason;
      }
    );
  }

  function reach(node) {
    if (node.matches(".plot")) return node.dataset.drawn || draw(node);
    return miMassivePatterns.renderAll(node.parentNode);
  }

  var figures = Array.from(document.querySelectorAll(".plot"));
  var lazy = figures.concat(Array.from(document.querySelectorAll(".mi-patterns")));
  document.documentElement.classList.add("js");

  figures.forEach(function (figure) {
    var slider = figure.querySelector("input[type=range]");
    if (!slider) return;
    var frames = JSON.parse(figure.querySelector(".plot-data").textContent).frames;
    slider.dataset.layers = JSON.stringify(
      frames.map(function (frame) {
        return frame.name;
      })
    );
    slider.parentNode.hidden = false;
    slider.addEventListener("input", function () {
      show(figure, slider);
    });
  });

  var watch = new IntersectionObserver(
    function (entries) {
      entries.forEach(function (entry) {
        if (!entry.isIntersecting) return;
        watch.unobserve(entry.target);
        reach(entry.target);
      });
    },
    { rootMargin: "500px 0px" }
  );
  lazy.forEach(function (node) {
    watch.observe(node);
  });

  function redraw() {
    figures.forEach(function (figure) {
      if (figure.dataset.drawn) draw(figure);
    });
  }
  dark.addEventListener("change", redraw);
  new MutationObserver(redraw).observe(document.body, { attributeFilter: ["data-theme"] });
  narrow.addEventListener("change", redraw);
  addEventListener("beforeprint", function () {
    lazy.forEach(reach);
  });
})();
