/**
 * Events over plain HTTP while there is no WebSocket: a ladder of Server-Sent Events, long polls and polling, each
 * tried when the one before it failed, and climbed again from its top every half minute.
 *
 * Invariants: `transport` names what works right now, "none" included; what is under way ends with `stop` or
 * `refresh`, and nothing that it brings afterwards is told. Streams are read with `fetch`, because an EventSource
 * can't send a token.
 */

import { documentsOf, eventOfDocument } from "./documents.js";
import { backoffMs, chunks, grouped } from "./rules.js";

const POLL_MS = 3000;
const CLIMB_AGAIN_MS = 30_000;
const ANSWER_MS = 5000;
const GRACE_MS = 10_000;
const FOREVER_MS = 2 ** 31 - 1; // the longest that a timer can do
const HOLD_SECONDS = 25; // below the half minute after which some proxies cut what says nothing
const MOST_IDS = 100; // the relay's limit for `GET /jobs?ids=`
const URL_CHARACTERS = 6000; // request lines above 8 KiB are refused
// A browser opens six connections to one host over HTTP/1.1, and the page needs some itself.
const MOST_STREAMS = 3;

/** Resolves after `ms`, or as soon as `signal` aborts. */
const sleep = (ms, signal) =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Until the next poll is due; jittered, so that the clients of a crash don't stay in step. */
const pollPause = (signal) => sleep(POLL_MS * (0.8 + 0.4 * Math.random()), signal);

const weigh = (topic) => encodeURIComponent(topic.jobId).length + 6;
const queueOf = (topic) => topic.queueName;

export class Fallback {
  transport = "none";
  /** How often in a row nothing on the ladder worked. */
  failures = 0;
  #host;
  #run;
  #step;
  #worked; // whether the rung that is being tried has answered
  #beside = null; // ends the polling beside a connection

  /**
   * @param {object} host what the connection lends: `base` (a URL), `fetch`, `transports`, `pollUrl`; `topics()`, and
   *   `unserved()`, those of them that a connection that is there can't serve; `token()`; `mayAsk()`, whether the relay
   *   allows a request now; `receive(message, topic)` for job events; `told(message, topics)` for the rest;
   *   `refused(status, retryAfterMs)`; `changed()` when `transport` has
   */
  constructor(host) {
    this.#host = host;
  }

