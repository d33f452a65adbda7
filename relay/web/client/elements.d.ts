/** Types of the custom elements; importing elements.js defines them. */

import type { JobProgressClient } from "./client.js";

/** `<relay-status url="…">`: how the connection is. */
export interface RelayStatusElement extends HTMLElement {
  /** The client in use; set one to use your own. */
  client: JobProgressClient;
}

/** `<job-progress job-id="…" queue-name="…" url="…" label="…">`: a bar, with the time that is left. */
export interface JobProgressElement extends HTMLElement {
  client: JobProgressClient;
}

declare global {
  interface HTMLElementTagNameMap {
    "relay-status": RelayStatusElement;
    "job-progress": JobProgressElement;
  }
}
