/**
 * Small plots in SVG: some series over the last minutes, with what they were under the pointer.
 *
 * Colours and widths are the style sheet's (classes `s1`, `s2`, `s3`). A line breaks where there was nothing to tell.
 */

import { time } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 120;
const TOP = 6;
const BOTTOM = 4;
const LEFT = 52; // for the labels of the axis
const RIGHT = 4;
const BREAK_MS = 3500;

export function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The least round number that is not below `most`: 1, 2 or 5 times a power of ten. */
export function ceiling(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].find((step) => step * power >= most * (1 - 1e-9)) * power;
}

/** The points of a series as a path, by what tells their place. */
export function path(points, of, x, y) {
  let drawn = "";
  let before = -Infinity;
  for (const point of points) {
    const value = of(point);
    if (value == null) continue;
    const place = `${x(point.at).toFixed(1)} ${y(value).toFixed(1)}`;
    // The second half makes a lone point a dot.
    drawn += point.at - before > BREAK_MS ? `M${place}L${place}` : `L${place}`;
    before = point.at;
  }
  return drawn;
}

export class Plot {
  #root;
  #title;
  #series;
  #format;
  #least;
  #spanMs;
  #caption = document.createElement("p");
  #points = [];
  #now = 0;
  #pointer = null;

  /**
   * @param {HTMLElement} root
   * @param {{title: string, series: {name: string, of: (point: object) => number | null}[],
   *   format: (n: number) => string, least: number, spanMs: number}} options `least` is the lowest top of the axis
   */
  constructor(root, { title, series, format, least, spanMs }) {
    this.#root = root;
    this.#title = title;
    this.#series = series;
    this.#format = format;
    this.#least = least;
    this.#spanMs = spanMs;
    this.#caption.className = "caption";
    root.addEventListener("pointermove", ({ clientX }) => {
      this.#pointer = clientX - root.getBoundingClientRect().left;
      this.#draw();
    });
    root.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.#draw();
    });
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  /** Show these points, `{at, …}` with `at` rising; the axis ends at `now` (Unix ms). */
  show(points, now) {
    this.#points = points;
    this.#now = now;
    this.#draw();
  }

  #draw() {
    const width = this.#root.clientWidth;
    if (!width) return; // hidden
    const values = this.#points.flatMap((point) => this.#series.map(({ of }) => of(point) ?? 0));
    const most = ceiling(Math.max(this.#least, ...values));
    const start = this.#now - this.#spanMs;
    const x = (at) => LEFT + ((at - start) / this.#spanMs) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
    const drawing = svg("svg", {
      viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": this.#summary(),
    });
    for (const value of [0, most / 2, most]) {
      drawing.append(
        svg("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick", x: LEFT - 6, y: y(value) + (value === most ? 8 : value ? 4 : 0) }, this.#format(value)),
      );
    }
    this.#series.forEach(({ of }, place) => {
      drawing.append(svg("path", { class: `line s${place + 1}`, d: path(this.#points, of, x, y) }));
    });
    const under = this.#under(x);
    if (under) drawing.append(svg("line", { class: "cursor", x1: x(under.at), x2: x(under.at), y1: TOP, y2: HEIGHT - BOTTOM }));
    this.#caption.textContent = under
      ? [time(under.at), ...this.#series.map(({ name, of }) => `${name} ${this.#told(of(under))}`)].join(" · ")
      : `last ${this.#spanMs / 60_000} minutes`;
    this.#root.replaceChildren(drawing, this.#caption);
  }

  /** The point nearest to the pointer. */
  #under(x) {
    if (this.#pointer == null || !this.#points.length) return null;
    const distance = ({ at }) => Math.abs(x(at) - this.#pointer);
    return this.#points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
  }

  #told(value) {
    return value == null ? "–" : this.#format(value);
  }

  /** What the lines show, for those who don't see them. */
  #summary() {
    const told = this.#series.map(({ name, of }) => {
      const values = this.#points.map(of).filter((value) => value != null);
      const now = this.#points.length ? of(this.#points.at(-1)) : null;
      return `${name} now ${this.#told(now)}, at most ${this.#told(values.length ? Math.max(...values) : null)}`;
    });
    return `${this.#title}, last ${this.#spanMs / 60_000} minutes. ${told.join("; ")}.`;
  }
}
