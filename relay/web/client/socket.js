/**
 * One WebSocket connection to the relay: paces what is sent, matches answers to requests, and notices a dead link.
 *
 * Invariants: `onEnd` is called once; no request leaves faster than the relay's default limits allow; a request
 * that was refused for now is sent again. Knows nothing of jobs (RFC 6455; docs/protocol.md).
 */

const OPEN = 1;
const CONNECT_MS = 5000;
const ANSWER_MS = 10_000;
const GRACE_MS = 10_000; // the relay's own `heartbeat.timeout_seconds`
const TICK_MS = 1000;
// A little below the relay's 20 messages a second and 50 at once.
const PER_MS = 0.018;
const BURST = 40;
const LOST = 1006;

export class Socket {
  /** The relay's heartbeat: what it says in `relay-status`. */
  heartbeatSeconds = 25;
  #ws;
  #onMessage;
  #onEnd;
  #waiting = [];
  #unanswered = new Map();
  #refs = 0;
  #credit = BURST;
  #creditAt = Date.now();
  #heardAt = Date.now();
  #deadline = Date.now() + CONNECT_MS; // when silence means that the link is dead; 0 while nothing is asked
  #tick;
  #pace;

  /**
   * @param {WebSocket} ws just made
   * @param {(message: object, request?: object) => void} onMessage `request` is what the message answers
   * @param {(code: number, reason: string) => void} onEnd
   */
  constructor(ws, onMessage, onEnd) {
    this.#ws = ws;
    this.#onMessage = onMessage;
    this.#onEnd = onEnd;
    ws.onopen = () => this.#flush();
    ws.onmessage = ({ data }) => this.#hear(data);
    ws.onclose = ({ code, reason }) => this.#end(code, reason);
    // An interval rather than a timer for each deadline: after sleep it fires late, but it fires.
    this.#tick = setInterval(() => this.#watch(), TICK_MS);
  }

  /** Send a request when it may go. `topics` is what the answer will be about, for the caller. */
  send(event, data, topics) {
    this.#waiting.push({ event, data, topics, ref: ++this.#refs });
    this.#flush();
  }

  /** Find out within `answerMs` whether the other side is still there. */
  check(answerMs = ANSWER_MS) {
    if (this.#ws.readyState !== OPEN) return;
    this.#deadline ||= Infinity;
    this.#deadline = Math.min(this.#deadline, Date.now() + answerMs);
    this.#ws.send('{"event":"ping"}'); // not paced: an answer in time matters more
  }

  /** Leave without a word to `onEnd`. */
  close() {
    this.#onEnd = () => {};
    this.#end(LOST, "");
  }

  #hear(text) {
    this.#heardAt = Date.now();
    this.#deadline = 0;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // not the relay's; a proxy that speaks WebSocket is no reason to fail
    }
    if (typeof message?.event !== "string") return;
    const request = this.#unanswered.get(message.ref);
    this.#unanswered.delete(message.ref);
    if (request && message.event === "error" && message.data.temporary) {
      setTimeout(() => this.send(request.event, request.data, request.topics), TICK_MS * (1 + Math.random()));
    } else {
      this.#onMessage(message, request);
    }
  }

  #flush() {
    if (this.#ws.readyState !== OPEN) return;
    const now = Date.now();
    this.#credit = Math.min(BURST, this.#credit + Math.max(0, now - this.#creditAt) * PER_MS);
    this.#creditAt = now;
    while (this.#waiting.length && this.#credit >= 1) {
      const request = this.#waiting.shift();
      this.#credit -= 1;
      this.#unanswered.set(request.ref, request);
      this.#ws.send(JSON.stringify({ ...request, topics: undefined }));
    }
    clearTimeout(this.#pace);
    if (this.#waiting.length) this.#pace = setTimeout(() => this.#flush(), 1 / PER_MS);
  }

  /** A page can't see the relay's ping frames, so it asks when nothing came for as long as one may take. */
  #watch() {
    const now = Date.now();
    if (this.#deadline) {
      if (now > this.#deadline) this.#end(LOST, "no answer");
    } else if (now - this.#heardAt > this.heartbeatSeconds * 1000 + GRACE_MS) {
      this.check();
    }
  }

  #end(code, reason) {
    clearInterval(this.#tick);
    clearTimeout(this.#pace);
    const ws = this.#ws;
    ws.onopen = ws.onmessage = ws.onclose = null;
    ws.onerror = () => {}; // some WebSockets for Node throw what nobody listens to
    ws.close();
    this.#waiting = [];
    const onEnd = this.#onEnd;
    this.#onEnd = () => {};
    onEnd(code, reason);
  }
}
