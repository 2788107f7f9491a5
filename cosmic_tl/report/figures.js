"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);

const templates = read("templates");
const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 720px)");
const plots = [...document.querySelectorAll(".plot")].map((plot) => [plot, read(plot.dataset.figure)]);

function draw(theme, width) {
  for (const [plot, figure] of plots) {
    const { data, layout } = figure[width];
    Plotly.react(plot, data, { ...layout, template: templates[theme] }, {
      displaylogo: false,
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: plot.dataset.figure },
    });
    plot.querySelectorAll(".main-svg").forEach((svg, i) => {
      svg.setAttribute("role", i ? "presentation" : "img");
      if (!i) svg.setAttribute("aria-label", plot.dataset.alt);
    });
  }
}

const drawForScreen = () => draw(dark.matches ? "dark" : "light", narrow.matches ? "narrow" : "wide");
for (const query of [dark, narrow]) query.addEventListener("change", drawForScreen);
addEventListener("beforeprint", () => draw("light", "wide"));
addEventListener("afterprint", drawForScreen);
drawForScreen();
