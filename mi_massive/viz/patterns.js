/* Draws the data of mi_massive.viz.patterns with CircuitsVis. No dependency but the global CircuitsVis. */
var miMassivePatterns = (function () {
  "use strict";
  /* Sky blue and orange of Okabe and Ito: light enough for CircuitsVis to write black on them. */
  var NEGATIVE = "#e69f00";
  var POSITIVE = "#56b4e9";
  var ATTENTION = "#0072b2";
  var ABOVE_DIAGONAL = "rgb(243,242,239)";
  var counter = 0;

  function element(tag, attributes, text) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      node.setAttribute(name, attributes[name]);
    });
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function draw(parent, component, properties, style) {
    var id = "mi-cv-" + Date.now().toString(36) + "-" + counter++;
    var box = element("div", { id: id, style: style || "" });
    parent.appendChild(box);
    CircuitsVis.render(box.id, component, properties);
    return box;
  }

  function card(parent) {
    /* CircuitsVis draws zero as white and text as black: it needs a light ground in every scheme. */
    var style = "background:#fff;color:#1f1e1c;border-radius:4px;padding:10px 12px;overflow-x:auto";
    var box = element("div", { class: "mi-card", style: style, tabindex: "0" });
    parent.appendChild(box);
    return box;
  }

  function strips(root, data) {
    var list = element("div", { class: "mi-strips" });
    root.appendChild(list);
    data.strips.forEach(function (strip) {
      var row = element("div", { class: "mi-strip", role: "group", "aria-label": strip.label });
      var head = element("p", { class: "mi-label", style: "margin:10px 0 4px;font-size:13px" });
      head.appendChild(element("strong", {}, strip.label));
      var note = "  white is 0, full colour is ±" + strip.limit;
      head.appendChild(element("span", { class: "mi-note" }, note));
      row.appendChild(head);
      list.appendChild(row);
      var box = card(row);
      box.setAttribute("aria-label", "Tokens coloured by " + strip.label);
      box.setAttribute("role", "group");
      draw(box, CircuitsVis.ColoredTokens, {
        tokens: data.tokens,
        values: strip.values,
        minValue: -strip.limit || -1,
        maxValue: strip.limit || 1,
        negativeColor: NEGATIVE,
        positiveColor: POSITIVE,
        paddingBottom: 0,
      });
    });
  }

  function attention(parent, tokens, weights, causal, style) {
    draw(parent, CircuitsVis.AttentionPattern, {
      tokens: tokens,
      attention: weights,
      minValue: -1,
      maxValue: 1,
      positiveColor: ATTENTION,
      upperTriColor: ABOVE_DIAGONAL,
      maskUpperTri: causal,
    }, style);
  }

  function pattern(box, data, index) {
    var entry = data.patterns[index];
    box.replaceChildren();
    box.setAttribute("aria-label", "Attention pattern of " + entry.label);
    if (!entry.runs) {
      attention(box, data.tokens, entry.weights, data.causal, "width:max(520px, min(100%, 760px))");
      return;
    }
    /* Several runs of one head, side by side. */
    var row = element("div", { style: "display:flex;flex-wrap:wrap;gap:18px" });
    box.appendChild(row);
    entry.runs.forEach(function (run) {
      var column = element("div", { role: "group", "aria-label": run.label, style: "flex:1 1 270px;min-width:0;max-width:460px" });
      column.appendChild(element("p", { style: "margin:0 0 6px;font-weight:600" }, run.label));
      row.appendChild(column);
      attention(column, run.tokens, run.weights, data.causal, "width:100%");
    });
  }

  function patterns(root, data) {
    var name = "mi-head-" + counter++;
    var choice = element("fieldset", { class: "mi-choice", style: "border:0;padding:0;margin:18px 0 8px" });
    choice.appendChild(element("legend", { style: "padding:0;font-weight:600" }, "Attention pattern of head"));
    root.appendChild(choice);
    var box = card(root);
    box.setAttribute("role", "group");
    data.patterns.forEach(function (entry, index) {
      var label = element("label", { style: "display:inline-block;margin:4px 14px 0 0" });
      var radio = element("input", { type: "radio", name: name, value: String(index) });
      radio.checked = index === 0;
      radio.addEventListener("change", function () {
        pattern(box, data, index);
      });
      label.appendChild(radio);
      label.appendChild(document.createTextNode(" " + entry.label));
      choice.appendChild(label);
    });
    pattern(box, data, 0);
  }

  function render(root, data) {
    root.replaceChildren();
    strips(root, data);
    patterns(root, data);
    root.dataset.rendered = "true";
  }

  function renderAll(scope) {
    scope.querySelectorAll(".mi-patterns:not([data-rendered])").forEach(function (root) {
      var data = root.nextElementSibling;
      if (data && data.matches(".mi-patterns-data")) render(root, JSON.parse(data.textContent));
    });
  }

  return { render: render, renderAll: renderAll };
})();
