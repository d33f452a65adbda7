import assert from "node:assert/strict";
import test, { beforeEach, mock } from "node:test";

import { Socket } from "../../relay/web/client/socket.js";

/** Keeps a WebSocket's promises to its user, and remembers what it was told. */
class FakeWebSocket {
  readyState = 0;
  sent = [];

  open() {
    this.readyState = 1;
    this.onopen();
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  say(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }

  close() {
    this.readyState = 3;
  }
}

let ws, heard, ended, socket;

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  ws = new FakeWebSocket();
  heard = [];
  ended = [];
  socket = new Socket(ws, (...values) => heard.push(values), (code) => ended.push(code));
});

const passSeconds = (seconds) => {
  for (let tenth = 0; tenth < 10 * seconds; tenth += 1) mock.timers.tick(100);
};

test("a handshake that is not answered is given up after five seconds", () => {
  passSeconds(4.5);
  assert.deepEqual(ended, []);

  passSeconds(2);

  assert.deepEqual(ended, [1006]);
});

test("silence is asked about after the heartbeat and ten seconds, and is the end when nobody answers", () => {
  ws.open();
  ws.say({ event: "relay-status" });
  socket.heartbeatSeconds = 25;

  passSeconds(34);
  assert.deepEqual(ws.sent, []);
  passSeconds(3);
  assert.deepEqual(ws.sent, [{ event: "ping" }]);
  passSeconds(9);
  assert.deepEqual(ended, []);
  passSeconds(3);

  assert.deepEqual(ended, [1006]);
});

test("an answer of any kind keeps the connection", () => {
  ws.open();
  ws.say({ event: "relay-status" });
  passSeconds(37);

  ws.say({ event: "pong" });
  passSeconds(20);

  assert.deepEqual(ended, []);
});

test("requests keep within the relay's rate and all leave", () => {
  ws.open();
  for (let n = 0; n < 100; n += 1) socket.send("subscribe-to-jobs", { n });
  assert.ok(ws.sent.length <= 50, `${ws.sent.length} at once`);
  const atOnce = ws.sent.length;

  passSeconds(1);
  assert.ok(ws.sent.length - atOnce <= 20, `${ws.sent.length - atOnce} in a second`);
  passSeconds(5);

  assert.deepEqual(ws.sent.map(({ data }) => data.n), Array.from({ length: 100 }, (_, n) => n));
});

test("what is said before the handshake is over is said after it", () => {
  socket.send("subscribe-to-jobs", { jobIds: ["a"] });
  assert.deepEqual(ws.sent, []);

  ws.open();

  assert.deepEqual(ws.sent, [{ event: "subscribe-to-jobs", data: { jobIds: ["a"] }, ref: 1 }]);
});

test("an answer comes with the request that it answers", () => {
  ws.open();
  socket.send("subscribe-to-jobs", {}, ["a topic"]);

  ws.say({ event: "subscribed", data: {}, ref: 1 });

  assert.deepEqual(heard[0][1].topics, ["a topic"]);
});

test("a request that was refused for now is made again", () => {
  ws.open();
  socket.send("subscribe-to-jobs", { jobIds: ["a"] });

  ws.say({ event: "error", data: { code: "rate-limited", temporary: true }, ref: 1 });
  passSeconds(3);

  assert.deepEqual(ws.sent.map(({ ref }) => ref), [1, 2]);
  assert.deepEqual(ws.sent[1].data, { jobIds: ["a"] });
  assert.deepEqual(heard, []);
});

test("what is not JSON is passed over", () => {
  ws.open();

  ws.onmessage({ data: "<html>" });

  assert.deepEqual([heard, ended], [[], []]);
});

test("a socket that is closed by its owner says no more", () => {
  ws.open();
  const { onmessage } = ws;

  socket.close();

  assert.equal(ws.readyState, 3);
  assert.deepEqual([ended, ws.onmessage, ws.onclose], [[], null, null]);
  assert.ok(onmessage);
});