  /** Begin, if not at it. */
  start() {
    if (this.#run) return;
    this.#run = new AbortController();
    this.#climb(this.#run.signal);
  }

  /** End; idempotent. */
  stop() {
    this.#run?.abort();
    this.#run = undefined;
    this.#step?.abort();
    this.failures = 0;
    this.#set("none");
  }

  /** The topics have changed, or the network has: begin at the top again, at once. */
  refresh() {
    this.#step?.abort();
  }

  /** Poll beside a connection for what it can't serve, for as long as there is any such thing. */
  async beside() {
    if (this.#beside) return;
    this.#beside = new AbortController();
    const { signal } = this.#beside;
    for (let topics; (topics = this.#host.unserved()).length; await pollPause(signal)) {
      await this.ask(topics, signal).catch(() => {}); // asked again in a moment
    }
    this.#beside = null;
  }

  /** Ask once where these topics stand: the app's API if the client was given one, else the relay. */
  async ask(topics, signal) {
    const { pollUrl } = this.#host;
    const asked = [];
    const queues = [];
    for (const [queueName, group] of grouped(topics, queueOf)) {
      const jobs = group.filter((topic) => topic.jobId);
      const most = /\{jobId\}/.test(pollUrl) ? 1 : MOST_IDS;
      for (const run of chunks(jobs, weigh, most, URL_CHARACTERS)) {
        const ids = run.map((topic) => topic.jobId);
        asked.push(pollUrl ? this.#askApp(run, ids, signal) : this.#askRelay(run, signal, { ids, queueName }));
      }
      const queue = group.find((topic) => !topic.jobId);
      if (queue) queues.push(queue);
    }
    // An app's API knows jobs: beside it the relay is only asked where there are none.
    if (!pollUrl || !asked.length) {
      for (const queue of queues) asked.push(this.#askRelay([queue], signal, { queueName: queue.queueName }));
    }
    await Promise.all(asked); // where all jobs have ended there is nothing to ask, and nothing amiss
  }

  async #askRelay(topics, signal, query) {
    const { receive, told } = this.#host;
    const read = (response) => response.json();
    const { jobs } = await this.#request("jobs", query, signal, ANSWER_MS, read);
    if (signal.aborted) return;
    for (const [jobId, document] of Object.entries(jobs)) {
      const topic = topics.find((each) => each.jobId === jobId) ?? topics[0];
      const refusal = !document.jobId && document.error?.code;
      if (refusal) told({ event: "subscribed", data: { jobs: { [jobId]: { error: refusal } } } }, topics);
      else receive(eventOfDocument(jobId, document), topic);
    }
  }

  async #askApp(topics, ids, signal) {
    const { pollUrl, fetch, receive } = this.#host;
    let answer = {};
    if (typeof pollUrl === "function") {
      answer = await pollUrl(ids, { signal });
    } else {
      const list = ids.map(encodeURIComponent).join();
      const response = await fetch(pollUrl.replace(/\{(jobId|ids)\}/, () => list), { signal, cache: "no-store" });
      if (response.ok) answer = await response.json();
      // An app may not know a job yet that it will know.
      else if (response.status !== 404) throw new Error(`pollUrl answered ${response.status}`);
    }
    if (signal.aborted) return;
    const documents = documentsOf(answer, ids);
    for (const topic of topics) {
      const document = documents[topic.jobId];
      // An app's `id` may be anything; the relay's event id would be in `eventId`.
      if (document) receive(eventOfDocument(topic.jobId, { ...document, id: document.eventId }), topic);
    }
  }

  async #climb(signal) {
    const rungs = { sse: this.#stream, "long-poll": this.#hold, polling: this.#poll };
    while (!signal.aborted) {
      const step = (this.#step = new AbortController()).signal;
      if (!this.#host.topics().length) {
        this.#set("none");
        await sleep(FOREVER_MS, step);
        continue;
      }
      this.#worked = false;
      for (const name of this.#host.transports) {
        try {
          await rungs[name]?.call(this, step);
        } catch {
          if (this.#worked && !step.aborted) this.#set("none");
        }
        if (this.#worked || step.aborted) break;
      }
      if (step.aborted) continue;
      if (!this.#worked) this.#fail();
      await sleep(backoffMs(this.failures), step);
    }
  }

  /** Read event streams until one of them ends. */
  async #stream(signal) {
    const streams = [];
    for (const [queueName, group] of grouped(this.#host.topics(), queueOf)) {
      for (const run of chunks(group.filter((topic) => topic.jobId), weigh, Infinity, URL_CHARACTERS)) {
        // A stream goes on after one event: the other jobs of it get their snapshots.
        const lastEventId = run.find((topic) => topic.since && !topic.ended)?.since;
        streams.push({ jobs: run.map((topic) => topic.jobId), queueName, lastEventId });
      }
      const queue = group.find((topic) => !topic.jobId);
      if (queue) streams.push({ queues: [queueName], snapshot: queue.snapshot });
    }
    if (!streams.length || streams.length > MOST_STREAMS) throw new Error("not to be streamed");
    await this.#untilOneEnds(signal, (together) => streams.map((query) => this.#listen(query, together)));
    if (!signal.aborted) this.#set("none");
  }

  #listen(query, signal) {
    return this.#request("events", query, signal, ANSWER_MS, async (response, allow) => {
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let allowedMs = 0; // nothing more than the time for an answer until the relay has said how it stands
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done || signal.aborted) return;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
          if (!fields.data) continue;
          const message = { event: fields.event, id: fields.id, data: JSON.parse(fields.data) };
          if (message.event === "relay-status") {
            allowedMs = message.data.heartbeatSeconds * 1000 + GRACE_MS;
            this.#works("sse");
          }
          if (message.event.startsWith("job-")) this.#host.receive(message);
          else this.#host.told(message, message.event === "subscribed" ? this.#host.topics() : []);
          if (signal.aborted) return;
        }
        if (allowedMs) allow(allowedMs);
      }
    });
  }

  /** A request for each of a few jobs, answered when there is news. */
  async #hold(signal) {
    const topics = this.#host.topics();
    if (!topics.length || topics.length > MOST_STREAMS || topics.some((topic) => !topic.jobId)) {
      throw new Error("not to be held");
    }
    const until = Date.now() + CLIMB_AGAIN_MS;
    await this.#untilOneEnds(signal, (together) => topics.map((topic) => this.#follow(topic, until, together)));
  }

