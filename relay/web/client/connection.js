/**
 * The way to the relay that works right now: a WebSocket when there can be one, else a fallback, and back again.
 *
 * Invariants: at most one WebSocket and one fallback; a fallback ends when the WebSocket is up; every wait before an
 * attempt is random, and never shorter than the relay asked for. Which close codes allow to come back, and how the
 * relay's status is to be read, is in docs/protocol.md.
 */

import { backoffMs, fitsSubprotocol, mayReturn, TOKEN_EXPIRED } from "./rules.js";
import { Socket } from "./socket.js";

const NEWS = ["online", "offline", "pageshow", "visibilitychange", "resume"];
// While something else works the WebSocket is tried this often, so that it is back within 5 s.
const PROBE_MS = [1500, 3500];
const WAKE_ANSWER_MS = 3000; // after sleep a dead link is likelier than a slow one
// A relay that is in trouble must not be asked again at once because the connection was there for a moment.
const IN_TROUBLE = [1011, 1013, TOKEN_EXPIRED];
const STABLE_MS = 10_000;
const AWAY_MS = 2000; // a restart that takes longer is bridged by polling the app
const MOST_TIMER_MS = 2 ** 31 - 1;
const LEAST_TOKEN_MS = 5000;
const UNAUTHORIZED = {
  code: "unauthorized",
  message: "The token was refused or has expired. Call authenticate() with another, or give a function as `token`.",
};

export class Connection {
  isClosed = false;
  /** What keeps events away: `{code, message}`, or null. */
  error = null;
  #redis = "unknown";
  #options;
  #client;
  #socket = null;
  #fallback = null; // until it is loaded
  #loading;
  #isUp = false; // whether the relay has answered on the socket
  #upAt = 0;
  #isOpening = false;
  #attempts = 0;
  #notBefore = 0;
  #fresh; // what the token function gave, until it is refused
  #refusal; // why the relay refuses, where it said so
  #retryTimer;
  #tokenTimer;

