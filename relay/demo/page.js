// The demo page: submits analyses and follows them over the relay's WebSocket.
//
// A job is followed until its end. While the socket is down it is polled; after a reconnect it is subscribed
// to again after the last event that was seen, so that nothing is missed and nothing shown twice.

const QUEUE = "similarity-operations";
const POLL_MS = 3000;
const BACKOFF_MS = { first: 500, most: 15000 };
// What the relay may close with after which a client comes back; 1006 is a lost connection.
const COME_BACK = new Set([1001, 1006, 1011, 1012, 1013, 3008]);

const $ = (id) => document.getElementById(id);
const jobs = new Map(); // jobId → {element, since, ended}

// --- the jobs --------------------------------------------------------------------------------------

function addJob(jobId) {
  const element = $("job").content.firstElementChild.cloneNode(true);
  element.querySelector(".name").textContent = jobId;
  element.querySelector("progress").setAttribute("aria-label", `Progress of ${jobId}`);
  $("jobs").prepend(element);
  $("nothing").hidden = true;
  const job = { element, since: null, ended: false };
  jobs.set(jobId, job);
  return job;
}

function show(event, data, id) {
  const job = jobs.get(data.jobId);
  if (!job || job.ended) return;
  job.since = id ?? job.since;
  if (event === "job-completed") end(job, "completed", summary(data), data.result?.topPairs);
  else if (event === "job-failed") end(job, "failed", data.failedReason || reason(data.error));
  else {
    const waiting = data.status === "waiting" || data.status === "queued";
    setState(job, waiting ? "waiting" : "active");
    setProgress(job, data.progress ?? 0);
    job.element.querySelector(".detail").textContent = detail(data.data);
  }
}

function end(job, state, text, topPairs = []) {
  job.ended = true;
  setState(job, state);
  if (state === "completed") setProgress(job, 100);
  job.element.querySelector(".detail").textContent = text;
  job.element.querySelector("table").hidden = topPairs.length === 0;
  job.element.querySelector("tbody").replaceChildren(
    ...topPairs.slice(0, 5).map(({ a, b, similarity }) => {
      const row = document.createElement("tr");
      for (const text of [short(a), short(b), similarity.toFixed(3)]) row.insertCell().textContent = text;
      return row;
    }),
  );
}

function setState(job, state) {
  job.element.dataset.state = state;
  job.element.querySelector(".state").textContent = state;
}

function setProgress(job, progress) {
  job.element.querySelector("progress").value = progress;
  job.element.querySelector(".percent").textContent = `${Math.round(progress)} %`;
}

function detail(data) {
  if (data?.stage === "wallets") return `reading wallets: ${data.walletsDone} of ${data.walletsTotal}`;
  if (data?.stage === "pairs") return `comparing pairs: ${data.pairsDone} of ${data.pairsTotal}`;
  return "";
}

function summary({ result, processingTime }) {
  const took = processingTime === null ? "" : ` in ${(processingTime / 1000).toFixed(1)} s`;
  if (!result) return `done${took}`;
  const skipped = result.skipped.length ? `, ${result.skipped.length} invalid ones left out` : "";
  return `${result.pairs} pairs of ${result.wallets.length} wallets by ${result.vectorType}${took}${skipped}`;
}

const reason = (error) => (typeof error === "string" ? error : (error?.message ?? "failed, no reason was given"));
const short = (address) => `${address.slice(0, 6)}…${address.slice(-4)}`;
const followed = () => [...jobs].filter(([, job]) => !job.ended);

// --- the connection --------------------------------------------------------------------------------

let socket = null;
let attempt = 0;
let retryTimer = null;
let retryAfterMs = null;

function connect() {
  clearTimeout(retryTimer);
  setConnection("connecting", attempt ? "reconnecting, polling meanwhile" : "connecting…");
  const url = new URL("/job-progress", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.onopen = () => {
    attempt = 0;
    retryAfterMs = null;
    subscribe(followed());
  };
  socket.onmessage = (message) => receive(JSON.parse(message.data));
  socket.onclose = ({ code, reason }) => {
    socket = null;
    if (COME_BACK.has(code)) retry();
    else setConnection("ended", `closed: ${reason || code}; reload to try again`);
  };
}

function retry() {
  // Full jitter: after a restart not all clients come back at once.
  const ceiling = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** attempt++);
  const delay = retryAfterMs ?? Math.random() * ceiling;
  retryAfterMs = null;
  setConnection("waiting", "connection lost, polling meanwhile");
  retryTimer = setTimeout(connect, delay);
}

function receive({ event, data, id }) {
  if (event === "relay-status") {
    if (data.draining) retryAfterMs = data.retryAfterMs ?? null;
    if (data.redis === "connected") setConnection("open", "connected, live");
    else setConnection("waiting", "connected, but the relay has lost Redis");
  } else if (event === "error") refuse(data.message);
  else if (event.startsWith("job-")) show(event, data, id);
}

function subscribe(some) {
  // While it is not open there is nothing to do: once it is, all are subscribed to.
  if (socket?.readyState !== WebSocket.OPEN || some.length === 0) return;
  const since = Object.fromEntries(some.filter(([, job]) => job.since).map(([jobId, job]) => [jobId, job.since]));
  const data = { jobIds: some.map(([jobId]) => jobId), queueName: QUEUE, since };
  socket.send(JSON.stringify({ event: "subscribe-to-jobs", data }));
}

async function poll() {
  const ids = followed().map(([jobId]) => jobId).slice(0, 100);
  if (socket?.readyState === WebSocket.OPEN || ids.length === 0) return;
  try {
    const query = new URLSearchParams({ ids: ids.join(","), queueName: QUEUE });
    const response = await fetch(`/jobs?${query}`);
    if (!response.ok) return;
    const known = (await response.json()).jobs;
    for (const job of Object.values(known)) if (job.event) show(job.event, job, job.id);
  } catch {
    // The relay is away altogether; the next poll or the reconnect finds it.
  }
}

function setConnection(state, text) {
  $("connection").dataset.state = state;
  $("connection").textContent = text;
}

// --- the form --------------------------------------------------------------------------------------

async function fill() {
  try {
    const example = await (await fetch("/analyses/similarity/example")).json();
    $("wallets").value = example.walletAddresses.slice(0, Number($("count").value)).join("\n");
  } catch {
    refuse("The relay does not answer: is the demo still running?");
  }
}

async function submit(event) {
  event.preventDefault();
  refuse("");
  const analysis = {
    walletAddresses: $("wallets").value.split(/[\s,]+/).filter(Boolean),
    vectorType: $("vector-type").value,
    failureThreshold: Number($("threshold").value),
    timeoutMinutes: 5,
  };
  try {
    const response = await fetch("/analyses/similarity/queue", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(analysis),
    });
    const answer = await response.json();
    if (!response.ok) return refuse(answer.error.message);
    subscribe([[answer.jobId, addJob(answer.jobId)]]);
  } catch {
    refuse("The relay does not answer: is the demo still running?");
  }
}

function refuse(text) {
  $("refusal").textContent = text;
  $("refusal").hidden = !text;
}

$("submission").addEventListener("submit", submit);
$("fill").addEventListener("click", fill);
$("count").addEventListener("change", fill);
$("spoil").addEventListener("click", () => {
  $("wallets").value += "\nnot-a-wallet-0OIl";
});
addEventListener("online", () => socket || connect());
setInterval(poll, POLL_MS);
fill();
connect();
