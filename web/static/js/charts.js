// Charts: <figure class="chart" data-chart="URL" data-refresh="10">. The URL answers
// {"at": [seconds since 1970], "step": seconds, "unit": "s" | "%" | "jobs/min" | ..., "form": "line" | "area" | "bars",
//  "lines": [{"label": "p50", "values": [number | null], "colour": 1..6}]}. A "band" is drawn across something else than
// time, which its "across" names: js/bands.js.
// The plot is drawn by uPlot, which is loaded when a page has a chart. What it shows is there as a table too, and a chart
// that has the keyboard's focus is read with the arrow keys.

import { bandOptions, bandReach } from "./bands.js";

const HEIGHT = 180;
const FETCH_AGAIN_MILLISECONDS = 15000;
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en", {
  maximumFractionDigits: 2, maximumSignificantDigits: 4, roundingPriority: "lessPrecision",
});
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const times = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const days = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const DAY_SECONDS = 86400;
const charts = new Set();
let uPlot;

export async function serveCharts() {
  const figures = document.querySelectorAll("figure[data-chart]");
  if (figures.length === 0) return;
  uPlot = (await import("../vendor/uplot.min.js")).default;
  figures.forEach((figure) => charts.add(new Chart(figure)));
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function redraw() {
  charts.forEach((chart) => chart.draw());
}

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.stage = figure.querySelector(".plot");
    this.legend = figure.querySelector(".lines");
    this.table = figure.querySelector("table");
    this.key = figure.dataset.together;
    this.stage.addEventListener("keydown", (event) => this.step(event));
    this.stage.addEventListener("blur", () => this.plot?.setCursor({ left: -10, top: -10 }));
    figure.querySelector("details")?.addEventListener("toggle", () => this.fillTable());
    new ResizeObserver(() => this.plot?.setSize({ width: this.stage.clientWidth, height: HEIGHT })).observe(this.stage);
    this.load();
    const seconds = Number(figure.dataset.refresh);
    if (seconds) setInterval(() => document.hidden || this.load(), seconds * 1000);
  }

  async load() {
    try {
      const answer = await fetch(this.figure.dataset.chart, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      this.data = await answer.json();
      this.say("");
      this.draw();
    } catch {
      this.say("These figures could not be read. They are asked for again in a moment.");
      if (!this.figure.dataset.refresh) setTimeout(() => this.load(), FETCH_AGAIN_MILLISECONDS);
    }
  }

  say(text) {
    this.figure.querySelector(".silence").textContent = text;
  }

  draw() {
    if (!this.data) return;
    const { at, lines } = this.data;
    const known = lines.some((line) => line.values.some((value) => value !== null));
    if (!known) this.say("Nothing was measured in this time.");
    this.figure.dataset.empty = known ? "" : "true";
    const same = this.plot && this.drawnAs === this.signature();
    const columns = [at, ...(this.data.form === "bars" ? piled(lines) : lines.map((line) => line.values))];
    if (same) this.plot.setData(columns);
    else this.begin(columns);
    this.tell(null);
    this.fillTable();
    this.stage.setAttribute("aria-label", this.words());
  }

  signature() {
    const theme = getComputedStyle(document.documentElement).backgroundColor;
    return [theme, this.data.unit, this.data.form, ...this.data.lines.map((line) => line.label)].join("|");
  }

  begin(columns) {
    this.plot?.destroy();
    this.plot = new uPlot(this.options(), columns, this.stage);
    this.drawnAs = this.signature();
  }

  options() {
    const ink = colour(this.figure, "--ink-faint");
    const line = colour(this.figure, "--line");
    const axis = { stroke: ink, font: "11px Geist, sans-serif", grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const drawn = {
      width: this.stage.clientWidth,
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 }, ...(this.key ? { sync: { key: this.key } } : {}) },
      scales: { x: { time: true }, y: { range: (_plot, low, high) => this.reach(low, high) } },
      axes: [
        { ...axis, grid: { show: false }, size: 24, space: 76, values: (_plot, splits) => splits.map((at) => this.when(at)) },
        { ...axis, size: 48, space: 34, values: (_plot, splits) => splits.map((value) => short(value, this.data.unit)) },
      ],
      series: [{}, ...this.drawn().map(([each, index]) => this.series(each, index))],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    };
    if (this.data.form !== "band") return drawn;
    const [text, ground, margin] = ["--ink", "--surface", "--chart-4"].map((name) => colour(this.figure, name));
    const paint = { ink, text, ground, margin, fill: faint(colour(this.figure, "--chart-1"), 0.2) };
    return bandOptions(drawn, () => this.data, paint, (value) => told(value, this.data.unit));
  }

  reach(low, high) {
    if (this.data.form === "band") return bandReach(this.data);
    if (!this.data.signed) return [0, high > 0 ? high * 1.12 : 1];
    const most = Math.max(Math.abs(low ?? 0), Math.abs(high ?? 0)) || 1;
    return [Math.min(0, (low ?? 0) - most * 0.1), Math.max(0, (high ?? 0) + most * 0.1)];
  }

  // Bars stand on each other: the tallest pile is drawn first, and what stands lower over it.
  drawn() {
    const lines = this.data.lines.map((line, index) => [line, index]);
    return this.data.form === "bars" ? lines.reverse() : lines;
  }

  // A moment on the axis: the day where a chart shows several, else the time.
  when(at) {
    if (this.data.across) return compact.format(at);
    const shown = this.data.at[this.data.at.length - 1] - this.data.at[0];
    return (shown > 2 * DAY_SECONDS ? days : times).format(at * 1000);
  }

  // A place on the axis in full.
  place(at) {
    return this.data.across ? `${plain.format(at)} ${this.data.across}` : moments.format(at * 1000);
  }

  series(line, index) {
    const stroke = colour(this.figure, `--chart-${line.colour ?? (index % 6) + 1}`);
    const base = { label: line.label, stroke, width: 1.5, spanGaps: false, points: { show: false } };
    if (this.data.form === "bars") return { ...base, fill: stroke, width: 0, paths: uPlot.paths.bars({ size: [0.7, 28], radius: 0.15 }) };
    return this.data.form === "area" ? { ...base, fill: faint(stroke) } : base;
  }

  // The legend's values: those under the cursor, or the last ones that are known.
  tell(index) {
    const { at, lines, unit } = this.data;
    const place = index ?? lastKnown(lines);
    if (this.legend.children.length !== lines.length) this.legend.replaceChildren(...lines.map((line, number) => this.entry(line, number)));
    lines.forEach((line, number) => {
      const entry = this.legend.children[number];
      entry.children[1].textContent = line.label;
      entry.children[2].textContent = place === null ? "–" : told(line.values[place], unit);
    });
    const when = this.figure.querySelector(".when");
    when.textContent = index === null || index === undefined || at[index] === undefined ? "" : this.place(at[index]);
  }

  entry(line, index) {
    const entry = document.createElement("li");
    const mark = document.createElement("i");
    mark.className = `swatch c${line.colour ?? (index % 6) + 1}`;
    const value = document.createElement("b");
    entry.append(mark, document.createElement("span"), value);
    return entry;
  }

  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.plot) return;
    event.preventDefault();
    const last = this.data.at.length - 1;
    const from = this.plot.cursor.idx ?? (move < 0 ? last + 1 : -1);
    const index = Math.min(Math.max(from + move, 0), last);
    this.plot.setCursor({ left: this.plot.valToPos(this.data.at[index], "x"), top: 20 });
    this.stage.setAttribute("aria-label", this.words(index));
  }

  words(index = lastKnown(this.data.lines)) {
    const name = this.figure.dataset.name;
    if (index === null) return `${name}: nothing was measured`;
    const said = this.data.lines.map((line) => `${line.label} ${told(line.values[index], this.data.unit)}`).join(", ");
    return `${name}, ${this.place(this.data.at[index])}: ${said}`;
  }

  fillTable() {
    if (!this.table || !this.data || !this.figure.querySelector("details").open) return;
    const { at, lines, unit } = this.data;
    const head = row("th", [this.data.across ? "Seen" : "Time", ...lines.map((line) => line.label)]);
    const body = at.map((moment, index) => row("td", [this.place(moment), ...lines.map((line) => told(line.values[index], unit))]));
    this.table.tHead.replaceChildren(head);
    this.table.tBodies[0].replaceChildren(...body.reverse());
  }
}

