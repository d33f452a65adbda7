"use client";
/**
 * The client for React 18 and newer: hooks that follow jobs, and components that show them.
 *
 * Invariants: rendering has no side effects, so server rendering and StrictMode are safe; whoever leaves the page
 * follows nothing any more; a component is told each event once, however many of its subscriptions bring it. All
 * components of a page with the same `url` and `token` share a connection. Nothing here writes a `style` attribute,
 * which a strict Content-Security-Policy would forbid.
 *
 * docs/client.md explains it. No JSX, so that it needs no build step.
 */

import {
  createContext, createElement as h, useContext, useEffect, useInsertionEffect, useMemo, useState, useSyncExternalStore,
} from "react";
import { etaSeconds, JobProgressClient } from "./client.js";
import { Ledger } from "./ledger.js";
import { keyOf, remaining } from "./rules.js";

const Relay = createContext({});
const WAITING = { state: "connecting", transport: "none", isConnected: false, redis: "unknown", error: null };
const UNKNOWN = { status: "unknown", progress: 0, result: null, error: null, etaSeconds: null };
const MOST_JOBS = 2000; // of queues; more than that nobody looks at
const CALLBACKS = { "job-progress": "onJobProgress", "job-completed": "onJobCompleted", "job-failed": "onJobFailed" };

/** What one component follows, and what it was told: what it subscribes to React's store with. */
class Follower {
  /** The newest of the component's functions. */
  callbacks = {};
  /** Replaced whenever something of it changes: the connection's status, and the state of each job. */
  view = { ...WAITING, jobs: {} };
  #client = null; // while the component is not mounted
  #wants = new Map(); // by key: {jobId, queueName, snapshot, stop}
  #known = new Map(); // by job id: {ledger, queueName, first, state}
  #watchers = new Set();

  watch = (watcher) => {
    this.#watchers.add(watcher);
    return () => void this.#watchers.delete(watcher);
  };

  stateOf = (jobId) => this.#known.get(String(jobId))?.state ?? UNKNOWN;

