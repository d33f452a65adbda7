/**
 * The dashboard's page: what the relay tells once a second, in figures and plots.
 *
 * Everything that comes from clients and publishers is put in as text, never as markup. What is seen while the
 * relay does not answer is how it stood last, and is said to be.
 */

import { Connections } from "./connections.js";
import { keepToken, listen } from "./feed.js";
import { age, bytes, count, latency, rate, time } from "./format.js";
import { Plot } from "./plot.js";
import { Timeline } from "./timeline.js";

const SPAN_MS = 5 * 60_000;
const $ = (id) => document.getElementById(id);

/** Change a text only where it differs: a screen reader is told of every change. */
const say = (id, text) => {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
};

// --- plots -----------------------------------------------------------------------------------------

const perSecond = (name) => (point) => point.rates?.[name] ?? null;
const inRelay = (share) => (point) => point.latency?.relay?.[share] ?? null;
const open = (name) => (point) => point.connections[name];

const plots = [
  ["throughput-plot", {
    title: "Throughput", least: 10, format: rate,
    series: [{ name: "received", of: perSecond("received") }, { name: "deliveries", of: perSecond("deliveries") }],
  }],
  ["latency-plot", {
    title: "Latency in the relay", least: 0.001, format: latency,
    series: [{ name: "p50", of: inRelay("p50") }, { name: "p99", of: inRelay("p99") }],
  }],
  ["connections-plot", {
    title: "Connections", least: 10, format: count,
    series: [
      { name: "WebSocket", of: open("websocket") },
      { name: "SSE", of: open("sse") },
      { name: "long poll", of: open("longpoll") },
    ],
  }],
  ["slow-plot", {
    title: "Conflated events", least: 10, format: rate,
    series: [{ name: "conflated", of: perSecond("conflated") }],
  }],
].map(([id, options]) => new Plot($(id), { ...options, spanMs: SPAN_MS }));

let points = [];

/** Take in points that are newer than those there are. */
function remember(newer) {
  const last = points.at(-1)?.at ?? 0;
  const end = Math.max(last, newer.at(-1)?.at ?? 0);
  points = [...points, ...newer.filter(({ at }) => at > last)].filter(({ at }) => at > end - SPAN_MS);
}

// --- figures ---------------------------------------------------------------------------------------

function show(snapshot) {
  const { relay, redis, connections, subscriptions, rates, latency: taken, slow, history, busiest } = snapshot;
  const uptime = age((snapshot.at - relay.startedAt) / 1000);
  say("facts", `version ${relay.version} · up ${uptime} · loop lag ${latency(relay.loopLagSeconds)}`);
  if (relay.draining) state("warn", "Draining");
  else if (redis.connected) state("good", "Live");
  else state("warn", "Redis is away");
  const figures = {
    received: rate(rates?.received),
    deliveries: rate(rates?.deliveries),
    sent: rates ? `${bytes(rates.deliveredBytes)}/s` : "–",
    invalid: rate(rates?.invalid),
    "relay-p50": latency(taken?.relay?.p50),
    "relay-p99": latency(taken?.relay?.p99),
    "delivery-p50": latency(taken?.delivery?.p50),
    "delivery-p99": latency(taken?.delivery?.p99),
    total: count(connections.total),
    websocket: count(connections.websocket),
    sse: count(connections.sse),
    longpoll: count(connections.longpoll),
    conflated: rate(rates?.conflated),
    "slow-now": count(slow.now),
    pending: bytes(slow.pendingBytes),
    "slow-closed": count(slow.closed),
    redis: redis.connected ? "connected" : "away",
    reconnects: count(redis.reconnects),
    gaps: count(redis.gaps),
    backend: history.backend,
    "job-subscriptions": count(subscriptions.job),
    "queue-subscriptions": count(subscriptions.queue),
    "history-jobs": `${count(history.jobs)} of ${count(history.maxJobs)}`,
    "history-bytes": `${bytes(history.bytes)} of ${bytes(history.maxBytes)}`,
  };
  for (const [id, text] of Object.entries(figures)) say(id, text);
  $("redis").dataset.kind = redis.connected ? "good" : "bad";
  $("invalid").dataset.kind = rates?.invalid ? "warn" : "";
  $("slow-now").dataset.kind = slow.now ? "warn" : "";
  $("total").title = `at most ${count(connections.max)}`;
  fill("history-jobs-meter", history.jobs / history.maxJobs);
  fill("history-bytes-meter", history.bytes / history.maxBytes);
  rank("busiest-jobs", busiest.jobs, ({ jobId, queueName, watchers }) => [
    link(jobHash(jobId, queueName), jobId), queueName ?? "any", count(watchers),
  ]);
  rank("busiest-queues", busiest.queues, ({ queueName, watchers }) => [queueName, count(watchers)]);
  showSlowest(slow.slowest);
  if (document.hidden) return;
  for (const plot of plots) plot.show(points, snapshot.at);
}