function piled(lines) {
  const below = lines[0]?.values.map(() => 0) ?? [];
  const piles = lines.map((line) => line.values.map((value, index) => (value === null ? null : (below[index] += value))));
  return piles.reverse();
}

function row(kind, texts) {
  const element = document.createElement("tr");
  element.append(
    ...texts.map((text) => {
      const cell = document.createElement(kind);
      if (kind === "th") cell.scope = "col";
      cell.textContent = text;
      return cell;
    }),
  );
  return element;
}

function lastKnown(lines) {
  for (let index = (lines[0]?.values.length ?? 0) - 1; index >= 0; index--) {
    if (lines.some((line) => line.values[index] !== null)) return index;
  }
  return null;
}

function told(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return `${plain.format(value * 100)} %`;
  if (unit === "s") return duration(value);
  return `${Math.abs(value) >= 10000 ? compact.format(value) : plain.format(value)}${unit ? ` ${unit}` : ""}`;
}

function short(value, unit) {
  if (unit === "%") return `${plain.format(value * 100)}%`;
  if (unit === "s") return value === 0 ? "0" : duration(value);
  return compact.format(value);
}

function duration(seconds) {
  if (seconds < 0.9995) return `${plain.format(Math.round(seconds * 1000))} ms`;
  if (seconds < 120) return `${plain.format(seconds)} s`;
  return seconds < 7200 ? `${plain.format(seconds / 60)} min` : `${plain.format(seconds / 3600)} h`;
}

// A custom property may say light-dark(): only what an element's colour comes to is a colour.
function colour(figure, name) {
  const probe = figure.querySelector(".probe");
  probe.className = `probe ${name.slice(2)}`;
  return getComputedStyle(probe).color;
}

function faint(stroke, strength = 0.12) {
  const numbers = stroke.match(/[\d.]+/g).slice(0, 3).join(", ");
  return `rgba(${numbers}, ${strength})`;
}