  /** Use that client, until the returned function is called. */
  attach(client) {
    const adopt = () => {
      const changed = Object.keys(WAITING).filter((name) => client[name] !== this.view[name]);
      if (!changed.length) return;
      const status = Object.fromEntries(Object.keys(WAITING).map((name) => [name, client[name]]));
      this.#show(status);
      this.callbacks.onConnectionChange?.(status.isConnected, status);
    };
    const off = client.on("state", adopt);
    this.#client = client;
    for (const want of this.#wants.values()) this.#begin(want);
    adopt();
    return () => {
      off();
      this.#client = null;
      for (const want of this.#wants.values()) want.stop();
    };
  }

  subscribeToJob = (jobId, { queueName } = {}) => this.#follow({ jobId: String(jobId), queueName });

  subscribeToQueue = (queueName, { snapshot } = {}) => this.#follow({ queueName: String(queueName), snapshot });

  unsubscribeFromJob = (jobId, { queueName } = {}) => this.#leave(keyOf(String(jobId), queueName));

  cleanup = () => {
    for (const key of [...this.#wants.keys()]) this.#leave(key);
  };

  #follow(want) {
    const { jobId, queueName } = want;
    const key = keyOf(jobId, queueName);
    const stop = () => {
      if (this.#wants.get(key) === want) this.#leave(key);
    };
    this.#wants.get(key)?.stop();
    this.#wants.set(key, want);
    if (jobId) this.#entryOf(jobId, queueName);
    this.#begin(want);
    this.#show();
    return stop;
  }

  #leave(key) {
    const want = this.#wants.get(key);
    if (!want) return;
    want.stop();
    this.#wants.delete(key);
    for (const [jobId, { queueName }] of this.#known) {
      const keys = [keyOf(jobId), keyOf(jobId, queueName), keyOf("", queueName)];
      if (!keys.some((each) => this.#wants.has(each))) this.#known.delete(jobId);
    }
    this.#show();
  }

  #begin(want) {
    const { jobId, queueName } = want;
    const listener = {
      ...want,
      onEvent: (message) => this.#take(message, queueName),
      onError: (error) => {
        if (jobId) this.#entryOf(jobId, queueName).state = { ...UNKNOWN, status: "refused", error: error.message };
        this.#show();
        this.callbacks.onError?.(error);
      },
    };
    want.stop = () => {};
    if (!this.#client) return;
    want.stop = jobId ? this.#client.subscribeToJob(jobId, listener) : this.#client.subscribeToQueue(queueName, listener);
  }

  #entryOf(jobId, queueName) {
    let entry = this.#known.get(jobId);
    if (!entry) this.#known.set(jobId, (entry = { ledger: new Ledger(), queueName, state: UNKNOWN }));
    return entry;
  }

  #take(message, askedQueue) {
    const { event, data } = message;
    const queueName = data.queueName ?? askedQueue;
    const entry = this.#entryOf(data.jobId, queueName);
    if (!entry.ledger.admit(message)) return;
    entry.queueName = queueName;
    entry.state = told(entry, event, data);
    if (this.#known.size > MOST_JOBS) this.#forget();
    this.#show();
    this.callbacks[CALLBACKS[event]]?.(data, message);
    this.callbacks.onJobEvent?.(message);
  }

  /** Make room: the job goes that has been known longest and was not asked for by its id. */
  #forget() {
    for (const [jobId, { queueName }] of this.#known) {
      if (this.#wants.has(keyOf(jobId)) || this.#wants.has(keyOf(jobId, queueName))) continue;
      this.#known.delete(jobId);
      return;
    }
  }

  #show(status) {
    const jobs = status ? this.view.jobs : { __proto__: null };
    if (!status) for (const [jobId, { state }] of this.#known) jobs[jobId] = state;
    this.view = { ...this.view, ...status, jobs };
    for (const watcher of [...this.#watchers]) watcher();
  }
}

/** The state of a job after an event. */
function told(entry, event, data) {
  const { state, ledger, first } = entry;
  if (event === "job-progress") {
    const now = { at: Date.now(), progress: data.progress };
    if (!entry.first || now.progress < entry.first.progress) entry.first = now;
    return { ...UNKNOWN, status: data.status, progress: now.progress, etaSeconds: etaSeconds(entry.first, now) };
  }
  // Such as job-queued or job-stalled; after the end it may begin another run.
  if (!CALLBACKS[event]) {
    return ledger.ended ? state : { ...(first ? state : UNKNOWN), status: data.status ?? event.slice(4) };
  }
  entry.first = undefined;
  if (event === "job-completed") return { ...UNKNOWN, status: "completed", progress: 100, result: data.result ?? null };
  const status = /^cancell?ed$/i.test(data.status) ? "cancelled" : "failed";
  return { ...UNKNOWN, status, progress: state.progress, error: data.failedReason ?? data.error ?? null };
}

// Functions that callers write anew at each render, by all that they have been: each is one function for the client.
const steadied = new WeakMap();

/** `value`; if it is a function, one that stays the same between renders and calls the newest. */
function useSteady(value) {
  const isFunction = typeof value === "function";
  const steady = useMemo(() => {
    if (!isFunction) return undefined;
    const known = steadied.get(value);
    if (known) return known;
    const made = (...values) => made.newest(...values);
    made.newest = value;
    steadied.set(value, made);
    return made;
  }, [isFunction]);
  useInsertionEffect(() => {
    if (!isFunction) return;
    steady.newest = value;
    steadied.set(value, steady);
  });
  return isFunction ? steady : value;
}

/** What a component says of its connection, and beyond that its provider. */
function useRelay({ url, token, pollUrl, transports, shareTabs, debug }) {
  const around = useContext(Relay);
  const own = { url, token: useSteady(token), pollUrl: useSteady(pollUrl), transports, shareTabs, debug };
  // A token is for the relay that it was given for.
  const relay = url && url !== around.url ? {} : { ...around };
  for (const name in own) if (own[name] !== undefined) relay[name] = own[name];
  return relay;
}

function useFollower(options) {
  const [follower] = useState(() => new Follower());
  const relay = useRelay(options);
  // Before any effect, so that nobody is called who was replaced.
  useInsertionEffect(() => {
    follower.callbacks = options;
  });
  useEffect(() => {
    const client = JobProgressClient.shared(relay);
    const detach = follower.attach(client);
    return () => {
      detach();
      client.release();
    };
  }, [follower, relay.url, relay.token, relay.debug]);
  return follower;
}

/** Says for all components inside where the relay is, and with which token. */
export function RelayProvider({ children, ...options }) {
  const relay = useRelay(options);
  const { url, token, pollUrl, transports, shareTabs, debug } = relay;
  const value = useMemo(() => relay, [url, token, pollUrl, transports, shareTabs, debug]);
  return h(Relay.Provider, { value }, children);
}

/** Follow any jobs and queues; callbacks may be other functions at each render. */
export function useJobProgress(options = {}) {
  const follower = useFollower(options);
  const view = useSyncExternalStore(follower.watch, () => follower.view, () => follower.view);
  const { subscribeToJob, unsubscribeFromJob, subscribeToQueue, cleanup } = follower;
  return { ...view, subscribeToJob, unsubscribeFromJob, subscribeToQueue, cleanup };
}

/** Follow one job; without an id, none. */
export function useJob(jobId, options = {}) {
  const follower = useFollower(options);
  const { queueName } = options;
  const isNamed = jobId != null && jobId !== "";
  useEffect(() => {
    if (isNamed) return follower.subscribeToJob(jobId, { queueName });
  }, [follower, jobId, queueName]);
  return useSyncExternalStore(follower.watch, () => follower.stateOf(jobId), () => UNKNOWN);
}

// Chosen for at least 4.5:1, the first on white, the second on #1e1e1e. As an attribute, so that any stylesheet wins.
const STATUS = {
  connected: ["Live", "light-dark(#15803d, #4ade80)"],
  disconnected: ["Polling", "light-dark(#c2410c, #fb923c)"],
  error: ["Error", "light-dark(#b91c1c, #f87171)"],
};
const WAVES = "M2 8a14 14 0 0 1 20 0M6 12.5a8.5 8.5 0 0 1 12 0M12 18h.01";
const SHAPES = {
  connected: WAVES,
  disconnected: `${WAVES}M3 3l18 18`,
  error: "M12 3l10 18H2zM12 10v5M12 18h.01",
};

/** How the connection is: an icon, an icon with a word, or with a sentence. */
export function WebSocketStatus({ isConnected, error, variant = "full", className = "" }) {
  const kind = isConnected ? "connected" : error ? "error" : "disconnected";
  const [word, stroke] = STATUS[kind];
  const text = {
    connected: "Live updates",
    disconnected: "Live updates are not available, using polling",
    error: `Live updates failed: ${error?.message ?? error}`,
  }[kind];
  const isWhole = variant === "full";
  const hidden = { "aria-hidden": true };
  const icon = { width: "1em", height: "1em", viewBox: "0 0 24 24", fill: "none", stroke: "currentColor" };
  return h(
    "span",
    {
      // An alert is read out when it comes, so it has to be an element that was not there.
      key: kind === "error",
      role: kind === "error" ? "alert" : "status",
      className: `relay-status ${className}`.trim(),
      "data-kind": kind,
      title: isWhole ? undefined : text,
    },
    h(
      "svg",
      { ...icon, strokeWidth: 2, strokeLinecap: "round", ...(isWhole ? hidden : { role: "img", "aria-label": text }) },
      h("path", { d: SHAPES[kind], stroke }),
    ),
    isWhole && ` ${text}`,
    variant === "badge" && h("span", hidden, ` ${word}`),
  );
}

/** How far a job is, and when it will be done. */
export function JobProgress({ jobId, queueName, label = `Progress of job ${jobId}`, className = "", ...options }) {
  const { status, progress, error, etaSeconds: seconds } = useJob(jobId, { ...options, queueName });
  const isKnown = status !== "unknown";
  const ends = { unknown: "Waiting", completed: "Completed", failed: "Failed", cancelled: "Cancelled", refused: "Refused" };
  let text = ends[status] ?? `${Math.round(progress)} %`;
  if (error && error !== status) text += `: ${error}`;
  if (seconds !== null) text += `, ${remaining(seconds)} left`;
  return h(
    "span",
    { className: `relay-job ${className}`.trim(), "data-status": status },
    h("progress", { max: 100, value: isKnown ? progress : undefined, "aria-label": label, "aria-valuetext": text }),
    h("span", null, ` ${text}`),
  );
}
