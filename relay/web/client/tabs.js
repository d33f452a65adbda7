/**
 * One connection for all tabs of an origin: one tab leads and has it, the others hear what it hears.
 *
 * Invariants: at most one leader, the holder of a lock (Web Locks API); a tab that ends, crashed too, gives its lock
 * back, and the next in line leads. Browsers don't freeze a page that holds a lock; where one does all the same, a
 * visible tab that hears nothing takes the lock away from it. What is told twice on the way is dropped by each
 * tab's own ledgers.
 */

const ASK_MS = 4000;
const SILENT_MS = 10_000;

/** Tells users with different tokens apart without showing the token to whoever lists locks. */
const digest = (text) => Array.from(text).reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) | 0, 7);

export class Tabs {
  #tab;
  #id = crypto.randomUUID();
  #name;
  #channel;
  #leads = false;
  #kept = new Map(); // what the leader follows for each other tab: id → Map(key → function that stops it)
  #heardAt = Date.now();
  #left = new AbortController();
  #resign = () => {};

  /**
   * @param {object} options the client's
   * @param {object} tab what the client lends: `lead()` and `follow()`; `wants()`, the topics of this tab;
   *   `keep(want)`, which follows a topic for another and returns what stops it; `latest(want)`; `receive(message)`;
   *   `refused(error)`; `status()` and `adopt(status)`
   */
  constructor({ url, token, shareTabs }, tab) {
    const whose = typeof shareTabs === "string" ? shareTabs : typeof token === "string" ? digest(token) : "";
    this.#tab = tab;
    this.#name = `relay ${url.href} ${whose}`;
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    const { signal } = this.#left;
    // Held for as long as this tab lives: that is how the leader learns of its end.
    navigator.locks.request(this.#id, { signal }, () => this.#untilLeft()).catch(() => {});
    this.#stand({ signal });
    const timer = setInterval(() => this.#ask(), ASK_MS);
    const onVisible = () => this.changed();
    document.addEventListener("visibilitychange", onVisible);
    signal.addEventListener("abort", () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", onVisible);
    });
  }

  /** This tab follows other topics than before, or wants to hear from the leader. */
  changed() {
    if (!this.#leads) this.#post({ from: this.#id, wants: this.#tab.wants() });
  }

  /** Pass an event on. */
  tell(message) {
    if (this.#leads) this.#post({ message });
  }

  /** Pass on that the relay refuses what a tab follows. */
  tellRefused(error) {
    if (this.#leads) this.#post({ error });
  }

  /** Pass on how the connection is. */
  tellStatus() {
    if (this.#leads) this.#post({ status: this.#tab.status() });
  }

  /** Leave the others; this tab has no connection any more. Idempotent. */
  leave() {
    this.#post({ from: this.#id, wants: [] });
    this.#left.abort();
    this.#follow();
    this.#resign();
    this.#channel.close();
  }

  async #stand(options) {
    try {
      await navigator.locks.request(this.#name, options, () => this.#lead());
    } catch {
      // Stolen by a tab that did not hear from this one.
      if (this.#left.signal.aborted) return;
      this.#follow();
      this.#tab.follow();
      this.#stand({ signal: this.#left.signal });
    }
  }

  #lead() {
    if (this.#left.signal.aborted) return undefined;
    this.#leads = true;
    this.#tab.lead();
    this.#post({ status: this.#tab.status(), isNew: true });
    return new Promise((resolve) => (this.#resign = resolve));
  }

  #follow() {
    this.#leads = false;
    for (const id of this.#kept.keys()) this.#keep(id, []);
    this.#heardAt = Date.now();
  }

  #hear({ from, wants, message, error, status, isNew }) {
    if (wants && this.#leads) {
      this.#keep(from, wants);
      this.tellStatus();
    }
    if (this.#leads) return;
    if (message) this.#tab.receive(message);
    if (error) this.#tab.refused(error);
    if (!status) return;
    this.#heardAt = Date.now();
    this.#tab.adopt(status);
    if (isNew) this.changed();
  }

  #keep(id, wants) {
    const before = this.#kept.get(id) ?? new Map();
    const now = new Map();
    for (const want of wants) {
      const key = JSON.stringify([want.queueName, want.jobId, want.snapshot]);
      if (!before.has(key)) for (const message of this.#tab.latest(want)) this.tell(message);
      now.set(key, before.get(key) ?? this.#tab.keep(want));
    }
    for (const [key, stop] of before) if (!now.has(key)) stop();
    if (now.size) this.#kept.set(id, now);
    else this.#kept.delete(id);
    if (before.size || !now.size) return;
    const { signal } = this.#left;
    navigator.locks.request(id, { signal }, () => this.#keep(id, [])).catch(() => {});
  }

  /** Ask the leader for a sign of life, and take its place where there is none. */
  #ask() {
    if (this.#leads || document.visibilityState !== "visible") {
      this.#heardAt = Date.now();
    } else if (Date.now() - this.#heardAt > SILENT_MS) {
      this.#heardAt = Date.now();
      this.#stand({ steal: true });
    } else {
      this.changed();
    }
  }

  #post(data) {
    if (!this.#left.signal.aborted) this.#channel.postMessage(data);
  }

  #untilLeft() {
    return new Promise((resolve) => this.#left.signal.addEventListener("abort", resolve));
  }
}
