"""One socket after the upgrade: reads messages, takes writes, one close handshake (RFC 6455 §5-7).

Owns the transport. Every way a connection ends goes through `close` or `connection_lost`, and through
`Gateway.closed` exactly once. While a subscribe waits for Redis, or a token for the key that proves it, the
socket is not read, so a session's answers keep the order of its requests and nothing piles up. In one turn of the
loop a connection has so much read and no more, however much it sends: the others wait for it.
"""

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from relay.core.closing import CloseReason
from relay.core.errors import SessionError
from relay.core.framing import (
    FrameReader,
    Message,
    Opcode,
    close_code,
    close_frame,
    control_frame,
)
from relay.core.grants import Grants
from relay.core.outbox import OVERFLOW
from relay.core.rights import Proof
from relay.core.session import Lookup, Session
from relay.core.wire import WEBSOCKET
from relay.web.flusher import pour

if TYPE_CHECKING:
    from relay.web.gateway import Gateway

# How long a peer may take to answer our close frame, and to take what it was sent before it.
CLOSE_TIMEOUT_SECONDS: Final = 5.0
# What one connection has read in a turn: 64 of the smallest frames cost some 0.3 ms. After a large read the loop has
# to have its turn, too, as libuv would go on reading from this one up to 32 times.
FRAMES_A_TURN: Final = 64
LARGE_READ_BYTES: Final = 16 * 1024
# Nothing that still comes is read after these: the stream has no more frame boundaries, or the client was told to
# go for what it sends.
_UNREADABLE: Final = frozenset(
    {
        CloseReason.PROTOCOL_ERROR,
        CloseReason.BAD_UTF8,
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.TOO_MANY_ERRORS,
        CloseReason.TOO_MANY_FRAMES,
        CloseReason.OPERATOR,
    }
)


