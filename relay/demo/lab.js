// The Similarity Lab: submits analyses and follows them, and all others of the queue, with the relay's client.
//
// It reaches the relay by a line of its own that the demo can break. While nothing is live the client asks the demo's
// API, as it would an application's.

import { JobProgressClient } from "/client/client.js";
import { Analysis, duration } from "/demo/analysis.js";
import { HeatMap } from "/demo/heatmap.js";
import { watchOutages } from "/demo/outages.js";

const QUEUE = "similarity-operations";
const API = "/analyses/similarity";
const MOST_SHOWN = 30;
const ADDRESS = /^([1-9A-HJ-NP-Za-km-z]{32,44}|0x[0-9a-fA-F]{40})$/;
const AWAY = "The demo does not answer: is it still running?";
const NAMES = { websocket: "over WebSocket", sse: "over an event stream", "long-poll": "by long polls", polling: "every 3 s" };

const $ = (id) => document.getElementById(id);
const analyses = new Map(); // by job id, oldest first
const stops = new Map(); // by job id: what ends the subscription of one that has not ended
const client = new JobProgressClient({ url: "/demo/line/job-progress", pollUrl: `${API}?ids={ids}` });
const heatMap = new HeatMap($("result"));

// The analyses

function known(jobId) {
  let analysis = analyses.get(jobId);
  if (analysis) return analysis;
  analysis = new Analysis(jobId, act);
  analyses.set(jobId, analysis);
  $("jobs").prepend(analysis.element);
  for (const [oldId, old] of analyses) {
    if (analyses.size <= MOST_SHOWN) break;
    if (!old.hasEnded) continue;
    old.element.remove();
    analyses.delete(oldId);
  }
  return analysis;
}

/** By name as well as by queue: only jobs can be polled. */
function follow(jobId) {
  if (!stops.has(jobId)) stops.set(jobId, client.subscribeToJob(jobId));
}

function take(message) {
  const { jobId } = message.data;
  const analysis = known(jobId);
  const isEnd = analysis.take(message);
  if (!analysis.hasEnded) follow(jobId);
  if (isEnd) {
    stops.get(jobId)?.();
    stops.delete(jobId);
    $("news").textContent = `${analysis.title}: ${analysis.state}`;
    if (analysis.result && (analysis.request || $("map").hidden)) show(analysis);
  }
  count();
}

function count() {
  const all = [...analyses.values()];
  $("nothing").hidden = all.length > 0;
  const running = all.filter((each) => !each.hasEnded);
  const seconds = running.map((each) => each.secondsLeft).find((each) => each !== null);
  const left = seconds === undefined ? "" : ` · ${duration(seconds)} left for the one at work`;
  $("tally").textContent = running.length ? `${running.length} to do${left}` : `${all.length} in all`;
}

function show(analysis) {
  for (const each of analyses.values()) each.element.toggleAttribute("data-shown", each === analysis);
  $("no-result").hidden = true;
  $("map").hidden = false;
  $("result-title").textContent = analysis.title;
  $("result-facts").textContent = analysis.element.querySelector(".detail").textContent;
  heatMap.show(analysis.result);
}

function act(action, analysis) {
  if (action === "show") {
    show(analysis);
    $("result").scrollIntoView({ block: "nearest" });
  } else if (action === "retry") submit([analysis.request]);
  else post(`${API}/${encodeURIComponent(analysis.jobId)}/cancel`);
}

// The connection

function showConnection() {
  const { state, transport, isConnected, redis, error } = client;
  const isIdle = state === "offline" && !stops.size;
  const isPolling = ["long-poll", "polling"].includes(transport);
  let kind = "disconnected";
  let text = "Using polling";
  if (isConnected) [kind, text] = ["connected", "Live"];
  else if (redis === "disconnected") text = "The relay has lost Redis";
  else if (isIdle) text = "Not connected, and nothing runs";
  else if (error) [kind, text] = ["error", state === "closed" ? error.message : "Out of reach, trying again"];
  else if (state === "connecting") [kind, text] = ["connecting", "Connecting…"];
  $("connection").dataset.kind = kind;
  $("connection").querySelector(".text").textContent = text;

  let mode = "none";
  let label = isIdle ? "Idle" : "Connecting";
  if (isConnected) [mode, label] = ["real-time", "Real-time"];
  else if (isPolling) [mode, label] = ["polling", "Polling"];
  else if (["offline", "closed"].includes(state) && !isIdle) [mode, label] = ["offline", "Offline"];
  $("transport").dataset.mode = mode;
  $("transport").querySelector(".mode").textContent = label;
  $("transport").querySelector(".name").textContent = NAMES[transport] ?? "";
  for (const step of $("ladder").children) {
    step.toggleAttribute("aria-current", step.dataset.transport === transport);
    if (step.hasAttribute("aria-current")) step.setAttribute("aria-current", "true");
  }
}

// The form

const addresses = () => $("wallets").value.split(/[\s,;]+/).filter(Boolean);

function countWallets() {
  const all = addresses();
  const invalid = all.filter((address) => !ADDRESS.test(address)).length;
  $("wallet-count").textContent = `${all.length}${invalid ? `, ${invalid} of them invalid` : ""}`;
  $("wallet-count").classList.toggle("wrong", invalid > 0);
}

async function generate() {
  try {
    const example = await (await fetch(`${API}/example`)).json();
    $("wallets").value = example.walletAddresses.slice(0, Number($("amount").value)).join("\n");
    countWallets();
  } catch {
    refuse(AWAY);
  }
}

/** What the API answers, or null where it refuses: then the user has been told why. */
async function post(path, document) {
  const body = document && JSON.stringify(document);
  try {
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const answer = await response.json();
    refuse(response.ok ? "" : answer.error.message);
    return response.ok ? answer : null;
  } catch {
    refuse(AWAY);
    return null;
  }
}

async function submit(requests) {
  for (const request of requests) {
    const answer = await post(`${API}/queue`, request);
    if (!answer) return;
    const analysis = known(answer.jobId);
    analysis.asked(request);
    // Its first events may have been here before the answer.
    if (!analysis.hasEnded) follow(answer.jobId);
    else if (analysis.result) show(analysis);
    count();
  }
}

function refuse(text) {
  $("refusal").textContent = text;
}

const requestFor = (vectorType) => ({
  walletAddresses: addresses(),
  vectorType,
  failureThreshold: Number($("threshold").value),
  timeoutMinutes: 5,
});

const methods = [...$("submission").elements.method];
$("submission").addEventListener("submit", (event) => {
  event.preventDefault();
  submit([requestFor(methods.find((each) => each.checked).value)]);
});
$("all-methods").addEventListener("click", () => submit(methods.map((each) => requestFor(each.value))));
$("generate").addEventListener("click", generate);
$("amount").addEventListener("change", generate);
$("wallets").addEventListener("input", countWallets);
$("spoil").addEventListener("click", () => {
  $("wallets").value = `${$("wallets").value.trimEnd()}\nnot-a-wallet-0OIl`;
  countWallets();
});

client.on("event", take);
client.on("state", showConnection);
client.on("error", ({ message }) => refuse(message));
client.subscribeToQueue(QUEUE, { snapshot: true });
showConnection();
watchOutages();
generate();
