import assert from "node:assert/strict";
import test from "node:test";

import { Ledger } from "../../relay/web/client/ledger.js";

const progress = (id, percent, status = "active") => ({ event: "job-progress", id, data: { progress: percent, status } });
const end = (id, event = "job-completed") => ({ event, id, data: {} });
const told = (...messages) => {
  const ledger = new Ledger();
  return messages.filter((message) => ledger.admit(message));
};

test("an event that was told is not told again", () => {
  const events = [progress("1", 10), progress("2", 20)];

  assert.deepEqual(told(...events, ...events), events);
});

test("a second end is dropped, under another id too", () => {
  const first = end("1");

  assert.deepEqual(told(first, end("2"), end("3", "job-failed")), [first]);
});

test("a straggler after the end is dropped", () => {
  const events = [progress("1", 90), end("2")];

  assert.deepEqual(told(...events, progress("3", 80, "processing")), events);
});

test("a job that runs again ends again", () => {
  const events = [end("1"), progress("2", 0, "retrying"), progress("3", 50), end("4", "job-failed")];

  assert.deepEqual(told(...events), events);
});

test("what an app's API tells never goes back", () => {
  const news = [progress("1", 60), progress(undefined, 70)];

  assert.deepEqual(told(news[0], progress(undefined, 50), progress(undefined, 60), news[1], progress(undefined, 70)), news);
});

test("what an app's API tells after the end is no news", () => {
  assert.equal(told(end("1"), progress(undefined, 10), end(undefined)).length, 1);
});

test("how the relay came to an end that the app had told already is no news", () => {
  const blind = end(undefined);

  assert.deepEqual(told(blind, progress("1", 80), progress("2", 90), end("3")), [blind]);
});

test("after that the job may run again", () => {
  const events = [end(undefined), progress("2", 5), end("3")];

  assert.deepEqual(told(events[0], end("1"), events[1], events[2]), events);
});

test("a late listener is owed the newest progress or end, not what an event of another kind said", () => {
  const ledger = new Ledger();
  ledger.admit(progress("1", 10));
  ledger.admit({ event: "job-stalled", id: "2", data: {} });

  assert.equal(ledger.last.id, "1");
});

test("a job of thousands of events is not remembered whole", () => {
  const ledger = new Ledger();
  for (let n = 0; n < 1000; n += 1) ledger.admit(progress(`e-${n}`, 1));

  assert.ok(!ledger.admit(progress("e-999", 1)));
  assert.ok(ledger.admit(progress("e-0", 1)));
});
