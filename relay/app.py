"""The composition root: builds each part once, starts them in order, drains them in reverse.

No module-level state: the command line, the demo, a test and somebody else's process all use `Relay`.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from relay import logs, systemd
from relay.auth.revocations import Revocations
from relay.auth.tokens import JwtAuthenticator, make_authenticator
from relay.build import is_compiled
from relay.catchup import CatchUp
from relay.clock import now_ms
from relay.config import ConfigError
from relay.core.errors import InvalidReason
from relay.core.event import JobEvent, Source
from relay.core.history import History
from relay.core.index import Index
from relay.core.remembered import CHANNELS_BESIDE_HISTORY
from relay.core.router import Router
from relay.core.session import MAX_QUEUE_SNAPSHOTS, Hub, Lookup, Session
from relay.core.stats import Stats
from relay.intake import Intake
from relay.metrics import Metrics, RelayCollector
from relay.settings import Config, is_loopback
from relay.sources.celery import CelerySource
from relay.sources.channel import ChannelSource
from relay.sources.template import ChannelTemplate
from relay.upstream.connection import RedisSettings, make_client
from relay.upstream.link import Leaving
from relay.upstream.lookup import TIMEOUT_SECONDS, Lookups
from relay.upstream.queue_lookup import QueueLookups
from relay.upstream.recall import Recall
from relay.upstream.subscription import Subscription
from relay.web import listener
from relay.web.admin import Admin, Readiness
from relay.web.credentials import Carriers
from relay.web.dashboard import Dashboard
from relay.web.front import Door, Front
from relay.web.gatekeeper import Gatekeeper, Rules
from relay.web.gateway import Gateway
from relay.web.http_protocol import HttpProtocol
from relay.web.jobs import Jobs
from relay.web.operators import Operators
from relay.web.origin import OriginPolicy
from relay.web.overview import Bounds, Overview
from relay.web.routes import PUBLIC_PROBES, admin_app, public_app
from relay.web.sse import EventStreams
from relay.web.takeover import Takeover
from relay.web.visit import Reception

TICK_SECONDS: Final = 1.0
INVALID_LINES_PER_SECOND: Final = 5
HTTP_SHUTDOWN_SECONDS: Final = 2.0
# What a reload may change; everything else is said to need a restart.
RELOADABLE: Final = ("log.level", "limits", "server.allowed_origins", "server.allowed_hosts")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the relay listens, as URLs."""

    public: str
    admin: str


def build_sources(config: Config) -> dict[str, Source]:
    """The sources by name. Raises ConfigError for a template that is none."""
    built: dict[str, Source] = {}
    faults = []
    for name, source in config.source.items():
        if source.kind == "celery":
            built[name] = CelerySource(source.key_prefix)
            continue
        try:
            built[name] = ChannelSource(ChannelTemplate.parse(source.channel))
        except ValueError as error:
            faults.append(f"source.{name}.channel: {source.channel!r}: {error}")
    patterns = [source.pattern for source in built.values()]
    for name, built_source in built.items():
        if patterns.count(built_source.pattern) > 1:
            faults.append(
                f"source.{name}: another source has the same pattern {built_source.pattern};"
                " give each its own channels"
            )
    if faults:
        raise ConfigError(faults)
    return built