  /**
   * @param {object} options the client's, with `url` as a URL, and `base` the URL of its HTTP side
   * @param {object} client `topics()`, `receive(message)`, `up()` when a new socket needs its subscriptions,
   *   `answered(topics, data)`, `refused(topics, error)`, `granted()` when a token was taken, `gap()`, `changed()`
   */
  constructor(options, client) {
    this.#options = options;
    this.#client = client;
    const host = {
      ...options,
      topics: client.topics,
      unserved: () => this.#unserved(),
      token: () => this.#token(),
      mayAsk: () => Date.now() >= this.#notBefore,
      // A document of what the socket serves meanwhile may be older than what that has told.
      receive: (message, topic) => {
        const isLate = this.#isUp && message.id != null && !topic.overflow;
        if (!isLate && !this.isClosed) client.receive(message, topic);
      },
      told: (message, topics) => this.#obey(message, topics),
      refused: (status, retryAfterMs) => this.#refused(status, retryAfterMs),
      changed: () => this.#fallbackChanged(),
    };
    for (const name of NEWS) globalThis.addEventListener?.(name, this.#onNews, true);
    // A module of its own, so that a page has its WebSocket before it has loaded what it may never need; and asked for
    // now, because it can't be had when it is needed.
    this.#loading = import("./fallback.js").then(({ Fallback }) => (this.#fallback = new Fallback(host)));
    this.#loading.catch(() => {});
    this.open();
  }

  /** How the connection is: `{state, transport, isConnected, redis, error}`. */
  get status() {
    const transport = this.#wayAround;
    const isReached = this.#isUp || transport !== "none";
    const isConnected = this.#redis === "connected" && (this.#isUp || transport === "sse");
    let state = "connecting";
    if (this.isClosed) state = "closed";
    else if (isConnected && this.#isUp) state = "live";
    else if (isReached) state = "degraded";
    // With nothing to follow the fallback is not tried, and says nothing.
    else if (this.#client.topics().length ? this.#fallback?.failures : this.#attempts > 1) state = "offline";
    const message = this.#refusal ?? "The relay can't be reached; trying again.";
    const error = this.error ?? (state === "offline" ? { code: "unreachable", message } : null);
    const isPolled = this.#isDeaf() && this.#options.pollUrl;
    return {
      state,
      transport: isPolled ? "polling" : this.#isUp ? "websocket" : transport,
      isConnected,
      redis: this.#redis,
      error,
    };
  }

  /** Whether messages can be sent; else the fallback watches the topics. */
  get isUp() {
    return this.#isUp;
  }

  /** Send a request about these topics; only while `isUp`. */
  send(event, data, topics) {
    this.#socket.send(event, data, topics);
  }

  /** The topics are others than before, and there is no socket to say so. */
  refresh() {
    this.#fallback?.refresh();
  }

  /** Poll for topics that the relay has no room for; goes on for as long as there are any. */
  pollBeside() {
    this.#withFallback((fallback) => fallback.beside());
  }

  /** Take another token: a string, or a function that gives one. */
  authenticate(token) {
    this.#options.token = token;
    this.#fresh = undefined;
    if (this.#isUp) this.#sayToken();
    else this.wake();
  }

  /** Try now rather than when it is due. */
  wake() {
    if (this.#isUp) return this.#socket.check(WAKE_ANSWER_MS);
    this.#attempts = 0;
    this.#fallback?.refresh();
    return this.open();
  }

  /** End it, for the reason `error` or, with null, because nobody needs it. Idempotent. */
  close(error = null) {
    if (this.isClosed) return;
    this.isClosed = true;
    this.error = error;
    for (const name of NEWS) globalThis.removeEventListener?.(name, this.#onNews, true);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#tokenTimer);
    this.#socket?.close();
    this.#drop();
    this.#fallback?.stop();
    this.#client.changed();
  }

  /** Make an attempt, unless one is under way. */
  async open() {
    clearTimeout(this.#retryTimer);
    if (this.isClosed || this.#socket || this.#isOpening) return;
    const { WebSocket, transports, url } = this.#options;
    if (!WebSocket || !transports.includes("websocket")) return this.#goAround();
    if (Date.now() < this.#notBefore) return this.#retry();
    this.#isOpening = true;
    try {
      const token = await this.#token();
      if (this.isClosed) return;
      const fits = token && fitsSubprotocol(token);
      this.#socket = new Socket(
        new WebSocket(url.href, fits ? ["bearer", token] : []),
        (message, request) => this.#hear(message, request),
        (code, reason) => this.#lost(code, reason),
      );
      // Said although it fits, where the answer is of use: it tells when the token expires.
      if (token && (!fits || this.#isRenewable)) this.#socket.send("authenticate", { token });
    } catch (error) {
      this.#refusal = `The token function or the WebSocket failed: ${error.message ?? error}`;
      this.#lost(1006, "");
    } finally {
      this.#isOpening = false;
    }
  }

  // What happens

  #onNews = ({ type }) => {
    if (type === "visibilitychange" && document.visibilityState === "hidden") return;
    if (type === "offline") this.#socket?.check(WAKE_ANSWER_MS);
    else this.wake();
  };

  #hear(message, request) {
    const { event, data } = message;
    if (event.startsWith("job-")) return this.#client.receive(message);
    if (event === "relay-status") {
      this.#socket.heartbeatSeconds = data.heartbeatSeconds;
      this.#redis = data.redis;
      if (!this.#isUp) this.#isReached();
    }
    return this.#obey(message, request?.topics);
  }

  #isReached() {
    this.#isUp = true;
    this.#upAt = Date.now();
    this.#notBefore = 0;
    this.#fallback?.stop();
    this.#client.up();
  }

  /** What the relay says beside job events, on whatever transport. */
  #obey({ event, data }, topics = []) {
    if (event === "relay-status") this.#heed(data);
    else if (event === "subscribed") this.#client.answered(topics, data);
    else if (event === "authenticated") this.#accepted(data);
    else if (event === "relay-close") this.#judge(data.code, data.reason);
    else if (event === "error" || event === "relay-error") this.#client.refused(topics, data);
  }

  #heed({ redis, draining, retryAfterMs, gap }) {
    this.#redis = redis;
    this.#refusal = undefined;
    if (draining) this.#notBefore = Date.now() + retryAfterMs;
    if (gap) {
      this.#client.gap();
      // What the relay could not hear it can't tell either.
      const { pollUrl } = this.#options;
      const open = this.#client.topics().filter((topic) => !topic.ended);
      if (pollUrl) this.#withFallback((fallback) => fallback.ask(open, new AbortController().signal));
    }
    this.pollBeside();
    this.#client.changed();
  }

  #lost(code, reason) {
    const wasUp = this.#isUp;
    this.#drop();
    if (!this.#judge(code, reason)) return;
    const wasStable = Date.now() - this.#upAt > STABLE_MS;
    if (wasUp && (wasStable || !IN_TROUBLE.includes(code))) this.#attempts = 0;
    const isAway = this.#notBefore > Date.now() + AWAY_MS;
    if (isAway && this.#options.pollUrl) this.#goAround();
    if (!wasUp) {
      // A page is not told that its handshake was answered 401.
      if (this.#attempts % 3 === 2) this.#fresh = undefined;
      this.#goAround();
    }
    this.#retry();
    this.#client.changed();
  }

  /** Whether the client comes back after this close code; if not, this is the end. */
  #judge(code, reason) {
    if (code === TOKEN_EXPIRED) {
      this.#fresh = undefined;
      if (!this.#isRenewable) this.close(UNAUTHORIZED);
    } else if (!mayReturn(code)) {
      const message = `The relay ended the connection: ${reason || "no reason given"} (${code}).`;
      this.close({ code: "closed", message });
    }
    return !this.isClosed;
  }

  #drop() {
    this.#socket = null;
    if (this.#isUp) this.#redis = "unknown"; // else it is what an event stream says
    this.#isUp = false;
    clearTimeout(this.#tokenTimer);
  }

  #retry() {
    clearTimeout(this.#retryTimer);
    const [least, most] = PROBE_MS;
    const isServed = this.#wayAround !== "none";
    const waitMs = isServed ? least + Math.random() * (most - least) : backoffMs(this.#attempts++);
    this.#retryTimer = setTimeout(() => this.open(), Math.max(waitMs, this.#notBefore - Date.now()));
  }

  #fallbackChanged() {
    const transport = this.#wayAround;
    if (transport !== "none") {
      this.#refusal = undefined;
      // It may be the first sign that the relay is back.
      if (!this.#socket && !this.#isOpening) this.#retry();
    }
    if (transport !== "sse" && !this.#isUp) this.#redis = "unknown";
    this.#client.changed();
  }

  #refused(status, retryAfterMs) {
    if (status === 401) this.#judge(TOKEN_EXPIRED);
    else if (retryAfterMs) this.#notBefore = Date.now() + retryAfterMs;
    else this.#refusal = `The relay answers ${status}. Is this page's origin among server.allowed_origins?`;
  }

  // The fallback

  get #wayAround() {
    return this.#fallback?.transport ?? "none";
  }

  #goAround() {
    this.#withFallback((fallback) => {
      if (!this.#isUp && !this.isClosed) fallback.start();
    });
  }

  /** Have the fallback do something once it is loaded; what fails of it is tried again by others. */
  #withFallback(act) {
    this.#loading.then(act).catch(() => {});
  }

  /** Whether the relay is there and hears nothing. */
  #isDeaf() {
    return this.#redis === "disconnected" && (this.#isUp || this.#wayAround === "sse");
  }

  #unserved() {
    const isDeaf = this.#isDeaf() && this.#options.pollUrl;
    return this.#client.topics().filter((topic) => !topic.ended && (isDeaf || (this.#isUp && topic.overflow)));
  }

  // The token

  get #isRenewable() {
    return typeof this.#options.token === "function";
  }

  #token() {
    const { token } = this.#options;
    if (!this.#isRenewable) return token;
    if (!this.#fresh) {
      const fresh = (this.#fresh = Promise.resolve().then(token));
      fresh.catch(() => {
        if (this.#fresh === fresh) this.#fresh = undefined;
      });
    }
    return this.#fresh;
  }

  async #sayToken() {
    try {
      const token = await this.#token();
      if (this.#isUp) this.#socket.send("authenticate", { token });
    } catch {
      // The relay will close with 3000, and the next attempt asks for a token again.
    }
  }

  /** The relay took the token; `expiresAt` in ms since the epoch, or null. */
  #accepted({ expiresAt }) {
    this.#client.granted();
    clearTimeout(this.#tokenTimer);
    if (!expiresAt || !this.#isRenewable) return;
    // A clock that goes wrong must not have the app asked for tokens without end.
    const waitMs = Math.max(LEAST_TOKEN_MS, 0.8 * (expiresAt - Date.now()));
    this.#tokenTimer = setTimeout(() => {
      this.#fresh = undefined;
      this.#sayToken();
    }, Math.min(waitMs, MOST_TIMER_MS));
  }
}
