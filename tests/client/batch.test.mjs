import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";

import { Batch } from "../../relay/web/client/batch.js";

let listeners, left;

const subscribe = (id, listener) => {
  listeners.set(id, listener);
  return () => left.push(id);
};
const tell = (id, event, data = {}) => listeners.get(id).onEvent({ event, data: { jobId: id, ...data } });

beforeEach(() => {
  listeners = new Map();
  left = [];
});

test("it counts how its jobs end, lets go of each, and is done when all have", async () => {
  const changes = [];
  const batch = new Batch(subscribe, ["a", "b", "c"], ({ completed, failed }) => changes.push([completed, failed]));

  tell("a", "job-completed", { result: 1 });
  tell("b", "job-failed");
  listeners.get("c").onError({ code: "forbidden", message: "no" });
  const done = await batch.done;

  assert.equal(done, batch);
  assert.deepEqual([batch.completed, batch.failed, batch.progress, batch.etaSeconds], [1, 2, 100, 0]);
  assert.deepEqual(changes, [[1, 0], [1, 1], [1, 2]]);
  assert.deepEqual(left, ["a", "b", "c"]);
  assert.equal(batch.jobs.get("c").data.error, "forbidden");
});

test("its progress is the mean over all jobs, those that nothing is known of included", () => {
  const batch = new Batch(subscribe, ["a", "b", "c", "d"]);

  tell("a", "job-progress", { progress: 50 });
  tell("a", "job-progress", { progress: 80 });
  tell("b", "job-completed");

  assert.equal(batch.progress, 45);
});

test("an id that stands there twice is one job", () => {
  assert.equal(new Batch(subscribe, [1, "1", "2"]).total, 2);
});

test("a batch of nothing is done at once", async () => {
  assert.equal((await new Batch(subscribe, []).done).total, 0);
});

test("a batch that is cancelled is done with what is known, and lets go of the rest", async () => {
  const batch = new Batch(subscribe, ["a", "b"]);
  tell("a", "job-completed");

  batch.cancel();
  const { completed, cancelled } = await batch.done;

  assert.deepEqual([completed, cancelled, left], [1, true, ["a", "b"]]);
});
