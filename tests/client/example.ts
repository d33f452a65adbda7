// How the client is used with types; `tsc --noEmit` reads it, nobody runs it. What must not compile says so.

import { type Batch, etaSeconds, JobProgressClient, type JobMessage } from "../../relay/web/client/client.js";
import "../../relay/web/client/elements.js";

interface Similarity {
  topPairs: { a: string; b: string; similarity: number }[];
}

const client = new JobProgressClient({
  url: "wss://relay.example/job-progress",
  token: async () => (await fetch("/token")).text(),
  pollUrl: async (jobIds, { signal }) => (await fetch(`/states?ids=${jobIds}`, { signal })).json(),
  transports: ["websocket", "polling"],
  shareTabs: "user-7",
  debug: (...values) => console.debug(...values),
});

const stop: () => void = client.subscribeToJob<Similarity>("similarity-ABC123", {
  queueName: "similarity-operations",
  onProgress: ({ progress, status }) => console.log(progress.toFixed(0), status),
  onCompleted: ({ result, processingTime }) => console.log(result?.topPairs[0]?.similarity, processingTime),
  onFailed: ({ error, failedReason }) => console.log(failedReason ?? error),
  onError: ({ code, message }) => console.log(code, message),
});

const batch: Batch<Similarity> = client.batch<Similarity>([1, "two"], {
  onChange: ({ completed, total, etaSeconds }) => console.log(completed / total, etaSeconds ?? "?"),
});
batch.done.then(({ failed, jobs }) => console.log(failed, jobs.get("two")));

const off = client.on("state", ({ state, transport, isConnected }) => console.log(state, transport, isConnected));
client.on("job-completed", (data) => console.log(data.result));
client.on("job-stalled", (data) => console.log(data.jobId));
client.on("event", (message: JobMessage) => console.log(message.id));
client.authenticate("another");

// @ts-expect-error  a state that there is not
const never: boolean = client.state === "open";
// @ts-expect-error  what the client says is not for others to change
client.state = "live";
// @ts-expect-error  a transport that there is not
new JobProgressClient({ transports: ["carrier-pigeon"] });

const status = document.createElement("relay-status");
status.client = JobProgressClient.shared();
console.log(etaSeconds({ at: 0, progress: 0 }, { at: 1000, progress: 50 })?.toFixed(1), never);
stop();
off();
