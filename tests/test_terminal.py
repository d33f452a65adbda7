"""`relay watch`: what its rows say, and how it lives through what a relay may do to it."""

import asyncio
import contextlib
import io
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from relay import terminal
from relay.board import Board, State, render
from relay.terminal import WatchError, backoff_seconds, endpoint, watch

Visit = Callable[["Visitor"], Awaitable[None]]


class Visitor:
    """The relay's end of one connection; `subscribe` answers as the protocol says."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.socket = socket
        self.request = request

    async def say(self, event: str, data: dict[str, Any], **beside: object) -> None:
        await self.socket.send_json({"event": event, "data": data, **beside})

    async def greet(self, **status: object) -> None:
        await self.say("relay-status", {"protocol": 1, "redis": "connected", "gap": False} | status)

    async def subscribe(self, **errors: str) -> dict[str, Any]:
        """Greet, take one `subscribe-to-jobs`, answer it, and return its data."""
        await self.greet()
        command = await self.socket.receive_json(timeout=5)
        assert command["event"] == "subscribe-to-jobs"
        data: dict[str, Any] = command["data"]
        known = {"known": True, "recovered": False, "replayed": 0}
        jobs = {id: {"error": errors[id]} if id in errors else known for id in data["jobIds"]}
        await self.say("subscribed", {"jobIds": data["jobIds"], "jobs": jobs}, ref=command["ref"])
        return data

    def cut(self) -> None:
        """Lose the connection, as a network does."""
        assert self.request.transport is not None
        self.request.transport.abort()


class FakeRelay:
    """Receives each connection with its next visit; a number refuses it with that status."""

    def __init__(self, *visits: Visit | int, headers: dict[str, str] | None = None) -> None:
        self._visits = list(visits)
        self._headers = headers or {}
        self.authorizations: list[str | None] = []
        self.url = ""

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        self.authorizations.append(request.headers.get("Authorization"))
        visit = self._visits.pop(0)
        if isinstance(visit, int):
            return web.Response(status=visit, headers=self._headers)
        response = web.WebSocketResponse(max_msg_size=65_536)
        await response.prepare(request)
        await visit(Visitor(response, request))
        if not response.closed:
            # Left to the client: it goes when all its jobs have ended.
            await response.receive(timeout=5)
        return response

    @contextlib.asynccontextmanager
    async def at_port(self, port: int = 0) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/job-progress", self._receive)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()


class Outcome:
    """What `watch` printed and returned."""

    def __init__(self) -> None:
        self.console = Console(file=io.StringIO(), width=200)
        self.notes = Console(file=io.StringIO(), width=200)

    @property
    def lines(self) -> list[str]:
        return self._text(self.console).splitlines()

    @property
    def notes_text(self) -> str:
        return self._text(self.notes)

    async def watch(self, *jobs: str, url: str, token: str = "") -> int:
        async with asyncio.timeout(20):
            return await watch(jobs, url=url, token=token, console=self.console, notes=self.notes)

    @staticmethod
    def _text(console: Console) -> str:
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jitter's lower end: come back at once."""
    monkeypatch.setattr("random.random", lambda: 0.0)


def progress(job: str, n: float, **fields: object) -> tuple[str, dict[str, Any]]:
    return "job-progress", {"jobId": job, "progress": n, "status": "active", **fields}


def completed(job: str, **fields: object) -> tuple[str, dict[str, Any]]:
    return "job-completed", {"jobId": job, "result": None, "processingTime": None, **fields}


def failed(job: str, error: str, **fields: object) -> tuple[str, dict[str, Any]]:
    return "job-failed", {"jobId": job, "error": error, **fields}


async def complete(visitor: Visitor) -> None:
    data = await visitor.subscribe()
    for job_id in data["jobIds"]:
        await visitor.say(*completed(job_id))


# --- the board ------------------------------------------------------------


