/**
 * A job's last events as a timeline, and its replay: one step after the other, at a pace that keeps their rhythm.
 */

import { ask } from "./feed.js";
import { time } from "./format.js";
import { svg } from "./plot.js";

const HEIGHT = 96;
const MARGIN = 10;
const REPLAY_MS = 8000; // about how long all of it takes
const STEP_MS = { least: 80, most: 1200 };
const $ = (id) => document.getElementById(id);

export class Timeline {
  #events = []; // with `progress` as it stood then
  #place = 0;
  #timer = null;
  #asked = 0;

  constructor() {
    $("back").addEventListener("click", () => this.#step(-1));
    $("forward").addEventListener("click", () => this.#step(1));
    $("play").addEventListener("click", () => (this.#timer ? this.#stop() : this.#play()));
    $("place").addEventListener("input", () => {
      this.#stop();
      this.#show(Number($("place").value));
    });
    new ResizeObserver(() => this.#draw()).observe($("strip"));
  }

  /** Ask for what history holds of the job, and show its newest event. */
  async open(jobId, queueName) {
    this.#stop();
    $("job-id").value = jobId;
    $("job-queue").value = queueName;
    $("job").scrollIntoView();
    const asked = ++this.#asked;
    const query = new URLSearchParams({ jobId, ...(queueName && { queueName }) });
    try {
      const { events } = await ask(`admin/history?${query}`);
      if (asked === this.#asked) this.#take(jobId, events);
    } catch (error) {
      if (asked !== this.#asked) return;
      $("timeline").hidden = true;
      $("job-said").textContent = `${jobId}: ${error.message}.`;
    }
  }

  #take(jobId, events) {
    let progress = 0;
    this.#events = events.map((event) => {
      if (event.event === "job-completed") progress = 100;
      else if (typeof event.data.progress === "number") progress = event.data.progress;
      return { ...event, progress };
    });
    const queues = [...new Set(events.map(({ queueName }) => queueName).filter(Boolean))];
    const seconds = (events.at(-1).at - events[0].at) / 1000;
    $("job-said").textContent =
      `${jobId}${queues.length ? ` in ${queues.join(", ")}` : ""}: ` +
      `${events.length} ${events.length === 1 ? "event" : "events"} over ${seconds.toFixed(1)} s.`;
    $("timeline").hidden = false;
    $("place").max = events.length - 1;
    $("events").replaceChildren(...this.#events.map((event, place) => this.#item(event, place)));
    this.#show(events.length - 1);
  }

  #item(event, place) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const texts = { when: this.#since(event), name: event.event.replace(/^job-/, ""), brief: brief(event) };
    for (const [name, text] of Object.entries(texts)) {
      const part = document.createElement("span");
      part.className = name;
      part.textContent = text;
      button.append(part, " ");
    }
    button.dataset.event = event.event;
    button.addEventListener("click", () => {
      this.#stop();
      this.#show(place);
    });
    item.append(button);
    return item;
  }

  #since({ at }) {
    return `+${((at - this.#events[0].at) / 1000).toFixed(2)} s`;
  }

  #show(place) {
    this.#place = place;
    const event = this.#events[place];
    $("place").value = place;
    $("place").setAttribute("aria-valuetext", `${place + 1} of ${this.#events.length}, ${event.event}`);
    $("where").textContent = `${place + 1} of ${this.#events.length} · ${time(event.at)}`;
    $("back").disabled = place === 0;
    $("forward").disabled = place === this.#events.length - 1;
    const percent = Math.round(event.progress);
    $("bar").setAttribute("aria-valuenow", percent);
    $("bar").firstElementChild.style.width = `${percent}%`;
    $("bar").dataset.event = event.event;
    $("bar-text").textContent = `${event.event} · ${brief(event) || `${percent} %`} · id ${event.id}`;
    $("data").textContent = JSON.stringify(event.data, null, 2);
    [...$("events").children].forEach((item, each) => {
      const button = item.firstElementChild;
      if (each !== place) return button.removeAttribute("aria-current");
      button.setAttribute("aria-current", "step");
      // Within the list alone: the page itself stays where it is.
      const { offsetTop, offsetHeight, parentElement: list } = item;
      if (offsetTop < list.scrollTop) list.scrollTop = offsetTop;
      else if (offsetTop + offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = offsetTop + offsetHeight - list.clientHeight;
    });
    this.#draw();
  }

  #step(by) {
    this.#stop();
    this.#show(this.#place + by);
  }

  #play() {
    $("play").textContent = "Pause";
    this.#show(this.#place === this.#events.length - 1 ? 0 : this.#place);
    this.#goOn();
  }

  #goOn() {
    const next = this.#place + 1;
    if (next >= this.#events.length) return this.#stop();
    const span = this.#events.at(-1).at - this.#events[0].at;
    const gap = this.#events[next].at - this.#events[this.#place].at;
    const wait = Math.min(STEP_MS.most, Math.max(STEP_MS.least, span ? (gap * REPLAY_MS) / span : 0));
    this.#timer = setTimeout(() => {
      this.#show(next);
      this.#goOn();
    }, wait);
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    $("play").textContent = "Play";
  }

  /** Progress over time, a mark for each event; up to the chosen one in full colour. */
  #draw() {
    const width = $("strip").clientWidth;
    if (!width || !this.#events.length) return;
    const first = this.#events[0].at;
    const span = this.#events.at(-1).at - first || 1;
    const x = ({ at }) => MARGIN + ((at - first) / span) * (width - 2 * MARGIN);
    const y = ({ progress }) => MARGIN + (1 - progress / 100) * (HEIGHT - 2 * MARGIN);
    const stairs = (events) =>
      events.map((event, each) => (each ? `H${x(event)}V${y(event)}` : `M${x(event)} ${y(event)}`)).join("");
    const drawing = svg("svg", {
      viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
      "aria-label": `Progress of the job over time: ${this.#events.length} events, now at ${this.#place + 1}`,
    });
    for (const progress of [0, 50, 100]) {
      const at = y({ progress });
      drawing.append(svg("line", { class: "grid-line", x1: 0, x2: width, y1: at, y2: at }));
    }
    const now = this.#events[this.#place];
    drawing.append(
      svg("path", { class: "line ahead", d: stairs(this.#events) }),
      svg("path", { class: "line s1", d: stairs(this.#events.slice(0, this.#place + 1)) }),
      svg("line", { class: "cursor", x1: x(now), x2: x(now), y1: 0, y2: HEIGHT }),
    );
    this.#events.forEach((event, place) => {
      const shape = { class: place > this.#place ? "mark ahead" : "mark", cx: x(event), cy: y(event), r: place === this.#place ? 5 : 3 };
      drawing.append(svg("circle", { ...shape, "data-event": event.event }));
    });
    $("strip").replaceChildren(drawing);
  }
}

/** An event in a few words: what its publisher says of it. */
function brief({ event, data, progress }) {
  const told = { ...data, ...(typeof data.data === "object" ? data.data : null) };
  const words = [data.error, data.failedReason, told.stage, told.message, data.status].filter((text) => typeof text === "string" && text);
  return [event === "job-progress" ? `${Math.round(progress)} %` : "", ...new Set(words.slice(0, 2))].filter(Boolean).join(" · ");
}
