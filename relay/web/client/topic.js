/**
 * A job or a queue that somebody listens to: who does, what was told of it, and whether the connection knows.
 */

import { Ledger } from "./ledger.js";

const MOST_JOBS_REMEMBERED = 2000; // of one queue
const CALLBACKS = { "job-progress": "onProgress", "job-completed": "onCompleted", "job-failed": "onFailed" };

/** Call a listener; its exceptions are its own, and are reported as if nobody had been between. */
export function call(listener, ...values) {
  try {
    listener?.(...values);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** Tell one listener of one event. */
export function tell(listener, message) {
  call(listener[CALLBACKS[message.event]], message.data, message);
  call(listener.onEvent, message);
}

export class Topic {
  listeners = new Set();
  /** The id of the last event that was told: where another connection goes on. */
  since;
  /** Whether the connection that there is has been told of this topic. */
  sent = false;
  /** The relay has no room for it on this connection, so it is polled. */
  overflow = false;
  /** The relay said no. */
  refused = false;
  wantsSnapshot = false;
  wasFollowed = false;
  #ledgers = new Map();

  /** Without `jobId` the topic is the queue. */
  constructor(jobId, queueName, since) {
    Object.assign(this, { jobId, queueName, since });
  }

  /** Whether a queue's known jobs are to be told. Nobody can say what was missed of it between two connections, so
   * after the first they are. */
  get snapshot() {
    return this.wantsSnapshot || this.wasFollowed;
  }

  /** Whether anybody of this page listens, rather than another tab. */
  get isOwn() {
    return [...this.listeners].some((listener) => !listener.isForeign);
  }

  get ended() {
    return !!this.jobId && !!this.#ledgers.get(this.jobId)?.ended;
  }

  /** Take a message for this topic; whether it is news. */
  admit(message) {
    const { jobId } = message.data;
    let ledger = this.#ledgers.get(jobId);
    if (!ledger) {
      this.#ledgers.set(jobId, (ledger = new Ledger()));
      if (this.#ledgers.size > MOST_JOBS_REMEMBERED) this.#ledgers.delete(this.#ledgers.keys().next().value);
    }
    const isNews = ledger.admit(message);
    if (isNews) this.since = message.id ?? this.since;
    return isNews;
  }

  /** The newest message of each job. */
  latest() {
    return Array.from(this.#ledgers.values(), (ledger) => ledger.last).filter(Boolean);
  }
}
