// One analysis as the page shows it: how far it is, how long it will take, how it ended.
//
// Takes job messages and knows nothing of where they come from. A message may come twice; what has ended stays so.

import { etaSeconds } from "/client/client.js";

export const METHODS = { capital: "Capital", behavior: "Behavior", binary: "Binary" };

const STATES = {
  waiting: "Waiting",
  active: "Running",
  completed: "Completed",
  failed: "Failed",
  cancelled: "Cancelled",
};

export class Analysis {
  state = "waiting";
  result = null;
  /** What was asked for, where it was asked for here. */
  request = null;
  #part;
  #act;
  #first = null;
  #seconds = null;
  #progress = 0;
  #wallets = null;

  /**
   * @param {string} jobId
   * @param {(action: "cancel" | "show" | "retry", analysis: Analysis) => void} act what its button does
   */
  constructor(jobId, act) {
    this.jobId = jobId;
    this.element = document.getElementById("job").content.firstElementChild.cloneNode(true);
    this.#part = (name) => this.element.querySelector(`.${name}`);
    this.#act = act;
    this.#part("name").textContent = jobId;
    this.element.querySelector("progress").setAttribute("aria-label", `Progress of ${jobId}`);
    this.#part("act").addEventListener("click", () => this.#act(this.#action, this));
    this.#draw("");
  }

  get hasEnded() {
    return ["completed", "failed", "cancelled"].includes(this.state);
  }

  /** Seconds until it is done, at its pace so far; null while it has none. */
  get secondsLeft() {
    return this.state === "active" ? this.#seconds : null;
  }

  get title() {
    const method = METHODS[this.result?.vectorType ?? this.request?.vectorType] ?? "Analysis";
    const wallets = this.result?.wallets.length ?? this.request?.walletAddresses.length ?? this.#wallets;
    return wallets ? `${method} · ${wallets} wallets` : method;
  }

  /** It was asked for here: what for. */
  asked(request) {
    this.request = request;
    this.#draw();
  }

  /** Take a message about this job; returns whether that is how it ended. */
  take({ event, data }) {
    if (this.hasEnded) return false;
    if (event === "job-completed") {
      this.state = "completed";
      this.result = data.result;
      this.#progress = 100;
      this.#draw(summary(data));
    } else if (event === "job-failed") {
      this.state = data.status === "cancelled" ? "cancelled" : "failed";
      this.#draw(data.failedReason ?? data.error ?? "No reason was given.");
    } else {
      const isWaiting = ["waiting", "queued"].includes(data.status);
      this.state = isWaiting ? "waiting" : "active";
      this.#progress = data.progress ?? 0;
      this.#wallets ??= data.data?.walletsTotal;
      if (!isWaiting) this.#estimate();
      this.#draw(isWaiting ? "Waits for the worker" : detail(data.data, this.#seconds));
    }
    return this.hasEnded;
  }

  get #action() {
    if (!this.hasEnded) return "cancel";
    if (this.state === "completed") return "show";
    return this.request ? "retry" : null;
  }

  #estimate() {
    const now = { at: Date.now(), progress: this.#progress };
    this.#first ??= now;
    this.#seconds = etaSeconds(this.#first, now);
  }

  #draw(text) {
    this.element.dataset.state = this.state;
    this.#part("method").textContent = this.title;
    this.#part("state").textContent = STATES[this.state];
    this.element.querySelector("progress").value = this.#progress;
    this.#part("percent").textContent = `${Math.round(this.#progress)} %`;
    if (text !== undefined) this.#part("detail").textContent = text;
    const button = this.#part("act");
    const label = { cancel: "Cancel", show: "Show", retry: "Try again" }[this.#action];
    button.hidden = !label;
    button.textContent = label;
    button.setAttribute("aria-label", `${label}: ${this.title}, ${this.jobId}`);
  }
}

/** Seconds in words. */
export function duration(seconds) {
  return seconds < 60 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

function detail(data, seconds) {
  const left = seconds === null ? "" : `, about ${duration(seconds)} left`;
  if (data?.stage === "wallets") return `Reading wallets: ${data.walletsDone} of ${data.walletsTotal}${left}`;
  if (data?.stage === "pairs") return `Comparing pairs: ${data.pairsDone} of ${data.pairsTotal}${left}`;
  return "Starting";
}

function summary({ result, processingTime }) {
  const took = processingTime == null ? "" : ` in ${(processingTime / 1000).toFixed(1)} s`;
  if (!result) return `Done${took}; the result was too large to be sent.`;
  const skipped = result.skipped.length ? `; ${result.skipped.length} invalid left out` : "";
  return `${result.pairs.toLocaleString("en")} pairs${took}${skipped}`;
}
