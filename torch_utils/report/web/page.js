"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");

// Colours chosen for white paper, lighter on a dark one.
function legible(hex) {
  if (!dark.matches) return hex;
  return "#" + [1, 3, 5].map(i => Math.round(parseInt(hex.slice(i, i + 2), 16) * 0.6 + 255 * 0.4).toString(16).padStart(2, "0")).join("");
}

// Charts: the data lie in the page as JSON; uPlot draws them, in the colours of the page.
function draw(box) {
  const chart = JSON.parse(box.querySelector("script").textContent);
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (label, size) => ({
    label, size, stroke: () => colour("--soft"), grid: { stroke: () => colour("--line"), width: 0.6 },
    ticks: { stroke: () => colour("--line") }, values: (_, ticks) => ticks.map(v => v == null ? "" : String(+v.toPrecision(4))),
  });
  const digits = (_, value) => value == null ? "–" : String(+value.toPrecision(4));
  const scale = log => log ? { distr: 3 } : { distr: 1 };
  const plot = new uPlot({
    width: box.clientWidth, height: Math.min(380, Math.max(260, box.clientWidth * 0.6)),
    scales: { x: { time: false, dir: chart.falling ? -1 : 1, ...scale(chart.log_x) }, y: scale(chart.log_y) },
    axes: [axis(chart.x_label, 46), axis(chart.y_label, 66)],
    cursor: { focus: { prox: 24 }, drag: { x: true, y: true, uni: 20 } },
    focus: { alpha: 0.3 },
    series: [
      { label: chart.x_label, value: digits },
      ...chart.series.map(s => ({
        label: s.name, stroke: () => legible(s.colour), width: 2, dash: s.dash, spanGaps: true, value: digits, points: { show: s.points, size: 6 },
      })),
    ],
  }, chart.data, box);
  pinch(plot);
  new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: plot.height })).observe(box);
  dark.addEventListener("change", () => plot.redraw());
}

// Two fingers zoom along x, as dragging does with a mouse; a double tap (or click) shows everything again.
function pinch(plot) {
  let start = null;
  const at = touches => [...touches].map(t => t.clientX - plot.over.getBoundingClientRect().left).sort((a, b) => a - b);
  plot.over.addEventListener("touchstart", e => {
    if (e.touches.length === 2) start = at(e.touches).map(x => plot.posToVal(x, "x"));
  }, { passive: true });
  plot.over.addEventListener("touchmove", e => {
    if (e.touches.length !== 2 || !start) return;
    e.preventDefault();
    const [a, b] = at(e.touches), width = plot.over.clientWidth, log = plot.scales.x.distr === 3;
    const to = v => log ? Math.log(v) : v, back = v => log ? Math.exp(v) : v;
    if (b - a < 10) return;
    const slope = (to(start[1]) - to(start[0])) / (b - a);  // of what lies below the fingers
    const ends = [to(start[0]) - a * slope, to(start[0]) + (width - a) * slope].map(back).sort((x, y) => x - y);
    plot.setScale("x", { min: ends[0], max: ends[1] });
  }, { passive: false });
  plot.over.addEventListener("touchend", () => { start = null; }, { passive: true });
}

// Tables: a click on a head sorts by its column; cells that hold no number stay last.
function sortable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0], rows = [...body.rows], text = row => row.cells[column].textContent;
    const number = row => parseFloat(text(row)), sign = up ? 1 : -1;
    const numbers = rows.some(row => !isNaN(number(row)));
    rows.sort((a, b) => {
      if (!numbers) return sign * text(a).localeCompare(text(b));
      const [x, y] = [number(a), number(b)];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
    });
    body.append(...rows);
  }));
}

// Pictures: a click shows them at their own size.
function enlargeable(button, dialog) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img").cloneNode();
    image.className = button.querySelector("img").className;
    dialog.replaceChildren(image);
    dialog.showModal();
  });
}

const dialog = document.querySelector("dialog");
dialog.addEventListener("click", () => dialog.close());
document.querySelectorAll("figure button").forEach(button => enlargeable(button, dialog));
document.querySelectorAll("table.numbers").forEach(sortable);
document.querySelectorAll(".chart").forEach(draw);
