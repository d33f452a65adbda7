"""Job documents over HTTP: whom they are told to, and that polling costs little."""

from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.web.conftest import Json, Running, Serve

EVIL = {"Origin": "https://evil.example"}
PAGE = {"Origin": "http://localhost:5173"}


async def get(
    relay: Running, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[aiohttp.ClientResponse, Any]:
    """The answer, and its body as JSON where there is one."""
    url = f"{relay.public}{path}"
    async with relay.http.request(method, url, headers=headers) as answer:
        return answer, await answer.json() if await answer.read() else None


async def with_jobs(serve: Serve, settings: Mapping[str, object] | None = None) -> Running:
    """A relay that has seen a job in two queues, and one that ended."""
    relay = await serve(settings)
    await relay.subscribed()
    await relay.publish("shared", "q1", progress=10, data={"step": 1})
    await relay.publish("shared", "q2", progress=20)
    await relay.publish("ended", "q1", progress=70)
    await relay.publish("ended", "q1", event="job-completed", result=[1], processingTime=5)
    if settings is None:
        await relay.known("ended", status="completed")
    return relay


async def test_document_has_every_field(serve: Serve) -> None:
    relay = await with_jobs(serve)

    answer, document = await get(relay, "/jobs/ended")

    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert document.pop("id")
    assert document.pop("updatedAt") > 1_600_000_000_000
    assert document == {
        "jobId": "ended", "queueName": "q1", "event": "job-completed", "status": "completed",
        "progress": 70, "data": None, "result": [1], "error": None, "failedReason": None,
        "processingTime": 5,
    }  # fmt: skip


async def test_newest_of_all_queues_is_told_unless_one_is_named(serve: Serve) -> None:
    relay = await with_jobs(serve)

    _, newest = await get(relay, "/jobs/shared")
    _, first = await get(relay, "/jobs/shared?queueName=q1")
    absent, _ = await get(relay, "/jobs/shared?queueName=q3")

    assert (newest["queueName"], newest["progress"]) == ("q2", 20)
    assert (first["queueName"], first["progress"], first["data"]) == ("q1", 10, {"step": 1})
    assert absent.status == 404


async def test_unknown_job_is_not_found(serve: Serve) -> None:
    relay = await serve()

    answer, body = await get(relay, "/jobs/unknown")

    assert (answer.status, body["error"]["code"]) == (404, "not-found")
    assert answer.headers["Cache-Control"] == "no-store"
    assert body["error"]["message"]


@pytest.mark.parametrize(
    ("written", "job_id"), [("a%2Fb", "a/b"), ("100%25", "100%"), ("a:b", "a:b"), ("%C3%A9", "é")]
)
async def test_job_id_may_hold_what_a_path_writes_in_another_way(
    serve: Serve, written: str, job_id: str
) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish(job_id, progress=1)
    await relay.publish("after")
    await relay.known("after", progress=0)

    async with relay.http.get(URL(f"{relay.public}/jobs/{written}", encoded=True)) as answer:
        document = await answer.json()

    assert document["jobId"] == job_id


async def test_unchanged_document_is_not_sent_again(serve: Serve) -> None:
    relay = await with_jobs(serve)
    first, _ = await get(relay, "/jobs/shared")
    tag = first.headers["ETag"]

    same, body = await get(relay, "/jobs/shared", {"If-None-Match": f'"other", {tag}'})
    other, _ = await get(relay, "/jobs/shared", {"If-None-Match": '"other"'})
    any_at_all, _ = await get(relay, "/jobs/shared", {"If-None-Match": "*"})

    assert (same.status, body) == (304, None)
    assert same.headers["ETag"] == tag
    assert same.headers["Cache-Control"] == "no-store"
    assert (other.status, any_at_all.status) == (200, 304)


async def test_changed_document_has_another_tag(serve: Serve) -> None:
    relay = await with_jobs(serve)
    first, _ = await get(relay, "/jobs/shared")

    await relay.publish("shared", "q2", progress=21)
    await relay.known("shared", progress=21)
    later, _ = await get(relay, "/jobs/shared", {"If-None-Match": first.headers["ETag"]})

    assert later.status == 200
    assert later.headers["ETag"] != first.headers["ETag"]


@pytest.mark.parametrize(
    "query", ["ids=shared,ended,unknown", "ids=shared&ids=ended", "ids=shared,ended,shared,,"]
)
async def test_list_may_be_split_at_commas_or_repeated(serve: Serve, query: str) -> None:
    relay = await with_jobs(serve)

    answer, body = await get(relay, f"/jobs?{query}")

    assert answer.status == 200
    assert {job_id: job["status"] for job_id, job in body["jobs"].items()} == {
        "shared": "active",
        "ended": "completed",
    }


async def test_repeated_list_is_not_split_so_that_an_id_may_hold_a_comma(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish("a,b", progress=1)
    await relay.publish("c", progress=2)
    await relay.known("c", progress=2)

    _, body = await get(relay, "/jobs?ids=a,b&ids=c")

    assert list(body["jobs"]) == ["a,b", "c"]


async def test_list_is_narrowed_to_a_queue(serve: Serve) -> None:
    relay = await with_jobs(serve)

    _, body = await get(relay, "/jobs?ids=shared,ended&queueName=q2")

    assert {job_id: job["queueName"] for job_id, job in body["jobs"].items()} == {"shared": "q2"}


async def test_jobs_of_a_queue_are_told_and_an_unknown_queue_has_none(serve: Serve) -> None:
    relay = await with_jobs(serve)

    _, first = await get(relay, "/jobs?queueName=q1")
    _, unknown = await get(relay, "/jobs?queueName=q3")

    assert set(first["jobs"]) == {"shared", "ended"}
    assert unknown == {"jobs": {}}


async def test_list_has_a_tag_too(serve: Serve) -> None:
    relay = await with_jobs(serve)
    first, _ = await get(relay, "/jobs?queueName=q1")

    same, _ = await get(relay, "/jobs?queueName=q1", {"If-None-Match": first.headers["ETag"]})

    assert same.status == 304


async def test_bad_id_in_a_list_costs_only_itself(serve: Serve) -> None:
    relay = await with_jobs(serve)
    too_long = "x" * 257

    _, body = await get(relay, f"/jobs?ids=ended,{too_long}")

    assert body["jobs"][too_long] == {"error": {"code": "invalid-job-id"}}
    assert body["jobs"]["ended"]["status"] == "completed"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/jobs/" + "x" * 257, "invalid-job-id"),
        ("/jobs/a%00b", "invalid-job-id"),
        ("/jobs/a?queueName=", "invalid-queue-name"),
        ("/jobs/a?queueName=" + "x" * 257, "invalid-queue-name"),
        ("/jobs", "bad-request"),
        ("/jobs?ids=", "bad-request"),
        ("/jobs?ids=" + ",".join(str(number) for number in range(101)), "bad-request"),
    ],
)
async def test_bad_request_is_told_what_is_wrong(serve: Serve, path: str, code: str) -> None:
    answer, body = await get(await serve(), path)

    assert answer.status == 400
    assert body["error"]["code"] == code
    assert body["error"]["message"]


