"use strict";
// Tables: a click on a heading sorts; "#sort=<table>:<column>:<ascending|descending>" is a link to a sorted table.
function sortBy(table, column, direction) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row) => { const cell = row.cells[column], n = parseFloat(cell.dataset.value); return isNaN(n) ? cell.textContent.trim() : n; };
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what has no number stays below
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
  });
  body.append(...rows);
  heads.forEach((head, n) => n === column ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
}
for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    sortBy(table, column, head.getAttribute("aria-sort") === first ? other : first);
  }));
function followLink() {
  const match = location.hash.match(/^#sort=([\w-]+):(\d+):(ascending|descending)$/);
  const table = match && document.getElementById(match[1]);
  if (table) { sortBy(table, Number(match[2]), match[3]); table.scrollIntoView(); }
}
addEventListener("hashchange", followLink);
followLink();

// The ledger's filters.
const byVerdict = document.getElementById("by-verdict"), byText = document.getElementById("by-text");
function filterLedger() {
  let shown = 0;
  for (const row of document.getElementById("ledger").tBodies[0].rows) {
    row.hidden = (byVerdict.value && row.dataset.verdict !== byVerdict.value) ||
      !row.textContent.toLowerCase().includes(byText.value.toLowerCase());
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = shown + " claims";
}
byVerdict.addEventListener("input", filterLedger); byText.addEventListener("input", filterLedger); filterLedger();

// Plots: SVG with a view (x0, x1, y0, y1) that wheel, pinch and drag change.
const NS = "http://www.w3.org/2000/svg", W = 560, H = 360, L = 58, R = 14, T = 14, B = 46;
function add(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw), out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) out.push(+v.toPrecision(12));
  return out;
}
function draw(plot) {
  const figure = document.createElement("figure"); figure.className = "plot";
  const caption = document.createElement("figcaption"); caption.textContent = plot.title; figure.append(caption);
  const svg = add(figure, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": plot.title });
  const tip = document.createElement("div"); tip.className = "tip"; tip.hidden = true; figure.append(tip);
  document.getElementById("canvas").append(figure);
  const all = [...plot.dots.map((d) => [d.x, d.y]), ...plot.lines.flatMap((l) => l.points)];
  if (plot.rule !== null) all.push([plot.rule, plot.rule]);
  const span = (k) => { const v = all.map((p) => p[k]), a = Math.min(...v), b = Math.max(...v), m = (b - a || 1) * 0.12; return [a - m, b + m]; };
  const home = [...span(0), ...span(1)];
  let view = [...home];
  const px = (x) => L + (x - view[0]) / (view[1] - view[0]) * (W - L - R), py = (y) => H - B - (y - view[2]) / (view[3] - view[2]) * (H - T - B);
  const clip = "clip" + document.querySelectorAll(".plot").length;
  function mark(parent, x, y, colour, label) {
    const dot = add(parent, "circle", { cx: px(x), cy: py(y), r: 5, fill: colour, tabindex: 0 });
    const show = () => { tip.textContent = `${label}: ${+x.toPrecision(4)}, ${+y.toPrecision(4)}`; tip.hidden = false; };
    for (const event of ["pointerenter", "pointerdown", "focus"]) dot.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) dot.addEventListener(event, () => { tip.hidden = true; });
  }
  function render() {
    svg.replaceChildren();
    add(add(svg, "clipPath", { id: clip }), "rect", { x: L, y: T, width: W - L - R, height: H - T - B });
    for (const v of ticks(view[0], view[1])) { add(svg, "line", { class: "tick", x1: px(v), x2: px(v), y1: T, y2: H - B }); add(svg, "text", { x: px(v), y: H - B + 16, "text-anchor": "middle" }, v); }
    for (const v of ticks(view[2], view[3])) { add(svg, "line", { class: "tick", x1: L, x2: W - R, y1: py(v), y2: py(v) }); add(svg, "text", { x: L - 6, y: py(v) + 4, "text-anchor": "end" }, v); }
    add(svg, "text", { x: (L + W - R) / 2, y: H - 8, "text-anchor": "middle" }, plot.x);
    add(svg, "text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(14 ${(T + H - B) / 2}) rotate(-90)` }, plot.y);
    const inside = add(svg, "g", { "clip-path": `url(#${clip})` });
    if (plot.rule !== null) add(inside, "line", { class: "rule", x1: L, x2: W - R, y1: py(plot.rule), y2: py(plot.rule) });
    for (const line of plot.lines) {
      add(inside, "polyline", { fill: "none", stroke: line.colour, "stroke-width": 2, points: line.points.map((p) => [px(p[0]), py(p[1])].join()).join(" ") });
      for (const p of line.points) mark(inside, p[0], p[1], line.colour, line.label);
      const end = line.points[line.points.length - 1];
      add(inside, "text", { x: px(end[0]) - 8, y: py(end[1]) - 10, "text-anchor": "end" }, line.label);
    }
    const taken = plot.dots.map((d) => [px(d.x) - 5, px(d.x) + 5, py(d.y) - 5, py(d.y) + 5]);
    for (const dot of plot.dots) {
      mark(inside, dot.x, dot.y, dot.colour, dot.label);
      const right = px(dot.x) > W * 0.6, x = px(dot.x) + (right ? -9 : 9), y = py(dot.y) + 4;
      const text = add(inside, "text", { x, y, "text-anchor": right ? "end" : "start" }, dot.label);
      const wide = text.getComputedTextLength(), box = [right ? x - wide : x, right ? x : x + wide, y - 10, y + 2];
      // Where labels would lie on one another the first stays; zooming in or pointing at a mark shows the others.
      if (taken.some((t) => t[0] < box[1] && box[0] < t[1] && t[2] < box[3] && box[2] < t[3])) text.remove(); else taken.push(box);
    }
  }
  function toData(event) {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * W, y = (event.clientY - box.top) / box.height * H;
    return [view[0] + (x - L) / (W - L - R) * (view[1] - view[0]), view[2] + (H - B - y) / (H - T - B) * (view[3] - view[2])];
  }
  function zoom(at, factor) {
    view = [at[0] + (view[0] - at[0]) * factor, at[0] + (view[1] - at[0]) * factor, at[1] + (view[2] - at[1]) * factor, at[1] + (view[3] - at[1]) * factor];
    render();
  }
  svg.addEventListener("wheel", (event) => { event.preventDefault(); zoom(toData(event), event.deltaY > 0 ? 1.15 : 1 / 1.15); }, { passive: false });
  svg.addEventListener("dblclick", () => { view = [...home]; render(); });
  const held = new Map();
  svg.addEventListener("pointerdown", (event) => { held.set(event.pointerId, event); });
  svg.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const before = toData(held.get(event.pointerId)), now = toData(event);
    if (held.size === 2) {
      const other = [...held.entries()].find(([id]) => id !== event.pointerId)[1], far = toData(other);
      const distance = (p) => Math.hypot((p[0] - far[0]) / (view[1] - view[0]), (p[1] - far[1]) / (view[3] - view[2]));
      zoom(far, distance(before) / Math.max(distance(now), 1e-3));
    } else {
      const dx = before[0] - now[0], dy = before[1] - now[1];
      view = [view[0] + dx, view[1] + dx, view[2] + dy, view[3] + dy]; render();
    }
    held.set(event.pointerId, event);
  });
  for (const event of ["pointerup", "pointercancel", "pointerleave"]) svg.addEventListener(event, (e) => held.delete(e.pointerId));
  render();
}
JSON.parse(document.getElementById("data").textContent).forEach(draw);
