import assert from "node:assert/strict";
import test from "node:test";

import {
  backoffMs, chunks, etaSeconds, fitsSubprotocol, grouped, keyOf, mayReturn, remaining,
} from "../../relay/web/client/rules.js";

test("a client comes back after what passes, and not after what would end the same way", () => {
  const codes = [1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 3008];

  assert.deepEqual(codes.filter(mayReturn), [1001, 1006, 1011, 1012, 1013, 3008]);
});

test("the wait before an attempt is random up to a bound that doubles from half a second to twenty", () => {
  const longest = [0, 1, 2, 5, 6, 100].map((attempt) => backoffMs(attempt, () => 1));

  assert.deepEqual(longest, [500, 1000, 2000, 16_000, 20_000, 20_000]);
  assert.equal(backoffMs(3, () => 0), 0);
});

test("a token that a header list can't hold is not put into one", () => {
  assert.ok(fitsSubprotocol("eyJhbGciOi.eyJzdWIi.c2ln-_"));
  for (const token of ["a/b", "a=", "a b", "a,b", ""]) assert.ok(!fitsSubprotocol(token), token);
});

test("runs are bounded in number and in weight, and keep every item in order", () => {
  const words = ["aa", "b", "cccc", "d", "e"];

  const runs = chunks(words, (word) => word.length, 2, 4);

  assert.deepEqual(runs, [["aa", "b"], ["cccc"], ["d", "e"]]);
  assert.deepEqual(chunks([], () => 1, 2, 4), []);
});

test("an item that is too heavy by itself is a run of its own", () => {
  assert.deepEqual(chunks([9, 1], (weight) => weight, 5, 4), [[9], [1]]);
});

test("two names never make the key of a third", () => {
  assert.equal(new Set([keyOf("a"), keyOf("", "a"), keyOf("a", "a"), keyOf("b", "a")]).size, 4);
  assert.deepEqual([...grouped([1, 2, 3], (n) => n % 2)], [[1, [1, 3]], [0, [2]]]);
});

test("the time that is left follows from the pace, and is not guessed without one", () => {
  const first = { at: 1000, progress: 20 };

  assert.equal(etaSeconds(first, { at: 5000, progress: 40 }), 12);
  assert.equal(etaSeconds(first, first), null);
  assert.equal(etaSeconds(first, { at: 5000, progress: 10 }), null);
});

test("people are told of seconds, minutes or hours", () => {
  assert.deepEqual([0.2, 59, 61, 5400].map(remaining), ["1 s", "59 s", "2 min", "1.5 h"]);
});