async def test_hundred_ids_are_not_too_many(serve: Serve) -> None:
    ids = ",".join(str(number) for number in range(100))

    answer, body = await get(await serve(), f"/jobs?ids={ids}")

    assert (answer.status, body) == (200, {"jobs": {}})


async def test_without_history_nothing_is_found(serve: Serve) -> None:
    relay = await with_jobs(serve, {"history.backend": "off"})

    for path in ("/jobs/ended", "/jobs?ids=ended", "/jobs?queueName=q1"):
        answer, body = await get(relay, path)
        assert (answer.status, body["error"]["code"]) == (404, "not-found")


async def test_job_that_a_source_can_look_up_is_asked_for(serve: Serve) -> None:
    relay = await serve({"source.tasks.kind": "celery"})
    await relay.subscribed()
    key = "celery-task-meta-looked-up"
    await relay.redis.set(key, b'{"task_id":"looked-up","status":"SUCCESS","result":7}', ex=60)

    _, one = await get(relay, "/jobs/looked-up")
    _, many = await get(relay, "/jobs?ids=looked-up,unknown")

    assert (one["status"], one["result"]) == ("completed", 7)
    assert list(many["jobs"]) == ["looked-up"]


# Who may read


async def test_page_of_an_allowed_origin_may_read_the_answer(serve: Serve) -> None:
    relay = await serve()

    answer, _ = await get(relay, "/jobs/unknown", PAGE)

    assert answer.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
    assert answer.headers["Vary"] == "Origin"
    assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_other_origins_are_refused_and_counted(serve: Serve) -> None:
    relay = await serve()

    answer, body = await get(relay, "/jobs/unknown", EVIL)

    assert (answer.status, body["error"]["code"]) == (403, "forbidden")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert await relay.metric("relay_handshakes_rejected_total", reason="origin") == 1


async def test_configured_origin_takes_the_place_of_loopback_ones(serve: Serve) -> None:
    relay = await serve({"server.allowed_origins": ["https://app.example"]})

    allowed, _ = await get(relay, "/jobs/unknown", {"Origin": "https://app.example"})
    refused, _ = await get(relay, "/jobs/unknown", PAGE)

    assert (allowed.status, refused.status) == (404, 403)


async def test_request_without_origin_gets_no_cors_headers(serve: Serve) -> None:
    answer, _ = await get(await serve(), "/jobs/unknown")

    assert not [name for name in answer.headers if name.startswith("Access-Control-")]


@pytest.mark.parametrize(("origin", "status"), [(PAGE, 204), (EVIL, 403)])
async def test_preflight_is_answered_by_the_same_policy(
    serve: Serve, origin: Json, status: int
) -> None:
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization, if-none-match",
    }

    answer, _ = await get(await serve(), "/jobs/unknown", asked | origin, "OPTIONS")

    allowed = answer.headers.get("Access-Control-Allow-Headers")
    assert answer.status == status
    assert allowed == ("authorization, if-none-match" if status == 204 else None)
    assert ("Access-Control-Allow-Origin" in answer.headers) == (status == 204)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/jobs", 405, "method-not-allowed"),
        ("OPTIONS", "/jobs", 405, "method-not-allowed"),
        ("GET", "/elsewhere", 404, "not-found"),
        ("GET", "/metrics", 404, "not-found"),
    ],
)
async def test_what_is_not_served_is_refused_as_json(
    serve: Serve, method: str, path: str, status: int, code: str
) -> None:
    answer, body = await get(await serve(), path, PAGE, method)

    assert (answer.status, body["error"]["code"]) == (status, code)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]


async def test_bug_of_ours_costs_its_request_and_tells_nothing(serve: Serve) -> None:
    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("secret")

    relay = await serve(routes=[web.get("/fail", fail)])

    answer, body = await get(relay, "/fail")
    other, _ = await get(relay, "/jobs/unknown")

    assert answer.status == 500
    assert body == {"error": {"code": "internal", "message": "internal error"}}
    assert other.status == 404