def test_progress_moves_its_row_and_leaves_the_others() -> None:
    board = Board(["a", "b"])

    board.apply(*progress("a", 45, data={"stage": "comparing", "message": "pair 7"}), "e-1", 10.0)

    row = board.rows["a"]
    assert (row.state, row.percent, row.status) == (State.RUNNING, 45, "active")
    assert (row.note, row.event_id) == ("comparing: pair 7", "e-1")
    assert board.rows["b"].state is State.WAITING


def test_a_stage_beside_the_data_is_shown_too() -> None:
    board = Board(["a"])

    board.apply(*progress("a", 1, stage="PROGRESS", data={"current": 1}), None, 0.0)

    assert board.rows["a"].note == "PROGRESS"


def test_other_events_show_as_status() -> None:
    board = Board(["a"])

    board.apply("job-stalled", {"jobId": "a", "status": "active"}, None, 0.0)

    assert board.rows["a"].status == "stalled"


def test_an_event_of_another_job_changes_nothing() -> None:
    assert Board(["a"]).apply(*progress("b", 1), None, 0.0) is None


def test_a_completed_job_is_full_and_shows_time_and_result() -> None:
    board = Board(["a"])

    board.apply(*completed("a", result={"pairs": 3}, processingTime=1500), None, 0.0)

    assert board.rows["a"].line == 'a  100%  completed  in 1.5 s {"pairs":3}'


def test_a_long_result_is_cut() -> None:
    board = Board(["a"])

    board.apply(*completed("a", result="x" * 10_000), None, 0.0)

    assert len(board.rows["a"].line) < 200


def test_a_failed_job_keeps_its_percent_and_shows_why() -> None:
    board = Board(["a"])
    board.apply(*progress("a", 45), None, 0.0)

    board.apply(*failed("a", "ValueError", failedReason="no such wallet"), None, 1.0)

    assert board.rows["a"].line == "a  45%  failed  ValueError: no such wallet"


def test_a_cancelled_job_is_called_so_and_counts_as_failed() -> None:
    board = Board(["a"])

    board.apply(*failed("a", "cancelled", status="cancelled"), None, 1.0)

    assert (board.rows["a"].status, board.exit_code) == ("cancelled", 1)


@pytest.mark.parametrize(
    ("last", "finished", "exit_code"),
    [
        (progress("b", 99), False, 1),
        (completed("b"), True, 0),
        (failed("b", "no"), True, 1),
    ],
)
def test_the_board_is_finished_when_every_job_has_ended(
    last: tuple[str, dict[str, Any]], finished: bool, exit_code: int
) -> None:
    board = Board(["a", "b"])

    board.apply(*completed("a"), None, 0.0)
    board.apply(*last, None, 0.0)

    assert (board.finished, board.exit_code) == (finished, exit_code)


def test_a_job_that_runs_again_has_not_ended() -> None:
    board = Board(["a"])
    board.apply(*failed("a", "no"), None, 0.0)

    board.apply(*progress("a", 5), None, 1.0)

    assert not board.finished
    assert board.rows["a"].elapsed_seconds(3.0) == 3.0


def test_the_clock_of_a_row_runs_from_its_first_event_to_its_end() -> None:
    board = Board(["a"])
    row = board.rows["a"]

    assert row.elapsed_seconds(50.0) is None
    board.apply(*progress("a", 5), None, 100.0)
    assert row.elapsed_seconds(101.0) == 1.0
    board.apply(*completed("a"), None, 102.0)
    assert row.elapsed_seconds(500.0) == 2.0


def test_a_job_named_twice_has_one_row() -> None:
    assert list(Board(["a", "b", "a"]).rows) == ["a", "b"]


def test_a_subscription_asks_from_where_it_is_and_leaves_out_what_was_refused() -> None:
    board = Board(["a", "b", "c"])
    board.apply(*progress("a", 5), "e-7", 0.0)
    board.refuse("c", "forbidden")

    assert board.subscriptions() == [{"jobIds": ["a", "b"], "since": {"a": "e-7"}}]


