"use strict";
// Sorts and filters the table, and draws the runs of the rows that are left.
const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("table");
const body = table.tBodies[0];
const filters = document.getElementById("filters");
const panel = document.getElementById("panel");
const scatter = document.getElementById("scatter");
const FRAME = { left: 64, right: 745, top: 12, bottom: 330 };
// Outlines around (0, 0), about ten units wide, one for each line of the pictures below.
const SHAPES = [
  "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z", "M-4.5 -4.5H4.5V4.5H-4.5Z", "M0 -5.5L5.5 4.5H-5.5Z", "M0 -6L6 0L0 6L-6 0Z",
  "M0 5.5L5.5 -4.5H-5.5Z", "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  "M-5.5 -3L-3 -5.5L0 -2.5L3 -5.5L5.5 -3L2.5 0L5.5 3L3 5.5L0 2.5L-3 5.5L-5.5 3L-2.5 0Z", "M0 -6L6 -1L4 5.5H-4L-6 -1Z",
  "M-5.5 0L4.5 -5.5V5.5Z", "M0 -6L1.8 -2L6 -2L2.6 1L4 6L0 3L-4 6L-2.6 1L-6 -2L-1.8 -2Z", "M5.5 0L-4.5 -5.5V5.5Z",
  "M-3 -5.5H3L6 0L3 5.5H-3L-6 0Z",
];

function element(name, attributes, parent, text) {
  const made = document.createElementNS(scatter.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function sortBy(header) {
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => row.cells[header.cellIndex].dataset.value ?? row.cells[header.cellIndex].textContent;
  const isEmpty = (row) => value(row) === "";
  const compare = (a, b) => value(a).localeCompare(value(b), "en", { numeric: false });
  const isNumber = [...body.rows].every((row) => isEmpty(row) || !Number.isNaN(Number(value(row))));
  const order = isNumber ? (a, b) => Number(value(a)) - Number(value(b)) : compare;
  // What has no value comes last in either direction.
  const rows = [...body.rows].sort((a, b) => isEmpty(a) - isEmpty(b) || (rising ? order(a, b) : order(b, a)));
  body.append(...rows);
}

function filter() {
  const words = filters.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    const chosen = ["task", "pruning", "contrast"].every(
      (name) => !filters.elements[name].value || row.dataset[name] === filters.elements[name].value);
    row.hidden = !(chosen && words.every((word) => text.includes(word)));
    n += row.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = `${n} of ${body.rows.length} rows`;
  draw();
}

function ticks(low, high) {
  const rough = (high - low) / 7;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + 1e-12; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function scale(values, from, to, least) {
  const low = Math.min(...values), high = Math.max(...values);
  const margin = Math.max(0.06 * (high - low), least);
  const place = (value) => from + ((value - low + margin) / (high - low + 2 * margin)) * (to - from);
  return { place, ticks: ticks(low - margin, high + margin) };
}

function axes(x, y, metric) {
  for (const tick of y.ticks) {
    element("line", { class: "grid", x1: FRAME.left, x2: FRAME.right, y1: y.place(tick), y2: y.place(tick) }, scatter);
    element("text", { x: FRAME.left - 6, y: y.place(tick) + 4, "text-anchor": "end" }, scatter, tick);
  }
  element("line", { class: "grid", x1: FRAME.left, x2: FRAME.right, y1: FRAME.bottom, y2: FRAME.bottom }, scatter);
  for (const tick of x.ticks) {
    element("text", { x: x.place(tick), y: FRAME.bottom + 16, "text-anchor": "middle" }, scatter, tick);
  }
  const middle = (FRAME.left + FRAME.right) / 2;
  element("text", { x: middle, y: FRAME.bottom + 36, "text-anchor": "middle" }, scatter, "sparsity reached");
  const upright = `translate(16 ${(FRAME.top + FRAME.bottom) / 2}) rotate(-90)`;
  element("text", { transform: upright, "text-anchor": "middle" }, scatter, metric);
}

function mark(line, parent) {
  const looks = data.lines[line];
  const hollow = looks.contrast === "none";
  const colours = hollow ? `stroke:${looks.colour}` : `fill:${looks.colour}`;
  return element("path", { class: hollow ? "run off" : "run", d: SHAPES[looks.shape], style: colours }, parent);
}

function draw() {
  scatter.replaceChildren();
  const legend = document.getElementById("legend");
  legend.replaceChildren();
  const { task, metric } = data.panels[panel.value] ?? {};
  const shown = new Set([...body.rows].filter((row) => !row.hidden).map((row) => Number(row.dataset.row)));
  const inside = (point) => point.task === task && point.metric === metric;
  const runs = data.runs.filter((run) => inside(run) && shown.has(run.row));
  const published = data.published.filter(inside);
  if (!runs.length) {
    element("text", { x: FRAME.left, y: 40 }, scatter, "No run of this panel is among the rows shown.");
    return;
  }
  const all = [...runs, ...published];
  const x = scale(all.map((point) => point.sparsity), FRAME.left, FRAME.right, 0.01);
  const y = scale(all.map((point) => point.score), FRAME.bottom, FRAME.top, 0.005);
  axes(x, y, metric.replaceAll("_", " "));
  for (const row of published) {
    const circle = { class: "published", cx: x.place(row.sparsity), cy: y.place(row.score), r: 4.5 };
    element("title", {}, element("circle", circle, scatter), `${row.method}: ${row.score} (${row.source})`);
  }
  for (const run of runs) {
    const about = `${data.lines[run.line].label}, seed ${run.seed}: ${run.score.toFixed(4)} at ${run.sparsity.toFixed(4)}`;
    const link = element("a", { href: run.href, "aria-label": about }, scatter);
    const shape = mark(run.line, link);
    shape.setAttribute("transform", `translate(${x.place(run.sparsity)} ${y.place(run.score)})`);
    element("title", {}, link, about);
  }
  for (const line of [...new Set(runs.map((run) => run.line))].sort((a, b) => a - b)) {
    const item = document.createElement("li");
    mark(line, element("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, item));
    item.append(data.lines[line].label);
    legend.append(item);
  }
}

for (const header of table.tHead.rows[0].cells) {
  header.querySelector("button").addEventListener("click", () => sortBy(header));
}
data.panels.forEach(({ task, metric }, index) => panel.add(new Option(`${task}, ${metric.replaceAll("_", " ")}`, index)));
panel.addEventListener("change", draw);
filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filter();