class Relay:
    """One relay. Make it inside a running event loop; then `start`, `run` until cancelled, `drain`, `stop`.

    Args:
        routes: further HTTP routes for the public listener.
    """

    def __init__(self, config: Config, *, routes: Sequence[web.AbstractRouteDef] = ()) -> None:
        self._config = config
        self._listening_as = config.server
        self._loop = asyncio.get_running_loop()
        self._log = structlog.stdlib.get_logger()
        self._stats = Stats()
        self._accepts = True  # whether there was a descriptor left for one more connection
        self._invalid_lines = logs.RateLimited(INVALID_LINES_PER_SECOND)
        sources = build_sources(config)
        epoch = secrets.token_hex(4)
        self._index: Index[Session] = Index()
        self._router = Router(
            sources={source.pattern.encode(): source for source in sources.values()},
            index=self._index,
            stats=self._stats,
            max_payload_bytes=config.limits.max_payload_bytes,
            max_channels=CHANNELS_BESIDE_HISTORY + config.history.max_jobs,
            on_invalid=self._on_invalid,
            on_overflow=lambda session: self._gateway.overflowed(session),
        )
        self._history = self._router.history = History(
            epoch=epoch,
            understand=self._router.understand,
            on_refused=self._router.refused,
            max_events=config.history.max_events,
            max_jobs=config.history.max_jobs,
            max_bytes=config.history.max_bytes,
            ttl_seconds=config.history.ttl_seconds,
            exposed=config.history.backend != "off",
            keeps_unwatched=config.history.backend == "memory",
            is_watched=self._index.named.__contains__,
        )
        settings = RedisSettings(
            url=config.redis.url.get_secret_value(),
            username=config.redis.username,
            password=config.redis.password.get_secret_value(),
            tls_ca_file=config.redis.tls_ca_file,
            connect_timeout_seconds=config.redis.connect_timeout_seconds,
        )
        self._intake = Intake(self._loop, self._router, self._stats)
        self._subscription = self._intake.source = Subscription(
            settings,
            [source.pattern for source in sources.values()],
            health_check_seconds=config.redis.health_check_seconds,
            backoff_max_seconds=config.redis.backoff_max_seconds,
            on_batch=self._intake.take,
            on_up=self._on_up,
            on_down=self._on_down,
        )
        self._recall = Recall(
            self._router,
            self._history,
            make_client=partial(make_client, settings, TIMEOUT_SECONDS),
            celery=[one for one in sources.values() if isinstance(one, CelerySource)],
            durable=_stored_form(sources) if config.history.backend == "redis" else None,
            prefix=config.history.prefix,
            max_events=config.history.max_events,
            barrier=self._subscription.barrier,
            clock=lambda: (self._loop.time(), now_ms()),
        )
        self._lookups = Lookups(
            read=self._recall.read,
            keys_of=self._recall.keys_of,
            on_read=self._recall.merge,
            hold=self._router.hold,
            release=self._router.release,
            is_watched=lambda job: job in self._index.named or self._recall.is_late(job),
            is_connected=lambda: self._stats.redis_up,
        )
        self._queue_lookups = QueueLookups(
            read=partial(self._recall.newest_of_queue, limit=MAX_QUEUE_SNAPSHOTS),
            needs_lookup=self._recall.needs_lookup,
            request=self._lookups.request,
            on_late=self._recall.tell_queues,
            is_watched=self._index.queues.__contains__,
            is_connected=lambda: self._stats.redis_up,
        )
        self._revocations = Revocations()
        self._authenticator: JwtAuthenticator | None = None
        if config.auth.mode == "jwt":
            self._authenticator = make_authenticator(
                config.auth, clock_ms=now_ms, revocations=self._revocations
            )
        self._gatekeeper = Gatekeeper(
            _rules(config),
            authenticator=self._authenticator,
            revocations=self._revocations,
            stats=self._stats,
            clock_ms=now_ms,
        )
        self._gateway = Gateway(
            self._make_hub(),
            flusher=self._intake.flusher,
            look_up=self._look_up,
            prove=self._gatekeeper.prove,
            clock_ms=now_ms,
            other_connections=self._http_connections,
            epoch=epoch,
            interval_seconds=config.heartbeat.interval_seconds,
            timeout_seconds=config.heartbeat.timeout_seconds,
            max_message_bytes=config.limits.max_message_bytes,
            max_connections=config.limits.max_connections,
            max_connections_per_address=config.limits.max_connections_per_address,
            handshake_timeout_seconds=config.limits.handshake_timeout_seconds,
        )
        self._catch_up = CatchUp(
            self._stats,
            self._history,
            self._router,
            self._index,
            recall=self._recall,
            lookups=self._lookups,
            queue_lookups=self._queue_lookups,
            durable=config.history.backend == "redis",
            tell_all=self._gateway.tell_all,
        )
        self._build_web(routes)
        self._tell_details(config.log.level == "debug")

    # Life

    async def start(self) -> Addresses:
        """Listen. Raises OSError where an address cannot be had."""
        server, admin = self._config.server, self._config.admin
        await self._public.setup()
        await self._admin.setup()
        if server.unix_socket:
            public = [listener.bind_unix(server.unix_socket)]
        else:
            public = listener.bind(
                server.host,
                server.port,
                reuse_port=server.reuse_port,
                unsent_bytes=self._config.backpressure.unsent_bytes,
            )
            # A page that was led here by DNS rebinding cannot but name this port.
            self._door.policy = replace(self._door.policy, port=public[0].getsockname()[1])
        addresses = Addresses(listener.url(public), "")
        for sock in public:
            self._servers.append(await self._listen(sock, lambda: Front(self._door)))
        bound = listener.bind(admin.host, admin.port)
        addresses = Addresses(addresses.public, listener.url(bound))
        for sock in bound:
            self._servers.append(await self._listen(sock, partial(self._new_http, self._admin)))
        self._log.info(
            "relay_listening",
            public=addresses.public,
            admin=addresses.admin,
            compiled=is_compiled(),
        )
        return addresses

    async def run(self) -> None:
        """Read Redis, beat, look up and tick, until cancelled; a bug in any of them ends all."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._subscription.run())
            tasks.create_task(self._lookups.run())
            tasks.create_task(self._queue_lookups.run())
            tasks.create_task(self._catch_up.run())
            tasks.create_task(self._gateway.beat())
            tasks.create_task(self._dashboard.run())
            if self._config.auth.mode != "none":
                tasks.create_task(self._gateway.expire())
            if self._authenticator is not None:
                tasks.create_task(self._authenticator.run())
            tasks.create_task(self._tick())

    async def drain(self) -> None:
        """Readiness falls, every client is told and closed, spread over `server.drain_seconds`."""
        self._log.info("relay_draining", connections=len(self._gateway))
        await self._gateway.drain(self._config.server.drain_seconds)

    async def stop(self) -> None:
        """Let go of every address and connection."""
        for server in self._servers:
            server.close()
        self._door.close()
        self._gatekeeper.close()
        self._gateway.cut_off()
        self._lookups.close()
        await self._public.cleanup()
        await self._admin.cleanup()
        await self._recall.aclose()
        self._log.info("relay_stopped")

    def reload(self, config: Config) -> list[str]:
        """Take over what can be changed while running; returns the settings that need a restart.

        Raises:
            ConfigError: a key cannot be read; then nothing has changed.
        """
        mode = self._config.auth.mode
        if config.auth.mode == mode:
            if self._authenticator is not None:
                self._authenticator.reload(config.auth)
            self._gatekeeper.rules = _rules(config)
        limits, hub, gateway = config.limits, self._gateway.hub, self._gateway
        logs.set_level(config.log.level)
        self._tell_details(config.log.level == "debug")
        hub.max_subscriptions = limits.max_subscriptions
        hub.max_errors = limits.max_errors
        hub.messages_per_second = limits.messages_per_second
        hub.messages_burst = limits.messages_burst
        gateway.max_message_bytes = limits.max_message_bytes
        gateway.max_connections = limits.max_connections
        gateway.max_connections_per_address = limits.max_connections_per_address
        gateway.handshake_timeout_seconds = limits.handshake_timeout_seconds
        self._router.max_payload_bytes = limits.max_payload_bytes
        self._door.timeout_seconds = limits.handshake_timeout_seconds
        # What is listened on stays as it is until a restart; only the lists change.
        server = self._listening_as.model_copy(
            update={
                "allowed_origins": config.server.allowed_origins,
                "allowed_hosts": config.server.allowed_hosts,
            }
        )
        self._door.policy = _policy(self._config.model_copy(update={"server": server}))
        changed = _changed(self._config, config)
        reloadable: tuple[str, ...] = (*RELOADABLE, "auth.")
        if config.auth.mode != mode:
            # What belongs to another mode has to wait for it.
            config = config.model_copy(update={"auth": self._config.auth})
            reloadable = RELOADABLE
        self._config = config
        return [key for key in changed if not key.startswith(reloadable)]

    # What upstream tells

    def _on_up(self) -> None:
        self._log.info("redis_subscribed", url=self._config.redis.shown_url)
        self._catch_up.came_up()
        self._intake.on_up()

    def _on_down(self, leaving: Leaving) -> None:
        self._catch_up.went_down(leaving.doubt_seconds, is_loss=leaving.is_loss)

    def _on_invalid(
        self, reason: InvalidReason, channel: bytes, error: Exception | None = None
    ) -> None:
        suppressed = self._invalid_lines.admit(self._loop.time())
        if suppressed is not None:
            self._log.warning(
                "message_invalid",
                reason=reason.value,
                channel=channel.decode(errors="replace"),
                suppressed=suppressed,
                exc_info=error,
            )

    def _on_routed(self, event: JobEvent, progress: int | float | None) -> None:
        self._log.debug(
            "event_routed", job_id=event.job_id, event_name=event.name, progress=progress
        )

    def _tell_details(self, wanted: bool) -> None:
        """Have the core tell of each event and subscription, or spare it the calls."""
        self._router.on_routed = self._on_routed if wanted else None
        self._router.on_published = self._on_published if wanted else None
        self._gateway.hub.on_subscribed = self._on_subscribed if wanted else None

    def _on_published(self, event: JobEvent, clients: int) -> None:
        self._log.debug(
            "event_published", job_id=event.job_id, event_name=event.name, clients=clients
        )

    def _on_subscribed(self, session: Session, job_id: str) -> None:
        self._log.debug("job_subscribed", connection_id=session.connection_id, job_id=job_id)

    # Parts

    def _look_up(self, lookup: Lookup, done: Callable[[], None]) -> None:
        if lookup.queue is not None:
            self._queue_lookups.request(lookup.queue, done)
        else:
            self._lookups.request(lookup.job_ids, done)

    def _make_hub(self) -> Hub:
        config = self._config
        return Hub(
            index=self._index,
            history=self._history,
            stats=self._stats,
            position=lambda: self._router.seq,
            needs_lookup=self._recall.needs_lookup,
            hold=self._router.hold,
            release=self._router.release,
            auth_mode=config.auth.mode,
            stores_queues=config.history.backend == "redis",
            wake=self._intake.flusher.wake,
            heartbeat_seconds=config.heartbeat.interval_seconds,
            high_water_bytes=config.backpressure.high_water_bytes,
            max_outbox_bytes=config.backpressure.max_outbox_bytes,
            max_subscriptions=config.limits.max_subscriptions,
            max_errors=config.limits.max_errors,
            messages_per_second=config.limits.messages_per_second,
            messages_burst=config.limits.messages_burst,
        )

    def _build_web(self, routes: Sequence[web.AbstractRouteDef]) -> None:
        config = self._config
        self._servers: list[asyncio.Server] = []
        metrics = Metrics(RelayCollector(self._stats, self._history, lambda: self._index.counts))
        admin = Admin(
            lambda: Readiness(self._stats.redis_up, self._gateway.draining), metrics.render
        )
        self._door = Door(
            self._gateway,
            self._gatekeeper,
            http=lambda: self._new_http(self._public),
            path=config.server.path,
            policy=_policy(config),
            timeout_seconds=config.limits.handshake_timeout_seconds,
            probes=PUBLIC_PROBES if config.admin.public_health else (),
        )
        reception = Reception(self._gateway, self._gatekeeper, lambda: self._door.policy)
        jobs = Jobs(self._gateway, reception)
        public = public_app(
            jobs,
            EventStreams(self._gateway, reception),
            path=config.server.path,
            upgrade=Takeover(
                self._gateway,
                self._gatekeeper,
                path=config.server.path,
                policy=lambda: self._door.policy,
            ).upgrade,
            policy=lambda: self._door.policy,
            on_rejected=partial(self._gateway.rejected, event="request_rejected"),
            admin=admin if config.admin.public_health else None,
            takes_cookies=lambda: bool(self._gatekeeper.rules.carriers.cookie),
            extra=routes,
        )
        self._public = _runner(public)
        history = config.history
        bounds = Bounds(
            backend=history.backend, max_jobs=history.max_jobs, max_bytes=history.max_bytes
        )
        self._dashboard = Dashboard(Overview(self._gateway, bounds), jobs)
        operators = Operators(self._gateway, self._revocations, now_ms)
        self._admin = _runner(
            admin_app(
                admin,
                operators,
                self._dashboard,
                config.admin.allowed_hosts,
                token=config.admin.token.get_secret_value(),
                loopback=is_loopback(config.admin.host),
            )
        )

    async def _listen(
        self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol]
    ) -> asyncio.Server:
        if sock.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(
                protocol, sock=sock, backlog=listener.BACKLOG
            )
        return await self._loop.create_server(protocol, sock=sock, backlog=listener.BACKLOG)

    def _new_http(self, runner: web.AppRunner) -> asyncio.Protocol:
        assert runner.server is not None
        return HttpProtocol(
            runner.server,
            loop=self._loop,
            timeout_seconds=self._door.timeout_seconds,
            on_rejected=self._gateway.count_rejected,
        )

    def _http_connections(self) -> int:
        server = self._public.server
        return len(server.connections) if server is not None else 0

    def _look_at_descriptors(self) -> None:
        accepts = listener.accepts()
        if self._accepts and not accepts:
            self._log.error(
                "descriptors_exhausted", connections=len(self._gateway),
                advice="raise LimitNOFILE= or ulimit -n above limits.max_connections",
            )  # fmt: skip
        elif accepts and not self._accepts:
            self._log.info("descriptors_available", connections=len(self._gateway))
        self._accepts = accepts

    async def _tick(self) -> None:
        """Once a second: forget old jobs, measure the loop, tell the supervisor that we live."""
        tell_every = systemd.watchdog_interval_seconds()
        told_at = due_at = self._loop.time()
        while True:
            due_at += TICK_SECONDS
            await asyncio.sleep(due_at - self._loop.time())
            now = self._loop.time()
            self._stats.loop_lag_seconds = max(0.0, now - due_at)
            due_at = max(due_at, now - TICK_SECONDS)
            self._history.expire(now)
            self._look_at_descriptors()
            if tell_every is not None and now - told_at >= tell_every - TICK_SECONDS:
                systemd.notify(systemd.WATCHDOG)
                told_at = now


def _stored_form(sources: Mapping[str, Source]) -> Source:
    """The source whose payload forms durable history is written in. Raises ConfigError: there is none."""
    for source in sources.values():
        if isinstance(source, ChannelSource):
            return source
    raise ConfigError(['history.backend: "redis" needs a source of kind "channel" beside it'])


def _policy(config: Config) -> OriginPolicy:
    server = config.server
    return OriginPolicy(
        allowed_origins=server.allowed_origins,
        allowed_hosts=server.allowed_hosts,
        trusted_proxies=server.trusted_proxies,
        loopback=server.is_loopback,
        unix=bool(server.unix_socket),
        check_host=config.auth.mode == "none",
    )


def _rules(config: Config) -> Rules:
    auth = config.auth
    return Rules(
        mode=auth.mode,
        carriers=Carriers(cookie=auth.cookie, allow_query_token=auth.allow_query_token),
        proxy_header=auth.proxy_header,
        proxy_secret=auth.proxy_secret.get_secret_value(),
    )


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app,
        handle_signals=False,
        handler_cancellation=True,  # a long poll whose client has gone must not wait on
        access_log=None,
        shutdown_timeout=HTTP_SHUTDOWN_SECONDS,
    )


def _changed(old: Config, new: Config) -> list[str]:
    """The settings that differ, as section.key."""
    before, after = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}"
        for section, values in after.items()
        for key in {**before[section], **values}
        if before[section].get(key) != values.get(key)
    ]