def test_nothing_from_outside_can_steer_the_terminal() -> None:
    board = Board(["a"])

    board.apply(*failed("a", "\x1b[2Jgone\r\x9b31m"), None, 0.0)

    assert board.rows["a"].note == " [2Jgone 31m"


def test_bars_show_jobs_still_running_first_where_not_all_fit() -> None:
    board = Board([f"job-{n}" for n in range(10)])
    for n in range(8):
        board.apply(*completed(f"job-{n}"), None, 0.0)
    console = Console(file=io.StringIO(), width=120)

    console.print(render(board, 1.0, max_rows=3))

    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "job-8" in shown
    assert "job-9" in shown
    assert "10 jobs, 8 ended" in shown


def test_a_long_note_does_not_squeeze_the_rest() -> None:
    board = Board(["similarity-ABC123"])
    board.apply(*failed("similarity-ABC123", "x" * 500, progress=50), None, 0.0)
    console = Console(file=io.StringIO(), width=100)

    console.print(render(board, 1.0, max_rows=10))

    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert re.match(r"similarity-ABC123  ━{15} {15}   50%  failed  0:00  x+…", line)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:3001", "ws://localhost:3001/job-progress"),
        ("http://localhost:3001/", "ws://localhost:3001/job-progress"),
        ("https://relay.example.org?a=b", "wss://relay.example.org/job-progress?a=b"),
        ("ws://[::1]:3001", "ws://[::1]:3001/job-progress"),
        ("wss://example.org/relay/ws", "wss://example.org/relay/ws"),
    ],
)
def test_an_address_follows_from_a_url(url: str, address: str) -> None:
    assert str(endpoint(url)) == address


@pytest.mark.parametrize("url", ["localhost:3001", "redis://localhost", "http://", "", "http://[x"])
def test_what_is_no_url_of_a_relay_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="it looks like http://localhost:3001"):
        endpoint(url)


@pytest.mark.parametrize(
    ("attempt", "most"), [(0, 0.5), (1, 1.0), (5, 16.0), (6, 20.0), (9999, 20.0)]
)
def test_the_backoff_doubles_up_to_its_bound(attempt: int, most: float) -> None:
    assert backoff_seconds(attempt, 0.0) == 0.0
    assert backoff_seconds(attempt, 1.0) == most


# --- the connection ------------------------------------------------------------


async def test_all_completed_is_exit_code_0_with_a_line_for_each_change() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.say(*progress("a", 45, data={"stage": "comparing"}), id="e-1")
        await visitor.say(*progress("a", 45.2, data={"stage": "comparing"}), id="e-2")
        await visitor.say(*completed("a"), id="e-3")

    outcome = Outcome()
    async with FakeRelay(visit).at_port() as url:
        code = await outcome.watch("a", url=url)

    assert code == 0
    assert outcome.lines == ["a  45%  active  comparing", "a  100%  completed"]
    assert outcome.notes_text == ""


async def test_one_failed_is_exit_code_1_after_the_others_have_ended() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.say(*failed("a", "disk full"))
        await visitor.say(*completed("b"))

    outcome = Outcome()
    async with FakeRelay(visit).at_port() as url:
        code = await outcome.watch("a", "b", url=url)

    assert code == 1
    assert outcome.lines == ["a  0%  failed  disk full", "b  100%  completed"]


async def test_a_refused_job_is_reported_and_the_others_are_followed() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe(a="forbidden")
        await visitor.say(*completed("b"))

    outcome = Outcome()
    async with FakeRelay(visit).at_port() as url:
        code = await outcome.watch("a", "b", url=url)

    assert code == 1
    assert "refused  forbidden: the token does not allow this job" in outcome.lines[0]


async def test_a_refused_batch_refuses_its_jobs() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.greet()
        command = await visitor.socket.receive_json()
        fault = {"code": "bad-request", "message": "no such thing", "temporary": False}
        await visitor.say("error", fault, ref=command["ref"])

    outcome = Outcome()
    async with FakeRelay(visit).at_port() as url:
        code = await outcome.watch("a", url=url)

    assert code == 1
    assert "bad-request: no such thing" in outcome.lines[0]


