/**
 * The relay's client for browsers (and Node): live progress of background jobs, whatever happens to the network.
 *
 * Invariants: one job's events are told in order and each once, and each run of a job ends once, whichever transport
 * brings them; a subscription holds until it is given up, connected or not; nothing is written to the console unless
 * `debug` is set. Importing this module touches neither `window` nor the network.
 *
 * docs/client.md explains it; docs/protocol.md is what it speaks.
 */

import { Batch } from "./batch.js";
import { Connection } from "./connection.js";
import { chunks, grouped, keyOf } from "./rules.js";
import { call, tell, Topic } from "./topic.js";

export { etaSeconds } from "./rules.js";

const TRANSPORTS = ["websocket", "sse", "long-poll", "polling"];
// Subscriptions made within it go in one message; nobody sees a progress bar start so much later.
const GATHER_MS = 20;
const MESSAGE_CHARACTERS = 48_000; // the relay takes 64 KiB
const RELEASE_MS = 1000; // between two views of an application nobody needs the client for a moment
const CLOSED = { state: "closed", transport: "none", isConnected: false, redis: "unknown", error: null };

const logOf = (debug) => (debug === true ? console.log : debug || (() => {}));

export class JobProgressClient {
  static #pool = [];

  // The fields of `Status` (see client.d.ts) are those of the client; #status is what they were told to be.
  #status = CLOSED;
  #options;
  #debug;
  #topics = new Map();
  #listeners = new Map();
  #connection = null; // null while another tab has it, and when closed
  #tabs = null;
  #isClosed = true;
  #users = 0;
  #gatherTimer;
  #releaseTimer;

  /**
   * Connects at once.
   *
   * @param {import("./client.js").ClientOptions} [options]
   */
  constructor(options = {}) {
    const { url: given = "/job-progress", fetch = globalThis.fetch, debug = false } = options;
    const here = globalThis.location?.href;
    if (!here && !/^(ws|http)s?:/.test(given)) {
      throw new TypeError("outside a browser the client needs a whole address: {url: 'ws://host:3001/job-progress'}");
    }
    const url = new URL(given, here);
    url.protocol = url.protocol.replace("http", "ws");
    const base = new URL(".", url);
    base.protocol = base.protocol.replace("ws", "http");
    const { WebSocket } = globalThis;
    this.#options = { WebSocket, transports: TRANSPORTS, ...options, url, base, fetch: fetch.bind(globalThis) };
    this.#debug = logOf(debug);
    this.connect();
  }

