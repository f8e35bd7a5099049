"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const shown = new Set();

  const themed = (layout) => {
    const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const ink = colour("--ink"), soft = colour("--soft"), rule = colour("--rule"), card = colour("--card");
    const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, tickfont: { color: soft, size: 12 }, automargin: true };
    const out = {
      margin: { l: 58, r: 12, t: 26, b: 42 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 13 }, traceorder: "normal" },
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
      hoverlabel: { bgcolor: card, bordercolor: rule, font: { color: ink, size: 13 } },
    };
    if ("xaxis2" in layout || (layout.annotations || []).length) {
      out.legend = { ...out.legend, y: 1.0, yshift: 0, yanchor: "bottom" };
      out.margin = { ...out.margin, t: 62 };
      out.legend.yref = "container";
      out.legend.yanchor = "top";
    }
    for (const key of Object.keys(out)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      const title = out[key].title ? { ...out[key].title, font: { size: 13, color: soft }, standoff: 8 } : undefined;
      out[key] = { ...axis, ...out[key], ...(title ? { title } : {}) };
    }
    return out;
  };

  const config = { displayModeBar: false, responsive: true };

  const draw = (canvas) => {
    const { data, layout } = figures[canvas.dataset.figure];
    shown.add(canvas);
    return Plotly.react(canvas, structuredClone(data), themed(structuredClone(layout)), config);
  };

  const hidden = (canvas) => canvas.closest("details[data-lazy]:not([open])") !== null;
  const canvases = [...document.querySelectorAll("[data-figure]")];
  Promise.all(canvases.filter((canvas) => !hidden(canvas)).map(draw)).then((all) => {
    root.dataset.plots = String(all.length);
  });
  for (const details of document.querySelectorAll("details[data-lazy]")) {
    details.addEventListener("toggle", () => {
      if (details.open) details.querySelectorAll("[data-figure]").forEach(draw);
    });
  }

  const restyle = () => shown.forEach(draw);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", restyle);
  document.getElementById("theme").addEventListener("click", (event) => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    event.currentTarget.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
    restyle();
  });

  document.querySelectorAll(".ribbon").forEach((ribbon, number) => {
    const text = ribbon.querySelector(".text"), panel = ribbon.querySelector(".panel");
    const tokens = [...text.querySelectorAll("[role=option]")];
    tokens.forEach((token, i) => { token.id = `r${number}-${i}`; });
    let here = -1;
    const show = (i, follow) => {
      if (i < 0 || i >= tokens.length) return;
      if (here >= 0) { tokens[here].classList.remove("here"); tokens[here].removeAttribute("aria-selected"); }
      here = i;
      tokens[i].classList.add("here");
      tokens[i].setAttribute("aria-selected", "true");
      text.setAttribute("aria-activedescendant", tokens[i].id);
      panel.textContent = tokens[i].getAttribute("aria-label");
      if (follow) tokens[i].scrollIntoView({ block: "nearest" });
    };
    text.addEventListener("pointerover", (event) => {
      const i = tokens.indexOf(event.target);
      if (i >= 0) show(i, false);
    });
    text.addEventListener("focus", () => { if (here < 0) show(0, false); });
    text.addEventListener("keydown", (event) => {
      const leap = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 }[event.key];
      const to = event.key === "Home" ? 0 : event.key === "End" ? tokens.length - 1
        : leap === undefined ? undefined : Math.min(tokens.length - 1, Math.max(0, here + leap));
      if (to === undefined) return;
      event.preventDefault();
      show(to, true);
    });
  });
})();