async def test_it_asks_for_what_came_meanwhile_after_a_lost_connection() -> None:
    asked: list[dict[str, Any]] = []

    async def first(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.say(*progress("a", 45), id="e-1")
        await visitor.say(*progress("b", 1))
        await visitor.say("pong", {})
        visitor.cut()

    async def second(visitor: Visitor) -> None:
        asked.append(await visitor.subscribe())
        await visitor.say(*completed("a"), id="e-2")
        await visitor.say(*completed("b"))

    outcome = Outcome()
    async with FakeRelay(first, second).at_port() as url:
        code = await outcome.watch("a", "b", url=url)

    assert code == 0
    assert asked == [{"jobIds": ["a", "b"], "since": {"a": "e-1"}}]
    assert outcome.notes_text.splitlines() == [
        "connection lost; trying again (Ctrl-C stops)",
        "connected",
    ]


async def test_the_longest_ids_fit_the_relays_limit_of_a_message() -> None:
    jobs = [chr(0x1F600) * 255 + chr(0x1F600 + n) for n in range(50)]

    async def first(visitor: Visitor) -> None:
        for data in [await visitor.subscribe(), await visitor.subscribe()]:
            for job_id in data["jobIds"]:
                await visitor.say(*progress(job_id, 45), id="e" * 64)
        visitor.cut()

    async def second(visitor: Visitor) -> None:
        for data in [await visitor.subscribe(), await visitor.subscribe()]:
            assert len(data["since"]) == 25
            for job_id in data["jobIds"]:
                await visitor.say(*completed(job_id))

    async with FakeRelay(first, second).at_port() as url:
        assert await Outcome().watch(*jobs, url=url) == 0


async def test_a_job_id_that_is_not_utf8_can_still_be_shown() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.greet()
        command = await visitor.socket.receive_json()
        await visitor.say("error", {"code": "invalid-job-id"}, ref=command["ref"])

    outcome = Outcome()
    outcome.console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    async with FakeRelay(visit).at_port() as url:
        assert await outcome.watch("a\udcff", url=url) == 1


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 3008])
async def test_it_comes_back_after_a_close_that_asks_for_it(code: int) -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.socket.close(code=code)

    outcome = Outcome()
    async with FakeRelay(visit, complete).at_port() as url:
        assert await outcome.watch("a", url=url) == 0

    assert f"closed by the relay ({code})" in outcome.notes_text


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 4000])
async def test_it_stays_away_after_any_other_close(code: int) -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.socket.close(code=code, message=b"and why")

    async with FakeRelay(visit).at_port() as url:
        with pytest.raises(WatchError, match=f"{code} and why"):
            await Outcome().watch("a", url=url)


async def test_a_draining_relay_says_when_to_come_back() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.greet(draining=True, retryAfterMs=100)
        await visitor.socket.close(code=1012)

    outcome = Outcome()
    async with FakeRelay(visit, complete).at_port() as url:
        assert await outcome.watch("a", url=url) == 0

    assert "trying again in 0.1 s" in outcome.notes_text


async def test_a_busy_relay_is_asked_again_after_the_time_it_names() -> None:
    relay = FakeRelay(503, 429, complete, headers={"Retry-After": "0"})
    outcome = Outcome()
    async with relay.at_port() as url:
        assert await outcome.watch("a", url=url) == 0

    assert "answers 503; trying again in 0.0 s" in outcome.notes_text


async def test_a_subscription_refused_for_now_is_tried_again() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe(a="rate-limited")

    outcome = Outcome()
    async with FakeRelay(visit, complete).at_port() as url:
        assert await outcome.watch("a", url=url) == 0

    assert "busy (rate-limited)" in outcome.notes_text


