"""The demo's worker: takes one analysis after the other from a Redis list and publishes how it fares.

A process of its own (`python -m relay.demo.worker --redis URL`), because its work would hold up an
event loop. Every job it takes ends with `job-completed` or `job-failed`: what it cannot do fails with
the reason, what somebody wants cancelled is cancelled at its next progress, and a job in whose midst a
worker was killed is failed by the next worker. It holds nothing
that must be saved, so SIGTERM simply ends it; on Linux so does its parent's death. With Redis gone it
ends with exit code 1, and its supervisor starts it again. One worker at a time.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from typing import Any

import orjson
import redis

from relay.demo import jobs
from relay.demo.similarity import AnalysisError, RequestError, Step, analyse, parse_request
from relay.demo.tether import die_with_parent

# Some six a second look smooth on a bar; more would only be work.
_PUBLISH_INTERVAL_SECONDS = 0.15
_WAIT_SECONDS = 5
# Above the wait, and above what the page may freeze Redis for: who has not answered by then does not answer at all.
_SOCKET_TIMEOUT_SECONDS = 45.0


class _CancelledError(Exception):
    pass


class Worker:
    """Runs jobs over one Redis connection."""

    def __init__(self, connection: redis.Redis) -> None:
        self._redis = connection

    def run_forever(self) -> None:
        """Fail what a killed worker left, then take jobs as they come.

        Raises:
            redis.RedisError: Redis is away.
        """
        while (document := self._redis.lindex(jobs.RUNNING_LIST, 0)) is not None:
            self._fail(_job_id(document), "worker-lost", "the worker was ended: submit it again")
            self._redis.lpop(jobs.RUNNING_LIST)
        while True:
            document = self._redis.blmove(jobs.WAITING_LIST, jobs.RUNNING_LIST, _WAIT_SECONDS)
            if document is not None:
                self.run_job(document)
                self._redis.lpop(jobs.RUNNING_LIST)

    def run_job(self, document: Any) -> None:
        """Run one job to its end, whichever that is.

        Args:
            document: a JSON object in bytes, `{"jobId", "request"}`.

        Raises:
            redis.RedisError: Redis is away; the job's end could not be told.
        """
        job_id = _job_id(document)
        started_at = time.monotonic()
        try:
            self._progress(job_id, 0, {"stage": "started"})
            request = parse_request(orjson.loads(document)["request"])
            result = self._run(job_id, analyse(request, clock=time.monotonic))
        except AnalysisError as error:
            self._fail(job_id, error.code, str(error))
        except RequestError as error:
            self._fail(job_id, "bad-request", str(error))
        except _CancelledError:
            self._fail(job_id, "cancelled", "cancelled on request", status="cancelled")
        except redis.RedisError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, who waits for the job must hear of it
            traceback.print_exc()
            self._fail(job_id, "internal", f"{type(error).__name__}: {error}")
        else:
            elapsed_ms = round((time.monotonic() - started_at) * 1000)
            self._publish(
                "job-completed",
                job_id,
                progress=100,
                status="completed",
                result=result,
                processingTime=elapsed_ms,
            )

    def _run(self, job_id: str, steps: Generator[Step, None, dict[str, Any]]) -> dict[str, Any]:
        published_at = time.monotonic()
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: dict[str, Any] = end.value
                return result
            now = time.monotonic()
            # The end of a stage is told however soon it comes.
            if step.done == step.total or now - published_at >= _PUBLISH_INTERVAL_SECONDS:
                published_at = now
                data = {
                    "stage": step.stage,
                    f"{step.stage}Done": step.done,
                    f"{step.stage}Total": step.total,
                }
                self._progress(job_id, step.progress, data)

    def _progress(self, job_id: str, progress: int, data: dict[str, Any]) -> None:
        if self._publish("job-progress", job_id, progress=progress, status="active", data=data):
            raise _CancelledError

    def _fail(self, job_id: str, code: str, reason: str, status: str = "failed") -> None:
        self._publish("job-failed", job_id, status=status, error=code, failedReason=reason)

    def _publish(self, event: str, job_id: str, **fields: Any) -> bool:
        """Tell an event; whether somebody wants the job cancelled, which costs no trip of its own."""
        payload = jobs.payload(event, job_id, **fields)
        with self._redis.pipeline(transaction=True) as transaction:
            transaction.set(jobs.state_key(job_id), payload, ex=jobs.KEEP_SECONDS)
            transaction.publish(jobs.channel(job_id), payload)
            transaction.exists(jobs.cancel_key(job_id))
            *_, is_cancelled = transaction.execute()
        return bool(is_cancelled)


def _job_id(document: Any) -> str:
    try:
        job_id = orjson.loads(document)["jobId"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        job_id = None
    # Someone else has written into our list. Nobody waits for that job, but it must not stop the next.
    return job_id if isinstance(job_id, str) else "unreadable"


def main() -> None:
    """Work until ended."""
    arguments = argparse.ArgumentParser(prog="python -m relay.demo.worker", description=__doc__)
    arguments.add_argument("--redis", required=True, metavar="URL", help="redis://HOST:PORT/DB")
    url = arguments.parse_args().redis
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(os.getppid())
    with redis.Redis.from_url(url, socket_timeout=_SOCKET_TIMEOUT_SECONDS) as connection:
        try:
            Worker(connection).run_forever()
        except redis.RedisError as error:
            sys.exit(f"the demo's worker has lost Redis: {error}")


if __name__ == "__main__":
    main()
