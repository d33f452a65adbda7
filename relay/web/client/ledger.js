/**
 * What was told of one job, so that nothing is told twice and each run ends exactly once, whatever transport
 * brings it.
 *
 * Event ids are compared for equality only. An event without one is a state that an app's own API told: it is
 * known to lag, so it never takes back what was told before.
 */

const MOST_IDS = 256; // more than the relay replays of a job by default
const RUNS_AGAIN = /^(active|queued|waiting|retrying)$/;

const isEnd = (event) => event === "job-completed" || event === "job-failed";

export class Ledger {
  /** The newest progress or end that was told; what a late listener has to know. */
  last = null;
  ended = false;
  #ids = new Set();
  #endedBy = ""; // the id of the end; undefined where an app's API told it

  /** Whether this event is news. What is news counts as told. */
  admit(message) {
    const { event, id, data } = message;
    if (id != null) {
      if (this.#ids.has(id)) return false;
      this.#ids.add(id);
      if (this.#ids.size > MOST_IDS) this.#ids.delete(this.#ids.values().next().value);
    }
    if (this.ended && !this.#begins(message)) return false;
    if (isEnd(event)) {
      this.ended = true;
      this.#endedBy = id;
    } else if (id == null && this.last && !this.#advances(data)) {
      return false;
    }
    if (isEnd(event) || event === "job-progress") this.last = message;
    return true;
  }

  /** Whether an event after the end is to be told; one that begins another run ends the end. */
  #begins({ event, id, data }) {
    if (id == null) return false;
    if (this.#endedBy == null) {
      // The app told the end before the relay could: the relay now tells how it came to that, which is no news.
      if (isEnd(event)) this.#endedBy = id;
      return false;
    }
    if (isEnd(event)) return false;
    const runsAgain = RUNS_AGAIN.test(event === "job-progress" ? data.status : event.slice(4));
    if (runsAgain) this.ended = false;
    return runsAgain || event !== "job-progress";
  }

  #advances(data) {
    const told = this.last.data;
    return data.progress > told.progress || (data.progress === told.progress && data.status !== told.status);
  }
}