  async #follow(topic, until, signal) {
    const path = `jobs/${encodeURIComponent(topic.jobId)}`;
    // The first answer comes at once: it tells whether this way is open at all.
    for (let wait = 0; !signal.aborted && Date.now() < until; wait = HOLD_SECONDS) {
      const query = { wait, since: topic.since, queueName: topic.queueName };
      const read = (response) => (response.status === 200 ? response.json() : undefined);
      const document = await this.#request(path, query, signal, wait * 1000 + ANSWER_MS, read);
      if (signal.aborted) return;
      this.#works("long-poll");
      if (document) this.#host.receive(eventOfDocument(topic.jobId, document), topic);
    }
  }

  /** Ask every few seconds for as long as that works, until it is time to try something better. */
  async #poll(signal) {
    const until = Date.now() + CLIMB_AGAIN_MS;
    while (!signal.aborted && Date.now() < until) {
      await this.ask(this.#host.topics().filter((topic) => !topic.ended), signal);
      if (signal.aborted) return;
      this.#works("polling");
      await pollPause(signal);
    }
  }

  /** Run what `begin` makes of a signal of its own until one is done, and end the others. */
  async #untilOneEnds(signal, begin) {
    const together = new AbortController();
    const end = () => together.abort();
    signal.addEventListener("abort", end);
    const all = begin(together.signal);
    try {
      await Promise.race(all);
    } finally {
      signal.removeEventListener("abort", end);
      end();
      await Promise.allSettled(all);
    }
  }

  /** `GET` of the relay; `read` gets the response, and a function that allows it so many ms more. */
  async #request(path, query, signal, ms, read) {
    const { base, fetch, token, mayAsk, refused } = this.#host;
    if (!mayAsk()) throw new Error("the relay asked to come back later");
    const url = new URL(path, base);
    for (const [name, value] of Object.entries(query)) {
      // A list of one would be split at its commas; with an empty member it isn't.
      const values = Array.isArray(value) ? [...value, ""] : [value ?? []].flat();
      for (const each of values) url.searchParams.append(name, each);
    }
    const ended = new AbortController();
    const end = () => ended.abort();
    let timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
    try {
      const bearer = await token();
      const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
      const response = await fetch(url, { signal: ended.signal, headers, cache: "no-store" });
      // 404 is what a long poll says of a job that nobody has heard of yet.
      if (!response.ok && response.status !== 404) {
        refused(response.status, 1000 * (response.headers.get("Retry-After") ?? 0));
        throw new Error(`the relay answered ${response.status}`);
      }
      return await read(response, (more) => {
        clearTimeout(timer);
        timer = setTimeout(end, more);
      });
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      end();
    }
  }

  #fail() {
    this.failures += 1;
    this.transport = "none";
    this.#host.changed();
  }

  #works(transport) {
    this.#worked = true;
    this.failures = 0;
    this.#set(transport);
  }

  #set(transport) {
    if (transport === this.transport) return;
    this.transport = transport;
    this.#host.changed();
  }
}