  /**
   * The client that all of a page share for one `url` and one `token` (the same string, or the same function). Each
   * call is to be matched by one of `release`.
   */
  static shared(options = {}) {
    const { url, token } = options;
    const pool = JobProgressClient.#pool.filter(({ client }) => !client.#isClosed);
    JobProgressClient.#pool = pool;
    let entry = pool.find((each) => each.url === url && each.token === token);
    if (!entry) pool.push((entry = { url, token, client: new JobProgressClient(options) }));
    const { client } = entry;
    if (options.debug) client.#debug = logOf(options.debug); // whoever asks for it, the first user or a later one
    clearTimeout(client.#releaseTimer);
    client.#users += 1;
    return client;
  }

  /** Give back what `shared` gave; the last to do so closes the client a second later. */
  release() {
    this.#users -= 1;
    if (!this.#users) this.#releaseTimer = setTimeout(() => this.close(), RELEASE_MS);
  }

  /**
   * Follow a job; returns the function that stops it. What is known of it is told at once, an end that is long past
   * too.
   */
  subscribeToJob(jobId, listener = {}) {
    const id = String(jobId);
    encodeURIComponent(id); // throws here, to the one at fault, where the id is no text
    return this.#subscribe(id, listener.queueName, listener);
  }

  /** Follow all jobs of a queue; with `snapshot: true` also told where those that are known stand. */
  subscribeToQueue(queueName, listener = {}) {
    return this.#subscribe(undefined, String(queueName), listener);
  }

  /** Follow many jobs as one; see batch.js. */
  batch(jobIds, { queueName, onChange } = {}) {
    const subscribe = (id, listener) => this.subscribeToJob(id, { ...listener, queueName });
    return new Batch(subscribe, jobIds, onChange);
  }

  /** The newest message of a job that is followed, or undefined. */
  latest(jobId, { queueName } = {}) {
    return this.#topics.get(keyOf(String(jobId), queueName))?.latest()[0];
  }

  /** Listen to an event of the client itself; returns the function that stops it. */
  on(name, listener) {
    const entry = [listener]; // the same function may listen twice
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(entry);
    return () => void this.#listeners.get(name).delete(entry);
  }

  /** Go on with another token, a string or a function that gives one; comes back where the last was refused. */
  authenticate(token) {
    this.#options.token = token;
    this.#connection?.authenticate(token);
    if (this.error?.code === "unauthorized") this.connect();
  }

  /** Come back after `close` or an end for good, or try now rather than when it is due. */
  connect() {
    const connection = this.#connection;
    if (connection && !connection.isClosed) return void connection.wake();
    if (connection) return this.#open();
    if (!this.#isClosed) return; // another tab has it
    this.#isClosed = false;
    this.#adopt({ ...CLOSED, state: "connecting" });
    if (this.#options.shareTabs && globalThis.navigator?.locks && globalThis.BroadcastChannel) this.#share();
    else this.#open();
  }

  /** End the connection, for every user of this client. Subscriptions are kept for `connect`. Idempotent. */
  close() {
    this.#isClosed = true;
    this.#tabs?.leave();
    this.#tabs = null;
    this.#leave();
    this.#adopt(CLOSED);
  }

  // Subscriptions

  #subscribe(jobId, queueName, listener) {
    const key = keyOf(jobId, queueName);
    let topic = this.#topics.get(key);
    if (!topic) this.#topics.set(key, (topic = new Topic(jobId, queueName, listener.since)));
    if (listener.snapshot && !topic.wantsSnapshot) {
      topic.wantsSnapshot = true;
      topic.sent = false;
    }
    const entry = { ...listener }; // the same listener may subscribe twice
    topic.listeners.add(entry);
    const known = jobId || listener.snapshot ? topic.latest() : [];
    queueMicrotask(() => {
      for (const message of known) if (topic.listeners.has(entry)) tell(entry, message);
    });
    this.#gather();
    return () => {
      if (topic.listeners.delete(entry)) this.#gather();
    };
  }

  /** Bring the connection into line with what is listened to, a moment later. */
  #gather() {
    this.#gatherTimer ??= setTimeout(() => {
      this.#gatherTimer = undefined;
      this.#align();
    }, GATHER_MS);
  }

