/**
 * What a client decides without looking at the world: when to come back, what fits into one request, how long a
 * job will take.
 *
 * Pure: no clock, no network. docs/protocol.md is where the codes and limits come from.
 */

const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 20_000;

// 1005, 1006 and 1015 are never sent: a browser says them of a connection that was cut.
const COME_BACK = new Set([1001, 1005, 1006, 1011, 1012, 1013, 1015, 3008]);

/** The code that asks for a fresh token. */
export const TOKEN_EXPIRED = 3000;

/** Whether a client comes back after a connection that was closed with `code`. */
export const mayReturn = (code) => COME_BACK.has(code);

/**
 * How long to wait before attempt number `attempt` (from 0). All of the wait is random: clients that were cut
 * off together must not come back together.
 */
export const backoffMs = (attempt, random = Math.random) =>
  random() * Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** attempt);

/** Whether a token may stand in the list of subprotocols, the only header that a browser lets a page set. */
export const fitsSubprotocol = (token) => /^[\w!#$%&'*+.^`|~-]+$/.test(token);

/** Names a job, or with an empty `jobId` a queue. No name holds a line break. */
export const keyOf = (jobId = "", queueName = "") => `${queueName}\n${jobId}`;

/** `items` in runs of at most `mostItems` that together weigh at most `mostWeight`. */
export function chunks(items, weigh, mostItems, mostWeight) {
  const runs = [];
  let weight = Infinity;
  for (const item of items) {
    weight += weigh(item);
    if (weight > mostWeight || runs.at(-1).length === mostItems) {
      runs.push([]);
      weight = weigh(item);
    }
    runs.at(-1).push(item);
  }
  return runs;
}

/** `items` by what `of` says of each. */
export function grouped(items, of) {
  const groups = new Map();
  for (const item of items) {
    const name = of(item);
    groups.has(name) ? groups.get(name).push(item) : groups.set(name, [item]);
  }
  return groups;
}

/**
 * How many seconds are left at the pace since `first`; null while there is none to tell.
 * `first` and `now` are `{at, progress}`, `at` in ms.
 */
export function etaSeconds(first, now) {
  const done = now.progress - first.progress;
  if (done <= 0 || now.at <= first.at) return null;
  return ((now.at - first.at) * (100 - now.progress)) / done / 1000;
}

/** A time that is left, for people. */
export function remaining(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  return seconds < 3600 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
