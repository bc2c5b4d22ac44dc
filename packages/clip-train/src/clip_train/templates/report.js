"use strict";
// Draws each .chart from the JSON in the page: one SVG each, drawn again whenever a control changes.
const runs = JSON.parse(document.getElementById("curves").textContent);
const form = document.querySelector(".controls");
const WIDTH = 360, HEIGHT = 190, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 24;

function shown() {
  const boxes = [...form.querySelectorAll("[name=run]")];
  return runs.map((run, i) => ({ ...run, color: `var(--run-${i})` })).filter((_, i) => !boxes.length || boxes[i].checked);
}

function interpolate(xs, ys, x) {
  let i = xs.findIndex((other) => other >= x);
  if (i < 0) return ys[ys.length - 1];
  if (i === 0) return xs[0] > 0 ? (ys[0] * x) / xs[0] : ys[0];
  return ys[i - 1] + ((ys[i] - ys[i - 1]) * (x - xs[i - 1])) / (xs[i] - xs[i - 1]);
}

function places(run, steps, kind) {
  if (kind === "samples") return steps.map((step) => step * run.batch);
  const hours = run.curves.hours;
  if (kind === "hours" && hours) return steps.map((step) => interpolate(hours.step, hours.mean, step));
  return steps;
}

function smooth(values, weight) {
  let last = 0, norm = 0;
  return values.map((value) => {
    last = last * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return last / norm;
  });
}

function ticks(low, high, count) {
  if (low === high) { low -= Math.abs(low) / 2 || 0.5; high += Math.abs(high) / 2 || 0.5; }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  const rounding = 1e-9; // 1e-5 / 5e-6 is a little above 2
  for (let i = Math.floor(low / step + rounding); i <= Math.ceil(high / step - rounding); i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++)
    for (const m of high / low > 1e3 ? [1] : [1, 2, 5]) found.push(m * 10 ** d);
  const inside = found.filter((tick) => tick >= low / 1.3 && tick <= high * 1.3);
  return inside.length > 1 ? inside.filter((_, i) => i % Math.ceil(inside.length / 7) === 0) : [low, high];
}

function label(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= unit) return Number((value / (name === "k" ? 1e3 : unit)).toPrecision(digits)) + " " + name;
  const rounded = Number(value.toPrecision(digits));
  return size < 1e-3 ? rounded.toExponential() : String(rounded);
}

// With as many digits as tell them apart.
function labels(values) {
  for (let digits = 3; digits < 9; digits++) {
    const found = values.map((value) => label(value, digits));
    if (new Set(found).size === values.length) return found;
  }
  return values.map(String);
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(card) {
  const log = form.elements.log.checked, kind = form.elements.x.value, weight = Number(form.elements.smoothing.value);
  const isMeasured = card.closest(".charts").dataset.measured !== undefined;
  const lines = [];
  for (const run of shown()) {
    const curve = run.curves[card.dataset.name];
    if (!curve) continue;
    const low = curve.low || curve.mean, high = curve.high || curve.mean;
    const keep = curve.mean.map((_, i) => i).filter((i) => !log || low[i] > 0);
    if (!keep.length) continue;
    const pick = (values) => keep.map((i) => values[i]);
    const line = { run, x: pick(places(run, curve.step, kind)), mean: pick(curve.mean), low: pick(low), high: pick(high) };
    line.smooth = isMeasured ? line.mean : smooth(line.mean, weight);
    line.isBand = Boolean(curve.low);
    lines.push(line);
  }
  card.querySelector("svg")?.remove();
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": card.querySelector("h3").textContent });
  card.append(svg);
  card.onpointermove = card.onpointerleave = null;
  card.querySelector("output").textContent = lines.length ? "" : "no values above zero";
  if (!lines.length) return;

  const along = log ? Math.log10 : (y) => y;
  // A spike may leave the picture: the axis is that of the smoothed line and nearly all of the values.
  const values = lines.flatMap((line) => [...line.low, ...line.high]).sort((a, b) => a - b);
  const at = (share) => values[Math.round(share * (values.length - 1))];
  const smoothed = lines.flatMap((line) => line.smooth);
  const low = Math.min(at(weight && !isMeasured ? 0.005 : 0), ...smoothed), high = Math.max(at(weight && !isMeasured ? 0.995 : 1), ...smoothed);
  const yTicks = log ? logTicks(low, high) : ticks(low, high, 4);
  const bottom = along(Math.min(low, yTicks[0])), top = along(Math.max(high, yTicks[yTicks.length - 1]));
  const first = Math.min(...lines.map((line) => line.x[0])), last = Math.max(...lines.map((line) => line.x[line.x.length - 1]));
  const toX = (x) => LEFT + ((x - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const toY = (y) => HEIGHT - BOTTOM - ((along(y) - bottom) / (top - bottom || 1)) * (HEIGHT - BOTTOM - TOP);
  const yLabels = labels(yTicks);
  yTicks.forEach((tick, i) => {
    svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(tick), y2: toY(tick) }));
    svg.append(element("text", { x: LEFT - 5, y: toY(tick) + 4, "text-anchor": "end" }, yLabels[i]));
  });
  for (const tick of ticks(first, last, 4).filter((x) => x >= first && x <= last))
    svg.append(element("text", { x: toX(tick), y: HEIGHT - 8, "text-anchor": "middle" }, label(tick)));
  const clip = Math.random().toString(36).slice(2);
  const path = element("clipPath", { id: clip });
  path.append(element("rect", { x: LEFT, y: TOP - 2, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 4 }));
  const inside = element("g", { "clip-path": `url(#${clip})` });
  svg.append(path, inside);
  const through = (line, ys) => line.x.map((x, i) => `${toX(x).toFixed(1)} ${toY(ys[i]).toFixed(1)}`);
  for (const line of lines) {
    const color = line.run.color;
    if (line.isBand)
      inside.append(element("path", { class: "band", style: `fill: ${color}`, d: "M" + [...through(line, line.high), ...through(line, line.low).reverse()].join("L") + "Z" }));
    else if (weight && !isMeasured)
      inside.append(element("path", { class: "raw", style: `stroke: ${color}`, d: "M" + through(line, line.mean).join("L") }));
    inside.append(element("path", { style: `stroke: ${color}`, d: "M" + through(line, line.smooth).join("L") }));
    if (line.x.length < 40 && (isMeasured || line.x.length === 1))
      line.x.forEach((x, i) => inside.append(element("circle", { cx: toX(x), cy: toY(line.mean[i]), r: 3, style: `fill: ${color}` })));
  }
  const cursor = element("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  card.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = first + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first);
    const told = lines.map((line) => {
      let near = 0;
      line.x.forEach((other, i) => { if (Math.abs(other - x) < Math.abs(line.x[near] - x)) near = i; });
      const name = runs.length > 1 ? `${line.run.name}: ` : "";
      return { x: line.x[near], text: `${name}${Number(line.mean[near].toPrecision(5))}` };
    });
    cursor.setAttribute("x1", toX(told[0].x));
    cursor.setAttribute("x2", toX(told[0].x));
    cursor.setAttribute("visibility", "visible");
    card.querySelector("output").textContent = `${label(told[0].x)} ${form.elements.x.selectedOptions[0].textContent}: ${told.map((t) => t.text).join(", ")}`;
  };
  card.onpointerleave = () => {
    cursor.setAttribute("visibility", "hidden");
    card.querySelector("output").textContent = "";
  };
}

function drawAll() {
  document.querySelectorAll(".chart").forEach(draw);
}
form.addEventListener("input", drawAll);
form.addEventListener("submit", (event) => event.preventDefault());
drawAll();
