// Socket.IO over WebSocket alone, a room a job, one ioredis connection with PSUBSCRIBE jobs:*.
// Without its Redis adapter, by which every event would cross Redis a second time.
// NODE_FOLDER holds the node_modules.
import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_FOLDER + "/");
const { Server } = require("socket.io");
const { Redis } = require("ioredis");

const http = createServer();
const server = new Server(http, { transports: ["websocket"], serveClient: false });
const clients = server.of("/job-progress");
clients.on("connection", (client) => {
  client.on("subscribe-to-job", (request) => {
    client.join(`job:${request.jobId}`);
    client.emit("subscribed", request);
  });
});

const subscription = new Redis({ host: "127.0.0.1", port: Number(process.env.REDIS_PORT) });
subscription.on("pmessage", (pattern, channel, message) => {
  clients.to(`job:${channel.slice("jobs:".length)}`).emit("job-progress", JSON.parse(message));
});
await subscription.psubscribe("jobs:*");
http.listen(Number(process.env.PORT), "127.0.0.1", 4096);
