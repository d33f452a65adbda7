// A NestJS gateway on the `ws` adapter with one ioredis connection, PSUBSCRIBE jobs:*: what this relay's
// client protocol was shaped after. A message is parsed once and turned into text once, whoever watches.
// Its decorators are called by hand, which spares a compiler. NODE_FOLDER holds the node_modules.
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_FOLDER + "/");
require("reflect-metadata");
const { Module } = require("@nestjs/common");
const { NestFactory } = require("@nestjs/core");
const { WsAdapter } = require("@nestjs/platform-ws");
const sockets = require("@nestjs/websockets");
const { Redis } = require("ioredis");
const { WebSocket } = require("ws");

class JobProgressGateway {
  watchers = new Map();
  watched = new Map();

  async onModuleInit() {
    const subscription = new Redis({ host: "127.0.0.1", port: Number(process.env.REDIS_PORT) });
    subscription.on("pmessage", (pattern, channel, message) =>
      this.forward(channel.slice("jobs:".length), message));
    await subscription.psubscribe("jobs:*");
  }

  handleConnection(client) {
    this.watched.set(client, new Set());
  }

  handleDisconnect(client) {
    for (const jobId of this.watched.get(client) ?? []) this.watchers.get(jobId)?.delete(client);
    this.watched.delete(client);
  }

  subscribe(client, request) {
    const jobId = String(request.jobId);
    if (!this.watchers.has(jobId)) this.watchers.set(jobId, new Set());
    this.watchers.get(jobId).add(client);
    this.watched.get(client)?.add(jobId);
    return { event: "subscribed", data: { jobId } };
  }

  forward(jobId, message) {
    const data = JSON.parse(message);
    const text = JSON.stringify({ event: "job-progress", data });
    for (const client of this.watchers.get(jobId) ?? []) {
      if (client.readyState === WebSocket.OPEN) client.send(text);
    }
  }
}

const gateway = JobProgressGateway.prototype;
sockets.ConnectedSocket()(gateway, "subscribe", 0);
sockets.MessageBody()(gateway, "subscribe", 1);
const subscribe = Object.getOwnPropertyDescriptor(gateway, "subscribe");
sockets.SubscribeMessage("subscribe-to-job")(gateway, "subscribe", subscribe);
sockets.WebSocketGateway({ path: "/job-progress" })(JobProgressGateway);

class App {}
Module({ providers: [JobProgressGateway] })(App);

const app = await NestFactory.create(App, { logger: ["error"] });
app.useWebSocketAdapter(new WsAdapter(app));
await app.listen(Number(process.env.PORT), "127.0.0.1");
