// Every component in every variant.

import { createElement as h } from "react";
import { JobProgress, useJob, useJobProgress, WebSocketStatus } from "relay-client/react";

const STANDINGS = [
  { isConnected: true },
  { isConnected: false },
  { isConnected: false, error: { code: "unreachable", message: "the relay can't be reached" } },
];

export function Widgets() {
  const { isConnected, error } = useJobProgress();
  const { status } = useJob("similarity-1");
  const variants = ["icon", "badge", "full"].flatMap((variant) =>
    STANDINGS.map((standing, n) => h("li", { key: variant + n }, h(WebSocketStatus, { ...standing, variant }))),
  );
  return h(
    "main",
    null,
    h("h1", null, "Analyses"),
    h("ul", null, variants),
    h("p", { id: "live" }, h(WebSocketStatus, { isConnected, error })),
    h(JobProgress, { jobId: "similarity-1", label: "Similarity" }),
    h("output", null, status),
  );
}