  #align() {
    const left = [];
    for (const [key, topic] of this.#topics) {
      if (topic.listeners.size) continue;
      this.#topics.delete(key);
      if (topic.sent) left.push(topic);
    }
    this.#tabs?.changed();
    const isUp = this.#connection?.isUp;
    const followed = this.#followed();
    let room = isUp ? left.filter((topic) => !topic.overflow).length : 0;
    for (const topic of followed) {
      if (!room) break;
      if (!topic.overflow) continue;
      topic.overflow = topic.sent = false;
      room -= 1;
    }
    const added = followed.filter((topic) => !topic.sent);
    if (isUp) {
      this.#send(false, left);
      this.#send(true, added);
    } else if (left.length || added.length) {
      this.#connection?.refresh();
    }
    for (const topic of added) topic.sent = true;
  }

  #followed = () => [...this.#topics.values()].filter((topic) => topic.listeners.size);

  /** One message for as many topics as it holds. */
  #send(isNew, topics) {
    const connection = this.#connection;
    const verb = isNew ? "subscribe-to-" : "unsubscribe-from-";
    for (const [queueName, group] of grouped(topics, (topic) => topic.queueName)) {
      // Each id stands there twice, with an event id.
      const weigh = ({ jobId }) => 2 * encodeURIComponent(jobId).length + 100;
      const jobs = group.filter((topic) => topic.jobId);
      for (const run of chunks(jobs, weigh, Infinity, MESSAGE_CHARACTERS)) {
        const jobIds = run.map((topic) => topic.jobId);
        const since = isNew ? Object.fromEntries(run.map((topic) => [topic.jobId, topic.since])) : undefined;
        connection.send(`${verb}jobs`, { jobIds, queueName, since }, run);
      }
      for (const topic of group.filter((each) => !each.jobId)) {
        connection.send(`${verb}queue`, { queueName, snapshot: topic.snapshot }, [topic]);
      }
    }
  }

  #receive(message, asked) {
    const { jobId, queueName } = message.data;
    const keys = [keyOf(jobId), keyOf(jobId, queueName), keyOf("", queueName)];
    let isNews = false;
    let isOwn = false;
    for (const topic of new Set([...keys.map((key) => this.#topics.get(key)), asked])) {
      if (!topic?.admit(message)) continue;
      isNews = true;
      isOwn ||= topic.isOwn;
      // One may have stopped another, or begun to listen: the latter is told by itself.
      for (const listener of [...topic.listeners]) if (topic.listeners.has(listener)) tell(listener, message);
    }
    if (!isNews) return;
    this.#tabs?.tell(message);
    if (!isOwn) return;
    const what = message.event.slice(4);
    this.#debug(`Job ${what} ${what === "progress" ? "received" : "event"}:`, message.data);
    this.#emit(message.event, message.data, message);
    this.#emit("event", message);
  }

  #answered(topics, { jobs = {} }) {
    for (const topic of topics) {
      const code = jobs[topic.jobId]?.error;
      if (code) this.#refused([topic], { code, message: `The relay refuses the job ${topic.jobId}: ${code}` });
      else if (!topic.jobId) this.#debug(`Subscribed to queue: ${topic.queueName}`);
      else if (jobs[topic.jobId]) this.#debug(`Subscribed to job: ${topic.jobId}`);
      topic.wasFollowed = true;
    }
  }

  #refused(topics, { code, message }) {
    if (!topics.length) this.#emit("error", { code, message });
    for (const topic of topics) {
      if (code === "too-many-subscriptions") {
        topic.overflow = true;
        continue;
      }
      topic.refused = true;
      const error = { code, message, jobId: topic.jobId, queueName: topic.queueName };
      for (const listener of [...topic.listeners]) call(listener.onError, error);
      this.#tabs?.tellRefused(error);
      if (topic.isOwn) this.#emit("error", error);
    }
    this.#connection?.pollBeside();
  }

  #emit(name, ...values) {
    for (const [listener] of [...(this.#listeners.get(name) ?? [])]) call(listener, ...values);
  }

  // The connection, this page's or another tab's

  #open() {
    const connection = new Connection(this.#options, {
      topics: this.#followed,
      receive: (message, topic) => this.#receive(message, topic),
      answered: (topics, data) => this.#answered(topics, data),
      refused: (topics, error) => this.#refused(topics, error),
      gap: () => this.#emit("gap"),
      granted: () => {
        const refused = this.#followed().filter((topic) => topic.refused);
        for (const topic of refused) topic.sent = topic.refused = false;
        if (refused.length) this.#align();
      },
      up: () => {
        for (const topic of this.#topics.values()) topic.sent = topic.overflow = false;
        this.#align();
      },
      changed: () => {
        if (connection === this.#connection) this.#adopt(connection.status);
      },
    });
    this.#connection = connection;
    this.#adopt(connection.status);
  }

  #leave() {
    const connection = this.#connection;
    this.#connection = null;
    connection?.close();
  }

  #adopt(status) {
    if (JSON.stringify(status) === JSON.stringify(this.#status)) return;
    this.#status = status;
    Object.assign(this, status);
    const { state, transport, error } = status;
    this.#debug(`Connection: ${state} (${transport})`);
    this.#tabs?.tellStatus();
    this.#emit("state", this);
    if (error && state === "closed") this.#emit("error", error);
  }

  async #share() {
    const { Tabs } = await import("./tabs.js");
    if (this.#isClosed || this.#tabs) return;
    this.#tabs = new Tabs(this.#options, {
      lead: () => this.#open(),
      follow: () => this.#leave(),
      wants: () => this.#followed().map(({ jobId, queueName, since, snapshot }) => ({ jobId, queueName, since, snapshot })),
      keep: (want) => this.#subscribe(want.jobId, want.queueName, { ...want, isForeign: true }),
      latest: ({ jobId, queueName }) => this.#topics.get(keyOf(jobId, queueName))?.latest() ?? [],
      receive: (message) => this.#receive(message),
      refused: (error) => {
        const topic = this.#topics.get(keyOf(error.jobId, error.queueName));
        if (topic) this.#refused([topic], error);
      },
      adopt: (status) => this.#adopt(status),
      status: () => this.#status,
    });
  }
}