function fill(id, share) {
  const percent = Math.min(100, 100 * share);
  const meter = $(id);
  meter.setAttribute("aria-valuenow", percent.toFixed(1));
  meter.firstElementChild.style.width = `${percent}%`;
  meter.dataset.kind = percent > 90 ? "warn" : "";
}

const shown = new Map(); // what each ranking was made of

/** Fill a table's body, unless it holds just that: a link that is focused is to stay. */
function rank(id, ranked, cells) {
  const made = JSON.stringify(ranked);
  if (shown.get(id) === made) return;
  shown.set(id, made);
  const body = $(id);
  body.replaceChildren(
    ...ranked.map((each) => {
      const row = document.createElement("tr");
      for (const content of cells(each)) row.insertCell().append(content);
      return row;
    }),
  );
  if (ranked.length) return;
  const cell = body.insertRow().insertCell();
  cell.colSpan = 3;
  cell.className = "quiet";
  cell.textContent = "none";
}

function showSlowest(slowest) {
  const parts = slowest.flatMap(({ connectionId, pendingBytes }) => [
    link(`#connection=${encodeURIComponent(connectionId)}`, connectionId), ` ${bytes(pendingBytes)} `,
  ]);
  if (parts.length) $("slowest").replaceChildren("Furthest behind: ", ...parts);
  else say("slowest", "Nobody is behind.");
}

function link(href, text) {
  const anchor = document.createElement("a");
  anchor.href = href;
  anchor.textContent = text;
  return anchor;
}

const jobHash = (jobId, queueName) =>
  `#job=${encodeURIComponent(jobId)}${queueName ? `&queue=${encodeURIComponent(queueName)}` : ""}`;

// --- how the relay is ------------------------------------------------------------------------------

let seenAt = 0;

function state(kind, text) {
  $("state").dataset.kind = kind;
  say("state", text);
}

function gone(why) {
  state("bad", "No answer");
  const known = seenAt ? ` What you see is how it stood at ${time(seenAt)}.` : "";
  $("gone").hidden = false;
  say("gone", `${why ? `The relay refuses: ${why}.` : "The relay does not answer."}${known} Trying again…`);
  document.body.classList.add("stale");
}

function back() {
  $("gone").hidden = true;
  $("sign-in").hidden = true;
  $("panels").hidden = false;
  document.body.classList.remove("stale");
}

/** Ask for the token; resolves when one was given. */
function signIn(hadToken) {
  state("wait", "Token needed");
  $("gone").hidden = true;
  $("panels").hidden = true;
  $("sign-in").hidden = false;
  say("token-fault", hadToken ? "The relay refused this token. Look for admin.token in its configuration." : "");
  $("token").focus();
  return new Promise((resolve) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      const kept = keepToken($("token").value.trim());
      say("token-fault", kept ? "" : "A token has no spaces, and only characters of the ASCII table.");
      if (!kept) return;
      $("token").value = "";
      resolve();
    };
  });
}

// --- all of it -------------------------------------------------------------------------------------

const connections = new Connections();
const timeline = new Timeline();

/** The address may name a job or a connection: so both can be linked to. */
function follow() {
  const named = new URLSearchParams(location.hash.slice(1));
  if ($("panels").hidden) return;
  if (named.has("job")) timeline.open(named.get("job"), named.get("queue") ?? "");
  if (named.has("connection")) connections.search(named.get("connection"));
}

addEventListener("hashchange", follow);
$("job-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const hash = jobHash($("job-id").value.trim(), $("job-queue").value.trim());
  if (location.hash === hash) follow(); // the same once more: look again
  else location.hash = hash;
});

listen({
  past: (past) => {
    remember(past);
    const isFirst = $("panels").hidden;
    back();
    if (isFirst) follow();
    connections.refresh();
  },
  snapshot: (snapshot) => {
    seenAt = snapshot.at;
    remember([snapshot]);
    show(snapshot);
    connections.tick();
  },
  gone,
  refused: signIn,
});