class WebSocket(asyncio.Protocol):
    """The protocol of an upgraded transport.

    `last_seen_at` is when the last byte came (loop time, seconds); the counters are for the log line.
    """

    transport_name = WEBSOCKET.transport
    __slots__ = (
        "_descriptor", "_gateway", "_inbox", "_is_clear", "_is_resting", "_pongs", "_reader", "_timer",
        "_transport", "last_seen_at", "messages_received", "opened_at", "reason", "remote", "sent_bytes", "session",
    )  # fmt: skip

    def __init__(
        self,
        gateway: "Gateway",
        transport: asyncio.Transport,
        connection_id: str,
        remote: str,
        grants: Grants | None,
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._is_clear = True  # nothing that was written waits in the transport
        self._reader = FrameReader(gateway.max_message_bytes)
        self._inbox: deque[Message] | None = None  # what came behind a message that has to wait
        self._is_resting = False  # until the loop's next turn
        self._pongs = b""  # not yet sent
        self._timer: asyncio.TimerHandle | None = None
        self.remote = remote
        self.session = Session(gateway.hub, connection_id, self, grants)
        self.opened_at = self.last_seen_at = gateway.loop.time()
        self.reason: CloseReason | None = None  # set when the end has begun
        self.sent_bytes = 0
        self.messages_received = 0

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        self.last_seen_at = self._gateway.loop.time()
        if self.reason not in _UNREADABLE:
            messages = self._frames(data)
            if self._inbox is not None:
                self._inbox.extend(messages)
            else:
                self._read(messages)
        if len(data) >= LARGE_READ_BYTES:
            self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._descriptor = -1  # the loop closes it now, and gives it to whoever comes next
        if self.reason is None:
            self.reason = CloseReason.CONNECTION_LOST
        self._inbox = None
        self.session.end()
        self._gateway.closed(self)

    def pause_writing(self) -> None:
        self.session.outbox.becomes(congested=True)

    def resume_writing(self) -> None:
        self.session.outbox.becomes(congested=False)
        self.flush()

    # What the relay tells

    def start(self, response: bytes) -> None:
        """Send the answer to the handshake, and what the session already has to say, in one piece."""
        self._write(response + self.session.outbox.take(self._gateway.hub.high_water_bytes))

    def flush(self) -> None:
        """Hand to the transport what it takes; what is owed from history follows."""
        if self.reason is not None:
            return
        session = self.session
        outbox = session.outbox
        # Nearly always what passes through is all there is.
        if not outbox.congested:
            if self._pongs:
                pongs, self._pongs = self._pongs, b""
                self._write(pongs)
            data = outbox.take_flow()
            if data is not None:
                self._write(data)
            if session.backfill is None and outbox.held is None:
                return
        room_bytes = self._gateway.hub.high_water_bytes
        if pour(self.session, self._write, room_bytes) is OVERFLOW:
            self.close(CloseReason.SLOW_CONSUMER)

    def ping(self) -> None:
        """Send a ping frame; skipped while the transport is congested: what it holds asks as well."""
        if self.reason is None and not self.session.outbox.congested:
            self._write(control_frame(Opcode.PING))

    def close(self, reason: CloseReason) -> None:
        """Begin the end: what is pending if the transport takes it, a close frame, then the close
        handshake. Idempotent: the first reason stands."""
        self.flush()
        if self.reason is not None:
            return
        self.reason = reason
        self.session.end()
        self._write(close_frame(reason.code, reason.text))
        self._cut_off_later()
        if reason in _UNREADABLE and self._transport.can_write_eof():
            # Our FIN tells the peer to close. Closing now, with bytes of its unread, would reset the
            # connection, and the close frame could go with it.
            self._transport.write_eof()
        if self._inbox is not None:
            self._inbox = None
            self._resume()

    def cut_off(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # Inside

    def _frames(self, data: bytes) -> deque[Message]:
        """The messages of the next frames, which the client pays for where they are none."""
        reader = self._reader
        messages = reader.feed(data, FRAMES_A_TURN)
        if reader.bare_frames and not self.session.spend_frames(
            reader.bare_frames, self.last_seen_at
        ):
            reader.fail(CloseReason.TOO_MANY_FRAMES)
        return deque(messages)

    def _rest(self) -> None:
        """Read nothing more in this turn of the loop."""
        if not self._is_resting and not self._transport.is_closing():
            self._is_resting = True
            self._transport.pause_reading()
            self._gateway.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_resting = False
        if self._inbox is not None:
            return  # it waits, and reads on when that is over
        if self._reader.is_behind and self.reason not in _UNREADABLE:
            self._read(self._frames(b""))
        self._resume()

    def _resume(self) -> None:
        """Read on, unless something still stands against it."""
        if not self._is_resting and self._inbox is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _read(self, messages: deque[Message]) -> None:
        """Obey messages until they are used up, or one has to wait."""
        self._gateway.flusher.gather()
        while messages:
            try:
                pending = self._obey(messages.popleft())
            except SessionError as error:
                self.close(error.reason)
                continue
            except Exception:  # noqa: BLE001  a bug of ours costs this session and no other
                self._fail()
                continue
            if pending is not None:
                self._inbox = messages
                self._transport.pause_reading()
                if isinstance(pending, Proof):
                    self._gateway.prove(pending, self._waited)
                else:
                    self._gateway.look_up(pending, self._waited)
                break
        else:
            if self._reader.fault is not None:
                self.close(self._reader.fault)
            elif self._reader.is_behind:
                self._rest()
        if self._pongs:
            self.flush()
        self._gateway.flusher.flush()

    def _obey(self, message: Message) -> Lookup | Proof | None:
        if message.opcode is Opcode.CLOSE:
            self._close_received(message.data)
        elif self.reason is not None:
            pass  # the end has begun: only the peer's close frame still matters
        elif message.opcode is Opcode.TEXT:
            self.messages_received += 1
            return self.session.receive(message.data, self.last_seen_at)
        elif message.opcode is Opcode.BINARY:
            raise SessionError(CloseReason.BINARY_FRAME)
        elif message.opcode is Opcode.PING:
            # RFC 6455 §5.5.3: of several that could not be answered the newest is enough.
            pong = control_frame(Opcode.PONG, message.data)
            self._pongs = pong if self.session.outbox.congested else self._pongs + pong
        return None

    def _waited(self) -> None:
        # This may be called at once; going on in the next turn keeps the stack flat however many
        # subscribes stand in one read.
        self._gateway.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        messages, self._inbox = self._inbox, None
        if messages is None:
            return  # closed meanwhile
        try:
            self.session.resolve()
        except SessionError as error:
            self.close(error.reason)
        except Exception:  # noqa: BLE001  as above
            self._fail()
        self._resume()
        self._read(messages)

    def _fail(self) -> None:
        """A bug of ours: this session ends, the others go on."""
        self._gateway.log.exception("session_failed", connection_id=self.session.connection_id)
        self.close(CloseReason.INTERNAL_ERROR)

    def _close_received(self, data: bytes) -> None:
        if self.reason is None:
            self.flush()
            self.reason = CloseReason.CLIENT_CLOSED
            self.session.end()
            self._write(close_frame(close_code(data)))
        self._cut_off_later()
        self._transport.close()

    def _cut_off_later(self) -> None:
        if self._timer is None:
            self._timer = self._gateway.loop.call_later(
                CLOSE_TIMEOUT_SECONDS, self._transport.abort
            )

    def _write(self, data: bytes) -> None:
        """Send, past the transport where nothing waits in it: so an event to many costs a tenth less."""
        transport = self._transport
        size = len(data)
        sent = 0
        if self._is_clear:
            try:  # noqa: SIM105  contextlib.suppress takes a fifth of what the write does
                sent = os.write(self._descriptor, data)
            except OSError:
                pass  # it is full, or broken: the transport finds out which, and says so
        if sent < size:
            transport.write(data[sent:])
            self._is_clear = not transport.get_write_buffer_size()
        self.sent_bytes += size
        self._gateway.stats.delivered_bytes += size
