/**
 * `<relay-status>` and `<job-progress job-id="…">` for pages without a framework.
 *
 * Both take `url` (default: same host), or a client of the page's own as their property `client`. They are told apart
 * by text and shape, not by colour alone, and speak to screen readers. Importing this module defines them.
 */

import { etaSeconds, JobProgressClient } from "./client.js";
import { remaining } from "./rules.js";

const STYLE = `
  :host { display: inline-flex; align-items: center; gap: .5em; font: inherit; }
  :host([hidden]) { display: none; }
  .mark { flex: none; width: 1em; height: 1em; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; }
  [data-kind=connected] .mark { color: #15803d; }
  [data-kind=disconnected] .mark { color: #c2410c; }
  [data-kind=error] .mark { color: #b91c1c; }
  .whole { display: inherit; align-items: inherit; gap: inherit; width: 100%; }
  .track { flex: 1; min-width: 6em; height: .6em; border: 1px solid currentColor; border-radius: 1em; overflow: hidden; }
  .bar { display: block; width: 0; height: 100%; background: #2563eb; transition: width .2s; }
  [data-kind=completed] .bar { background: #15803d; }
  [data-kind=failed] .bar { background: #b91c1c; }
  @media (prefers-reduced-motion: reduce) { .bar { transition: none; } }
`;
const WAVES = '<path d="M2 8a14 14 0 0 1 20 0M6 12.5a8.5 8.5 0 0 1 12 0M12 18h.01"/>';
const MARKS = {
  connected: WAVES,
  disconnected: `${WAVES}<path d="M3 3l18 18"/>`,
  error: '<path d="M12 3l10 18H2zM12 10v5M12 18h.01"/>',
};
const TEXTS = {
  live: "Live",
  connecting: "Connecting…",
  degraded: "Live updates are delayed",
  offline: "Not connected, trying again",
  closed: "Not connected",
};

/** Where modules are imported without a page, to be rendered on a server, there is no HTMLElement. */
const Base = globalThis.HTMLElement ?? class {};

/** One for all elements, and no <style>, which a strict Content-Security-Policy refuses. */
let shared;
function styleSheet() {
  if (!shared) {
    shared = new CSSStyleSheet();
    shared.replaceSync(STYLE);
  }
  return shared;
}

class ClientElement extends Base {
  #client;
  #isShared = false;

  /** The client in use; set one to use your own. */
  get client() {
    return this.#client;
  }

  set client(client) {
    this.#release();
    this.#client = client;
    if (this.isConnected) this.begin();
  }

  connectedCallback() {
    if (!this.shadowRoot) {
      const root = this.attachShadow({ mode: "open" });
      root.adoptedStyleSheets = [styleSheet()];
      root.innerHTML = this.constructor.content;
    }
    if (!this.#client) {
      this.#client = JobProgressClient.shared({ url: this.getAttribute("url") ?? undefined });
      this.#isShared = true;
    }
    this.begin();
  }

  disconnectedCallback() {
    this.#release();
  }

  part(name) {
    return this.shadowRoot.querySelector(`.${name}`);
  }

  #release() {
    this.end();
    if (this.#isShared) this.#client.release();
    if (this.#isShared) this.#client = undefined;
    this.#isShared = false;
  }
}

class RelayStatus extends ClientElement {
  static content = `<span class="whole" role="status"><svg class="mark" viewBox="0 0 24 24" aria-hidden="true"></svg><span class="text"></span></span>`;
  #off = () => {};

  begin() {
    this.end();
    this.#off = this.client.on("state", () => this.#show());
    this.#show();
  }

  end() {
    this.#off();
  }

  #show() {
    const { state, isConnected, error } = this.client;
    const kind = isConnected ? "connected" : error ? "error" : "disconnected";
    this.part("whole").dataset.kind = kind;
    this.part("mark").innerHTML = MARKS[kind];
    this.part("text").textContent = error ? `${TEXTS[state]}: ${error.message}` : TEXTS[isConnected ? "live" : state];
  }
}

class JobProgress extends ClientElement {
  static observedAttributes = ["job-id", "queue-name"];
  static content = `<span class="whole"><span class="track" role="progressbar" aria-valuemin="0" aria-valuemax="100"><span class="bar"></span></span><span class="text"></span></span>`;
  #stop = () => {};
  #first = null;

  attributeChangedCallback(_, before, now) {
    if (this.shadowRoot && this.isConnected && before !== now) this.begin();
  }

  begin() {
    this.end();
    this.#first = null;
    const jobId = this.getAttribute("job-id");
    this.part("track").setAttribute("aria-label", this.getAttribute("label") ?? `Progress of job ${jobId}`);
    this.#show("waiting", 0, "Waiting");
    if (!jobId) return;
    this.#stop = this.client.subscribeToJob(jobId, {
      queueName: this.getAttribute("queue-name") ?? undefined,
      onEvent: (message) => this.#take(message),
      onError: ({ message }) => this.#show("failed", 0, message),
    });
  }

  end() {
    this.#stop();
    this.#stop = () => {};
  }

  #take({ event, data }) {
    if (event === "job-progress") {
      const now = { at: Date.now(), progress: data.progress };
      this.#first = this.#first && this.#first.progress <= now.progress ? this.#first : now;
      const seconds = etaSeconds(this.#first, now);
      const eta = seconds === null ? "" : `, ${remaining(seconds)} left`;
      this.#show("active", data.progress, `${Math.round(data.progress)} %${eta}`);
    } else if (event === "job-completed") {
      this.#show("completed", 100, "Completed");
    } else if (event === "job-failed") {
      this.#show("failed", undefined, `Failed: ${data.failedReason ?? data.error ?? "no reason given"}`);
    }
    this.dispatchEvent(new CustomEvent(event, { detail: data, bubbles: true, composed: true }));
  }

  #show(kind, percent, text) {
    const track = this.part("track");
    this.part("whole").dataset.kind = kind;
    this.part("text").textContent = text;
    track.setAttribute("aria-valuetext", text);
    if (percent === undefined) return;
    track.setAttribute("aria-valuenow", Math.round(percent));
    this.part("bar").style.width = `${percent}%`;
  }
}

if (globalThis.customElements && !customElements.get("relay-status")) {
  customElements.define("relay-status", RelayStatus);
  customElements.define("job-progress", JobProgress);
}
