/**
 * The list of connections: searched by the relay, brought up to date every few seconds, each to be closed.
 *
 * Rows stay the same elements while their connection lives, so that focus and selection do.
 */

import { ask } from "./feed.js";
import { age, bytes, count } from "./format.js";

const LIMIT = 50;
const EVERY_SNAPSHOTS = 2;
const TYPING_MS = 250;
const $ = (id) => document.getElementById(id);

export class Connections {
  #rows = new Map(); // connection id → its row
  #snapshots = 0;
  #asked = 0;
  #typing;
  #doomed = null; // the connection that is asked about
  #opener = null;

  constructor() {
    $("search").addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.refresh(), TYPING_MS);
    });
    $("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.refresh();
    });
    $("confirm-no").addEventListener("click", () => $("confirm").close());
    $("confirm-yes").addEventListener("click", () => this.#close());
    $("confirm").addEventListener("close", () => (this.#opener?.isConnected ? this.#opener : $("search")).focus());
  }

  /** Search for that, and bring the list into view. */
  search(text) {
    $("search").value = text;
    $("list").scrollIntoView();
    return this.refresh();
  }

  /** To be called with every snapshot. */
  tick() {
    this.#snapshots += 1;
    if (this.#snapshots % EVERY_SNAPSHOTS === 0 && !document.hidden) this.refresh();
  }

  async refresh() {
    const asked = ++this.#asked;
    const search = $("search").value.trim();
    try {
      const answer = await ask(`admin/connections?limit=${LIMIT}&search=${encodeURIComponent(search)}`);
      if (asked === this.#asked) this.#show(answer, search);
    } catch {
      // The stream of snapshots tells that the relay is away; the list stays as it was.
    }
  }

  #show({ total, connections }, search) {
    const known = this.#rows;
    this.#rows = new Map(connections.map((each) => [each.connectionId, known.get(each.connectionId) ?? this.#row(each)]));
    const rows = [...this.#rows.values()];
    for (const [id, row] of known) if (!this.#rows.has(id)) row.remove();
    // Newest first: what is new stands in front of what stays where it is.
    rows.forEach((row, place) => {
      if ($("rows").children[place] !== row) $("rows").insertBefore(row, $("rows").children[place] ?? null);
    });
    for (const each of connections) this.#fill(this.#rows.get(each.connectionId), each);
    const shown = connections.length < total ? `the newest ${count(connections.length)} of ${count(total)}` : count(total);
    const text = search ? `${shown} found` : shown;
    if ($("list-count").textContent !== text) $("list-count").textContent = text;
  }

  #row(connection) {
    const row = $("row").content.firstElementChild.cloneNode(true);
    const button = row.querySelector("button");
    button.setAttribute("aria-label", `Close connection ${connection.connectionId}`);
    button.addEventListener("click", () => this.#confirm(connection, button));
    return row;
  }

  #fill(row, { connectionId, transport, remote, principal, authenticated, subscriptions, pendingBytes, openedAt }) {
    const texts = {
      ".id": connectionId,
      ".transport": { websocket: "WebSocket", sse: "SSE", longpoll: "long poll" }[transport] ?? transport,
      ".remote": remote || "unix socket",
      ".principal": principal ?? (authenticated ? "anonymous" : "not authenticated"),
      ".watches": count(subscriptions),
      ".waiting": bytes(pendingBytes),
      ".age": age((Date.now() - openedAt) / 1000),
    };
    for (const [selector, text] of Object.entries(texts)) row.querySelector(selector).textContent = text;
    row.querySelector(".waiting").dataset.kind = pendingBytes ? "warn" : "";
  }

  #confirm(connection, opener) {
    this.#doomed = connection;
    this.#opener = opener;
    const { connectionId, remote, principal } = connection;
    $("confirm-text").textContent = `${connectionId} from ${remote || "the unix socket"}${principal ? `, ${principal}` : ""}.`;
    $("confirm").showModal();
  }

  async #close() {
    const { connectionId } = this.#doomed;
    $("confirm").close();
    try {
      const { closed } = await ask("admin/disconnect", { connectionId });
      $("list-said").textContent = closed ? `${connectionId} is closed.` : `${connectionId} was gone already.`;
    } catch (error) {
      $("list-said").textContent = `${connectionId} could not be closed: ${error.message}`;
    }
    await this.refresh();
  }
}
