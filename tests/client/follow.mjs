// Follows the job named in the second argument at the relay named in the first; prints what it is told as JSON lines.

import { JobProgressClient } from "../../relay/web/client/client.js";

const [url, jobId] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const client = new JobProgressClient({ url });
client.on("state", ({ state, transport }) => say([state, transport]));
client.subscribeToJob(jobId, { onEvent: ({ event }) => say([event]) });
client.on("job-completed", () => client.close());
