/**
 * Many jobs followed as one: how many have ended and how, how far all are together, and when that will be done.
 *
 * Invariant: each job counts once, as completed or as failed; one that the relay refuses counts as failed.
 */

import { etaSeconds } from "./rules.js";

export class Batch {
  completed = 0;
  failed = 0;
  /** 0 to 100: the mean over all jobs; one that has ended counts as 100. */
  progress = 0;
  /** Seconds that are left at the pace so far; null until there is one. */
  etaSeconds = null;
  cancelled = false;
  /** The newest message of each job that something is known of, by job id. */
  jobs = new Map();
  /** Resolves with this batch when every job has ended, or `cancel` was called. Never rejects. */
  done;
  #stops = new Map();
  #first = null;
  #finish;
  #onChange;

  /**
   * @param {(jobId: string, listener: object) => () => void} subscribe
   * @param {Iterable<string | number>} jobIds
   * @param {(batch: Batch) => void} [onChange]
   */
  constructor(subscribe, jobIds, onChange) {
    const ids = [...new Set(Array.from(jobIds, String))];
    this.total = ids.length;
    this.#onChange = onChange;
    this.done = new Promise((resolve) => (this.#finish = () => resolve(this)));
    const onEvent = (message) => this.#take(message.data.jobId, message);
    for (const id of ids) {
      const onError = ({ code, message }) =>
        this.#take(id, { event: "job-failed", data: { jobId: id, error: code, failedReason: message } });
      this.#stops.set(id, subscribe(id, { onEvent, onError }));
    }
    if (!ids.length) this.#finish();
  }

  /** Stop following; `done` resolves with what is known. Idempotent. */
  cancel() {
    this.cancelled ||= this.#stops.size > 0;
    for (const stop of this.#stops.values()) stop();
    this.#stops.clear();
    this.#finish();
  }

  #take(id, message) {
    const completed = message.event === "job-completed";
    const ended = completed || message.event === "job-failed";
    if (!this.#stops.has(id) || !(ended || message.event === "job-progress")) return;
    const before = this.jobs.get(id)?.data.progress ?? 0;
    this.jobs.set(id, message);
    this.progress += ((ended ? 100 : message.data.progress) - before) / this.total;
    if (ended) {
      this[completed ? "completed" : "failed"] += 1;
      // A job that has ended makes room for one that the relay had no room for.
      this.#stops.get(id)();
      this.#stops.delete(id);
    }
    if (!this.#stops.size) this.progress = 100; // rather than 99.99999
    const now = { at: Date.now(), progress: this.progress };
    this.#first ??= now;
    this.etaSeconds = this.#stops.size ? etaSeconds(this.#first, now) : 0;
    this.#onChange?.(this);
    if (!this.#stops.size) this.#finish();
  }
}
