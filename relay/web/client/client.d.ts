/** Types of the relay's client. What it does is explained in docs/client.md. */

export type State = "connecting" | "live" | "degraded" | "offline" | "closed";
export type Transport = "websocket" | "sse" | "long-poll" | "polling" | "none";

/** A token, or what gives a fresh one each time it is called. */
export type Token = string | (() => string | Promise<string>);

export interface ClientError {
  /** The relay's code, or `"unreachable"` or `"closed"`. */
  code: string;
  message: string;
  jobId?: string;
  queueName?: string;
}

/** Fields that every job event may have; a publisher's own come with them. */
export interface JobData {
  jobId: string;
  queueName?: string;
  [field: string]: unknown;
}

export interface JobProgressData extends JobData {
  /** 0 to 100. */
  progress: number;
  status: string;
  data?: unknown;
}

export interface JobCompletedData<Result = unknown> extends JobData {
  result?: Result;
  /** In ms; null where nobody knows. */
  processingTime?: number | null;
}

export interface JobFailedData extends JobData {
  error?: string | null;
  failedReason?: string | null;
}

/** A job event; `id` is missing where an app's own API told it. */
export type JobMessage<Result = unknown> =
  | { event: "job-progress"; id?: string; data: JobProgressData }
  | { event: "job-completed"; id?: string; data: JobCompletedData<Result> }
  | { event: "job-failed"; id?: string; data: JobFailedData }
  | { event: `job-${string}` & {}; id?: string; data: JobData };

/** What an app's API says of a job; anything else in it is passed on. */
export interface JobDocument {
  jobId?: string;
  /** `completed` and `failed` (and their usual synonyms) end the job. */
  status?: string;
  progress?: number | null;
  result?: unknown;
  error?: string | null;
  failedReason?: string | null;
  /** The relay's event id, where the app knows it. */
  eventId?: string;
  [field: string]: unknown;
}

export type JobDocuments = { jobs: Record<string, JobDocument> } | Record<string, JobDocument> | JobDocument[] | JobDocument;

/** Asks the app's API where jobs stand. */
export type Poll = (jobIds: string[], options: { signal: AbortSignal }) => Promise<JobDocuments> | JobDocuments;

export interface ClientOptions {
  /** The relay's address, `ws(s)` or `http(s)`; in a browser it may be relative. Default: `/job-progress` of the same host. */
  url?: string;
  token?: Token;
  /**
   * The app's own API, polled while live events can't be had: a URL with `{ids}` (at most 100, comma-separated) or
   * `{jobId}`, or a function. Default: the relay's `GET /jobs`.
   */
  pollUrl?: string | Poll;
  /** Which ways may be used, best first. Default: all. */
  transports?: Exclude<Transport, "none">[];
  /** One connection for all tabs of this origin; a string tells users apart where the token is a function. */
  shareTabs?: boolean | string;
  /** Lines about what happens, to the console or to a function. */
  debug?: boolean | ((...values: unknown[]) => void);
  fetch?: typeof fetch;
  /** Needed in Node 20, which has none of its own. */
  WebSocket?: new (url: string, protocols?: string[]) => object;
}

export interface Listener<Result = unknown> {
  onProgress?(data: JobProgressData, message: JobMessage<Result>): void;
  onCompleted?(data: JobCompletedData<Result>, message: JobMessage<Result>): void;
  onFailed?(data: JobFailedData, message: JobMessage<Result>): void;
  /** Every job event, after the one of these that it fits. */
  onEvent?(message: JobMessage<Result>): void;
  /** The relay refuses this subscription. */
  onError?(error: ClientError): void;
}

export interface JobListener<Result = unknown> extends Listener<Result> {
  /** Only the job of this queue, where ids are not unique. */
  queueName?: string;
  /** The id of the last event that is known already. */
  since?: string;
}

export interface QueueListener<Result = unknown> extends Listener<Result> {
  /** Also tell where the jobs stand that are known now. */
  snapshot?: boolean;
}

export interface Batch<Result = unknown> {
  readonly total: number;
  readonly completed: number;
  readonly failed: number;
  /** 0 to 100: the mean over all jobs. */
  readonly progress: number;
  /** Null until there is a pace to tell it from. */
  readonly etaSeconds: number | null;
  readonly cancelled: boolean;
  /** The newest message of each job that something is known of. */
  readonly jobs: ReadonlyMap<string, JobMessage<Result>>;
  /** Resolves when every job has ended, or after `cancel`. Never rejects. */
  readonly done: Promise<Batch<Result>>;
  cancel(): void;
}

export interface Status {
  readonly state: State;
  readonly transport: Transport;
  /** Whether live events flow: pushed by a relay that hears Redis. */
  readonly isConnected: boolean;
  readonly redis: "connected" | "disconnected" | "unknown";
  /** What keeps events away, for now or for good; null while nothing does. */
  readonly error: ClientError | null;
}

type Stop = () => void;

export interface JobProgressClient extends Status {}

export class JobProgressClient {
  /** Connects at once. */
  constructor(options?: ClientOptions);

  /** The client that all of a page share for one `url` and `token`; each call is matched by one of `release`. */
  static shared(options?: ClientOptions): JobProgressClient;
  release(): void;

  /** Follow a job; what is known of it is told at once. Returns what stops it. */
  subscribeToJob<Result = unknown>(jobId: string | number, listener?: JobListener<Result>): Stop;
  subscribeToQueue<Result = unknown>(queueName: string, listener?: QueueListener<Result>): Stop;
  batch<Result = unknown>(
    jobIds: Iterable<string | number>,
    options?: { queueName?: string; onChange?(batch: Batch<Result>): void },
  ): Batch<Result>;

  /** The newest progress or end of a job that is followed. */
  latest(jobId: string | number, options?: { queueName?: string }): JobMessage | undefined;

  on(name: "job-progress", listener: (data: JobProgressData, message: JobMessage) => void): Stop;
  on(name: "job-completed", listener: (data: JobCompletedData, message: JobMessage) => void): Stop;
  on(name: "job-failed", listener: (data: JobFailedData, message: JobMessage) => void): Stop;
  /** Every job event. */
  on(name: "event", listener: (message: JobMessage) => void): Stop;
  /** One of the fields of `Status` is another than before. */
  on(name: "state", listener: (client: JobProgressClient) => void): Stop;
  /** A refused subscription, or the end for good. */
  on(name: "error", listener: (error: ClientError) => void): Stop;
  /** Events may have been missed that no history can bring back. */
  on(name: "gap", listener: () => void): Stop;
  on(name: `job-${string}` & {}, listener: (data: JobData, message: JobMessage) => void): Stop;

  /** Go on with another token; also comes back where the last was refused. */
  authenticate(token: Token): void;
  /** Come back after `close` or an end for good, or try now rather than when it is due. */
  connect(): void;
  /** End the connection for every user of this client; subscriptions are kept for `connect`. */
  close(): void;
}

/** Seconds left at the pace since `first`; null while there is none. `at` in ms. */
export function etaSeconds(
  first: { at: number; progress: number },
  now: { at: number; progress: number },
): number | null;
