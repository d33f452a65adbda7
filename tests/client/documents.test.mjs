import assert from "node:assert/strict";
import test from "node:test";

import { documentsOf, eventOfDocument } from "../../relay/web/client/documents.js";

test("a document is the event that it amounts to", () => {
  const progress = { event: "job-progress", id: "e-1", status: "active", progress: 45, result: null, error: null };
  const completed = { event: "job-completed", id: "e-2", status: "completed", result: null, updatedAt: 1 };

  assert.deepEqual(eventOfDocument("a", progress), {
    event: "job-progress", id: "e-1", data: { jobId: "a", progress: 45, status: "active" },
  });
  assert.deepEqual(eventOfDocument("a", completed), {
    event: "job-completed", id: "e-2", data: { jobId: "a", progress: 0, status: "completed", result: null },
  });
});

test("an app's words for an end are understood", () => {
  const events = ["done", "SUCCESS", "cancelled", "error", "running"].map((status) => eventOfDocument("a", { status }).event);

  assert.deepEqual(events, ["job-completed", "job-completed", "job-failed", "job-failed", "job-progress"]);
});

test("an event of the publisher's own keeps its name until the job has ended", () => {
  assert.equal(eventOfDocument("a", { event: "job-stalled", status: "active" }).event, "job-stalled");
  assert.equal(eventOfDocument("a", { event: "job-stalled", status: "completed" }).event, "job-completed");
});

test("documents are found in each form that an app may answer in", () => {
  const a = { jobId: "a", status: "active" };

  for (const answer of [{ jobs: { a } }, { a }, [a], { jobs: [a] }, a]) assert.deepEqual(documentsOf(answer, ["a"]), { a });
  assert.deepEqual(documentsOf(null, ["a"]), {});
});
