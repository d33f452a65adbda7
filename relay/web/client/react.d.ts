/** Types of the hooks and components for React. What they do is explained in docs/client.md. */

import type { ReactElement, ReactNode } from "react";
import type {
  ClientError, ClientOptions, JobCompletedData, JobFailedData, JobMessage, JobProgressData, Status,
} from "./client.js";

/** Where the relay is; what is missing comes from the nearest `<RelayProvider>`. */
export type RelayOptions = Pick<ClientOptions, "url" | "token" | "pollUrl" | "transports" | "shareTabs" | "debug">;

/** How a job stands. */
export interface JobState<Result = unknown> {
  /**
   * The publisher's (`active`, `queued`, …) until the end, then `completed`, `failed` or `cancelled`; `unknown` until something
   * is heard of it, `refused` where the relay does not let one watch it.
   */
  readonly status: string;
  /** 0 to 100. */
  readonly progress: number;
  /** Null until it has completed. */
  readonly result: Result | null;
  /** Why it failed, or was refused; null where there is nothing to tell. */
  readonly error: string | null;
  /** Null until there is a pace to tell it from. */
  readonly etaSeconds: number | null;
}

export interface JobProgressCallbacks<Result = unknown> {
  onJobProgress?(data: JobProgressData, message: JobMessage<Result>): void;
  onJobCompleted?(data: JobCompletedData<Result>, message: JobMessage<Result>): void;
  onJobFailed?(data: JobFailedData, message: JobMessage<Result>): void;
  /** Every job event, after the one of these that it fits. */
  onJobEvent?(message: JobMessage<Result>): void;
  /** Something of the connection's status is another than before. */
  onConnectionChange?(isConnected: boolean, status: Status): void;
  /** The relay refuses a subscription. */
  onError?(error: ClientError): void;
}

export interface JobProgressHook<Result = unknown> extends Status {
  /** How each job stands that is followed, by its id. */
  readonly jobs: Readonly<Record<string, JobState<Result>>>;
  /** Follow a job, connected or not; twice is once. Returns what stops it. */
  subscribeToJob(jobId: string | number, options?: { queueName?: string }): () => void;
  unsubscribeFromJob(jobId: string | number, options?: { queueName?: string }): void;
  /** Follow all jobs of a queue; with `snapshot: true` also those that are known now. Returns what stops it. */
  subscribeToQueue(queueName: string, options?: { snapshot?: boolean }): () => void;
  /** Give up all that this component follows. Unmounting does so by itself. */
  cleanup(): void;
}

/** Says for all components inside where the relay is, and with which token. */
export function RelayProvider(props: RelayOptions & { children?: ReactNode }): ReactElement;

/** Follow any jobs and queues. The functions returned are the same at each render; the callbacks need not be. */
export function useJobProgress<Result = unknown>(
  options?: RelayOptions & JobProgressCallbacks<Result>,
): JobProgressHook<Result>;

/** Follow one job; without an id, none. */
export function useJob<Result = unknown>(
  jobId: string | number | null | undefined,
  options?: RelayOptions & { queueName?: string },
): JobState<Result>;

export interface WebSocketStatusProps {
  isConnected: boolean;
  error?: { message: string } | string | null;
  /** Default: `"full"`. */
  variant?: "icon" | "badge" | "full";
  className?: string;
}

/** How the connection is: an icon, an icon with a word, or with a sentence. */
export function WebSocketStatus(props: WebSocketStatusProps): ReactElement;

export interface JobProgressProps extends RelayOptions {
  jobId: string | number;
  queueName?: string;
  /** What the bar is called to a screen reader. Default: `Progress of job …`. */
  label?: string;
  className?: string;
}

/** How far a job is, and when it will be done. */
export function JobProgress(props: JobProgressProps): ReactElement;
