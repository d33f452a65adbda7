// What the tests of the hooks put into a page: bundled with React, it leaves what it is told in `window`.

import { createElement as h, StrictMode, useEffect } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import { JobProgress, RelayProvider, useJob, useJobProgress, WebSocketStatus } from "relay-client/react";
import { Widgets } from "./react_widgets.mjs";

window.told = []; // [who was told, event, job, progress or result or reason]
window.connections = []; // what onConnectionChange was told
window.hooks = {}; // what useJobProgress returned last, by the name of its component

/** Follows `jobs` and `queue` for as long as it is there. */
function Board({ name = "board", version = 1, jobs = [], queue, ...options }) {
  const tell = (data, { event }) =>
    told.push([`${name} ${version}`, event, data.jobId, data.result ?? data.failedReason ?? data.progress]);
  const hook = useJobProgress({
    ...options,
    onJobProgress: tell,
    onJobCompleted: tell,
    onJobFailed: tell,
    onConnectionChange: (isConnected, { transport }) => connections.push([isConnected, transport]),
  });
  const { subscribeToJob, subscribeToQueue, isConnected, error } = hook;
  hooks[name] = hook;
  useEffect(() => {
    const stops = jobs.map((job) => subscribeToJob(job));
    if (queue) stops.push(subscribeToQueue(queue, { snapshot: true }));
    return () => stops.forEach((stop) => stop());
  }, [subscribeToJob, subscribeToQueue, queue, ...jobs]);
  return h(WebSocketStatus, { isConnected, error });
}

function One({ job, ...options }) {
  const { status, progress, result, error } = useJob(job, options);
  return h("output", null, JSON.stringify([status, progress, result, error]));
}

const components = { Board, JobProgress, One, Widgets };
let root;

/** Render `[name, props]` pairs inside a provider, in StrictMode; again with others, where there were some before. */
window.show = (relay, ...pairs) => {
  root ??= createRoot(document.body.appendChild(document.createElement("div")));
  const children = pairs.map(([name, props], n) => h(components[name], { key: props.name ?? n, ...props }));
  root.render(h(StrictMode, null, h(RelayProvider, relay, ...children)));
};

window.unmount = () => {
  root.unmount();
  root = undefined;
};

// A page that a server has rendered.
const rendered = document.getElementById("rendered");
if (rendered) hydrateRoot(rendered, h(RelayProvider, { url: rendered.dataset.url }, h(Widgets)));
