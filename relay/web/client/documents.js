/**
 * What a document of a job tells: the relay's own (`GET /jobs`), or what an app's API says in its own way.
 *
 * Pure. Fields that are not known here are passed on.
 */

const END_OF_STATUS = [
  [/^(complete|completed|succeeded|success|finished|done)$/i, "job-completed"],
  [/^(failed|failure|error|cancelled|canceled)$/i, "job-failed"],
];

/** The event that a job document amounts to. `id` is the event's where the document comes from the relay. */
export function eventOfDocument(jobId, { event, id, updatedAt, ...rest }) {
  const end = END_OF_STATUS.find(([status]) => status.test(rest.status))?.[1];
  // A relay's document says null of what it does not know; an event leaves it out.
  const known = Object.entries(rest).filter(([name, value]) => value != null || (end && name === "result"));
  return {
    event: end ?? (/^job-(?!completed|failed)/.test(event) ? event : "job-progress"),
    id,
    data: { progress: 0, status: "active", ...Object.fromEntries(known), jobId },
  };
}

/**
 * The documents in an app's answer about `jobIds`, by job id: `{jobs: {id: document}}`, `{id: document}`, a list
 * of documents with `jobId` or `id`, or the document of the only job asked for.
 */
export function documentsOf(answer, jobIds) {
  const found = answer?.jobs ?? answer;
  if (Array.isArray(found)) {
    return Object.fromEntries(found.map((document) => [document.jobId ?? document.id, document]));
  }
  return typeof found?.status === "string" ? { [jobIds[0]]: found } : (found ?? {});
}
