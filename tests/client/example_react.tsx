// How the hooks are used with types; `tsc --noEmit` reads it, nobody runs it. What must not compile says so.

import { useEffect } from "react";
import type { ClientError } from "relay-client";
import { JobProgress, RelayProvider, useJob, useJobProgress, WebSocketStatus } from "relay-client/react";

interface Similarity {
  matrix: number[][];
}

function Analysis({ jobId }: { jobId: string }) {
  const { isConnected, transport, error, jobs, subscribeToJob, unsubscribeFromJob, subscribeToQueue, cleanup } =
    useJobProgress<Similarity>({
      onJobProgress: ({ progress }) => console.log(progress.toFixed(0)),
      onJobCompleted: ({ result, processingTime }) => console.log(result?.matrix.length, processingTime),
      onJobFailed: ({ error, failedReason }) => console.log(failedReason ?? error),
      onJobEvent: ({ event, id }) => console.log(event, id),
      onConnectionChange: (isConnected, { state }) => console.log(isConnected, state),
      onError: ({ code }: ClientError) => console.log(code),
      debug: true,
    });
  useEffect(() => subscribeToJob(jobId, { queueName: "similarity-operations" }), [subscribeToJob, jobId]);
  useEffect(() => subscribeToQueue("similarity-operations", { snapshot: true }), [subscribeToQueue]);
  const one = useJob<Similarity>(jobId, { queueName: "similarity-operations" });
  const none = useJob(null);
  // @ts-expect-error  a job's state is the relay's to change
  one.status = "completed";
  // @ts-expect-error  a result may not be there yet
  console.log(one.result.matrix);
  return (
    <section>
      <WebSocketStatus isConnected={isConnected} error={error} variant="badge" />
      {/* @ts-expect-error  a variant that there is not */}
      <WebSocketStatus isConnected variant="huge" />
      <JobProgress jobId={jobId} label="Similarity" className="wide" />
      <button onClick={() => unsubscribeFromJob(jobId)}>Stop</button>
      <button onClick={cleanup}>Stop all</button>
      {transport} {jobs[jobId]?.progress} {one.result?.matrix.length} {one.etaSeconds?.toFixed(0)} {none.status}
    </section>
  );
}

export const page = (
  <RelayProvider
    url="wss://relay.example/job-progress"
    token={async () => (await fetch("/token")).text()}
    pollUrl="/api/jobs?ids={ids}"
  >
    <Analysis jobId="similarity-ABC123" />
  </RelayProvider>
);
