"""A WebSocket echo server on the relay's framing: RFC 6455 with nothing of the relay around it.

    python -m tests.autobahn.echo

It prints its URL, on a free port, as the first line. It trusts the handshake (§4.2.2 says only how
to answer it): what is judged here is how frames are read and connections closed.
"""

import asyncio
import base64
import hashlib
import sys

from relay.core.event import text_frame
from relay.core.framing import FrameReader, Message, Opcode, close_code, close_frame, control_frame

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# FIN and the opcode, RFC 6455 §5.2.
_BINARY_START = bytes((0x80 | Opcode.BINARY,))


class Echo(asyncio.Protocol):
    """One connection: a handshake, then every message back as it came."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._head: bytes | None = b""  # of the request; None once it is answered
        self._reader = FrameReader(_MAX_MESSAGE_BYTES)
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = None
            self._transport.write(_switching_protocols(head))
        for message in self._reader.feed(data):
            if not self._closing:
                self._answer(message)
        if self._reader.fault is not None:
            self._close(close_frame(self._reader.fault.code, self._reader.fault.text))

    def _answer(self, message: Message) -> None:
        match message.opcode:
            case Opcode.TEXT:
                self._transport.write(text_frame(message.data))
            case Opcode.BINARY:
                self._transport.write(_BINARY_START + text_frame(message.data)[1:])
            case Opcode.PING:
                self._transport.write(control_frame(Opcode.PONG, message.data))
            case Opcode.CLOSE:
                self._close(close_frame(close_code(message.data)))
            case Opcode.PONG | Opcode.CONTINUATION:
                pass  # an unasked pong wants no answer; no whole message is a continuation

    def _close(self, frame: bytes) -> None:
        """Send the close frame and the end of the stream; what still comes is read and ignored.

        Closing at once would answer bytes that are still under way with a reset, and a reset may
        overtake the close frame.
        """
        if not self._closing:
            self._closing = True
            self._transport.write(frame)
            self._transport.write_eof()


def _switching_protocols(head: bytes) -> bytes:
    fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:])
    keys = [value.strip() for name, value in fields.items() if name.lower() == b"sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1(keys[0] + _ACCEPT_GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    sys.stdout.write(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
