// Lines over time, in plain SVG. What is drawn is also said in words below it.

import { h, s } from "./dom.js";
import { clock, hour } from "./words.js";

const WIDTH = 600;
const HEIGHT = 120;
const drawn = new Map();

/** A number that the axis ends at: 1, 2 or 5 times a power of ten. */
function niceTop(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  for (const step of [1, 2, 5, 10]) if (step * power >= most) return step * power;
  return most;
}

function path(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let text = "", isOpen = false;
  values.forEach((value, at) => {
    if (value === null || value === undefined) { isOpen = false; return; }
    const y = HEIGHT - (HEIGHT - 4) * Math.min(1, value / top);
    text += `${isOpen ? "L" : "M"}${(at * step).toFixed(1)} ${y.toFixed(1)}`;
    if (!isOpen && (values[at + 1] === null || values[at + 1] === undefined)) text += `h0.5`;
    isOpen = true;
  });
  return text;
}

function area(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let text = "", last = 0;
  values.forEach((value, at) => {
    if (value === null || value === undefined) return;
    const x = (at * step).toFixed(1), y = (HEIGHT - (HEIGHT - 4) * Math.min(1, value / top)).toFixed(1);
    text += text ? `L${x} ${y}` : `M${x} ${HEIGHT}V${y}`;
    last = x;
  });
  return text ? `${text}L${last} ${HEIGHT}Z` : "";
}

const known = (values) => values.filter((value) => value !== null && value !== undefined);

/** A plot of one or two lines: {id, title, start, step, lines: [{name, values}], words}. */
export function plot({ id, title, start, step, lines, words, sum }) {
  const most = Math.max(0, ...lines.flatMap((line) => known(line.values)));
  const top = niceTop(most);
  drawn.set(id, { start, step, lines, words });
  const last = (line) => { const all = known(line.values); return all.length ? all[all.length - 1] : null; };
  const now = lines.map((line) => `${line.name ? line.name + " " : ""}${last(line) === null ? "–" : words(last(line))}`).join(", ");
  const end = start + step * (lines[0].values.length - 1);
  return h("figure", { class: "plot", id: `plot-${id}`, "data-key": `plot-${id}`, "data-plot": id },
    h("figcaption", {}, h("span", { class: "title" }, title),
      h("span", { class: "legend" }, lines.map((line, at) => h("span", { class: `line${at}` }, h("i", {}), line.name || "now", " ", h("b", {}, last(line) === null ? "–" : words(last(line))))))),
    h("div", { class: "ground" },
      h("span", { class: "most", "aria-hidden": "true" }, words(top)),
      s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: now ${now}, at most ${words(most)}` },
        s("path", { class: "grid", d: `M0 4H${WIDTH}M0 ${HEIGHT / 2 + 2}H${WIDTH}M0 ${HEIGHT}H${WIDTH}` }),
        lines.length === 1 ? s("path", { class: "area line0", d: area(lines[0].values, top) }) : null,
        lines.map((line, at) => s("path", { class: `curve line${at}`, d: path(line.values, top) }))),
      h("span", { class: "cursor", hidden: true, "data-keep": "" }), h("span", { class: "tip", hidden: true, "data-keep": "" })),
    h("div", { class: "axis", "aria-hidden": "true" }, h("span", {}, hour(start)), h("span", {}, sum || ""), h("span", {}, hour(end))));
}

/** Follow the pointer: what the lines say at that moment. */
export function listenToPlots() {
  document.addEventListener("pointermove", (event) => {
    const figure = event.target.closest ? event.target.closest("[data-plot]") : null;
    for (const other of document.querySelectorAll("[data-plot][data-pointed]")) if (other !== figure) leave(other);
    if (figure) point(figure, event.clientX);
  });
  document.addEventListener("pointerleave", () => document.querySelectorAll("[data-plot][data-pointed]").forEach(leave));
}

function leave(figure) {
  delete figure.dataset.pointed;
  figure.querySelector(".cursor").hidden = figure.querySelector(".tip").hidden = true;
}

function point(figure, x) {
  const data = drawn.get(figure.dataset.plot);
  const box = figure.querySelector("svg").getBoundingClientRect();
  const share = Math.min(1, Math.max(0, (x - box.left) / box.width));
  const at = Math.round(share * (data.lines[0].values.length - 1));
  const cursor = figure.querySelector(".cursor"), tip = figure.querySelector(".tip");
  figure.dataset.pointed = "";
  cursor.hidden = tip.hidden = false;
  cursor.style.left = `${share * 100}%`;
  tip.style.left = `${Math.min(82, Math.max(0, share * 100 - 10))}%`;
  tip.textContent = `${clock(data.start + at * data.step)}  ` + data.lines
    .map((line) => `${line.name ? line.name + " " : ""}${line.values[at] === null || line.values[at] === undefined ? "–" : data.words(line.values[at])}`).join("  ");
}