async def test_a_relay_that_is_not_there_yet_is_waited_for_and_said_so_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    outcome = Outcome()
    attempts = asyncio.Queue[float]()
    terminal_backoff = backoff_seconds

    def counted(attempt: int, chance: float) -> float:
        attempts.put_nowait(attempt)
        return terminal_backoff(attempt, chance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "backoff_seconds", counted)
        watching = asyncio.create_task(outcome.watch("a", url=f"http://127.0.0.1:{port}"))
        first = [await attempts.get() for _ in range(3)]
        async with FakeRelay(complete).at_port(port):
            code = await watching

    assert (code, first) == (0, [0, 1, 2])
    assert outcome.notes_text.count("cannot reach") == 1
    assert f"ws://127.0.0.1:{port}/job-progress" in outcome.notes_text


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "--token"), (403, "403"), (404, "check --url"), (200, "check --url")],
)
async def test_a_handshake_refused_for_good_ends_it(status: int, advice: str) -> None:
    async with FakeRelay(status).at_port() as url:
        with pytest.raises(WatchError, match=advice):
            await Outcome().watch("a", url=url)


async def test_a_token_goes_with_the_handshake_and_one_that_expired_ends_it() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.socket.close(code=3000)

    relay = FakeRelay(visit)
    async with relay.at_port() as url:
        with pytest.raises(WatchError, match="--token"):
            await Outcome().watch("a", url=url, token="secret")

    assert relay.authorizations == ["Bearer secret"]


async def test_a_relay_that_wants_a_token_is_not_asked_twice() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.greet()
        await visitor.say("error", {"code": "unauthorized", "message": "", "temporary": False})

    async with FakeRelay(visit).at_port() as url:
        with pytest.raises(WatchError, match="--token"):
            await Outcome().watch("a", url=url)


@pytest.mark.parametrize("text", ["hello", "[]", '{"event": 5}', '{"event": "x", "data": 5}'])
async def test_a_server_that_speaks_otherwise_is_no_relay(text: str) -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.socket.send_str(text)

    async with FakeRelay(visit).at_port() as url:
        with pytest.raises(WatchError, match="is no relay"):
            await Outcome().watch("a", url=url)


async def test_a_server_that_stays_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(visitor: Visitor) -> None:
        await visitor.socket.receive()

    monkeypatch.setattr(terminal, "_GREETING_SECONDS", 0.05)
    outcome = Outcome()
    async with FakeRelay(silent, complete).at_port() as url:
        assert await outcome.watch("a", url=url) == 0

    assert "does not answer" in outcome.notes_text


async def test_what_the_relay_says_of_redis_is_passed_on() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.greet(redis="disconnected")
        await visitor.greet(gap=True)
        await visitor.say(*completed("a"))

    outcome = Outcome()
    async with FakeRelay(visit).at_port() as url:
        await outcome.watch("a", url=url)

    assert outcome.notes_text.splitlines() == [
        "the relay has lost Redis and waits for it",
        "the relay has Redis back",
        "events may have been missed meanwhile",
    ]


async def test_secrets_in_the_url_are_not_shown() -> None:
    outcome = Outcome()
    async with FakeRelay(503, complete).at_port() as url:
        await outcome.watch("a", url=url.replace("//", "//me:hidden@") + "?token=hidden")

    assert "answers 503" in outcome.notes_text
    assert "hidden" not in outcome.notes_text


async def test_a_terminal_gets_bars_with_notes_above_them() -> None:
    outcome = Outcome()
    outcome.console = Console(
        file=io.StringIO(), width=120, height=20, force_terminal=True, legacy_windows=False,
        _environ={"TERM": "xterm"},
    )  # fmt: skip
    async with FakeRelay(503, complete).at_port() as url:
        code = await outcome.watch("a", url=url)

    shown = "\n".join(outcome.lines)
    assert code == 0
    assert "━" in shown
    assert "100%" in shown
    assert "answers 503" in shown
    assert outcome.notes_text == ""
