"""An HTTP/1.1 proxy in a thread that passes requests to one server and puts faults between.

Bodies are held in memory: it is meant for small files.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit
from weakref import WeakSet

from tests.servers.background import Listener, listening
from tests.servers.faults import REFUSED, Dealer, Fault, Plan
from tests.servers.programs import HOST

END = b"\r\n\r\n"
ENDLESS = 2**40
PAGE = b"<!doctype html><html><title>Log in</title><p>Please accept the terms of this network.</p></html>"
ERRORS = {
    "error 500": ("500 Internal Server Error", "SlowDown"),
    "error 503": ("503 Slow Down", "SlowDown"),
    **REFUSED,
}
"""Status and code of errors, by kind of fault."""


@dataclass(frozen=True)
class Message:
    """A request or an answer."""

    start: str  # its first line
    # (name in lower case, value), without those that say how long the body is
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""  # decoded
    length: str | None = None  # what the answer to a HEAD says of the body that it does not have

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for key, value in self.headers if key == name), None)

    def without(self, *names: str) -> "Message":
        """The same with some headers left out."""
        kept = tuple((key, value) for key, value in self.headers if key not in names)
        return replace(self, headers=kept)

    def head(self, *extra: str) -> bytes:
        """First line and headers, with the length of the body."""
        lines = [self.start, *(f"{key}: {value}" for key, value in self.headers), *extra]
        length = str(len(self.body)) if self.length is None else self.length
        return ("\r\n".join([*lines, f"content-length: {length}"])).encode("latin-1") + END

    def encode(self) -> bytes:
        """All bytes of it."""
        return self.head() + self.body


class Proxy(Dealer, Listener):
    """A running proxy."""

    def __init__(self, upstream: str, plan: Plan) -> None:
        Dealer.__init__(self, plan)
        Listener.__init__(self)
        parts = urlsplit(upstream)
        assert parts.scheme == "http", upstream
        assert parts.hostname is not None, upstream
        self._path = parts.path
        self._upstream = (parts.hostname, parts.port or 80)
        self._shifted: WeakSet[asyncio.StreamWriter] = WeakSet()
        self._earlier: deque[bytes] = deque(maxlen=8)

    @property
    def url(self) -> str:
        """Where it listens, with the path of the upstream URL."""
        return f"http://{HOST}:{self.port}{self._path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while await self._answer(reader, writer):
            pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request, pass it on and answer it; returns whether the connection goes on."""
        request = await _read_head(reader)
        if request is None:
            return False
        method, target, _ = request.start.split(" ", 2)
        assert request.header("transfer-encoding") is None, "uploads of unknown length"
        count = int(request.header("content-length") or 0)
        # Where answers may be taken for those to other requests, nobody could say which request met a fault.
        fault = None if writer in self._shifted else self.deal(method, target, upload=count > 0)
        kind = fault.kind if fault else ""
        if fault and kind == "refused":
            return self._reset(fault, writer)
        if request.header("expect"):
            writer.write(b"HTTP/1.1 100 Continue" + END)
            request = request.without("expect")
        if fault and kind == "cut request":
            await reader.readexactly(count // 2)
            return self._reset(fault, writer)
        request = replace(request, body=await reader.readexactly(count))
        if fault and kind == "stall":
            self.record(fault)
            await asyncio.sleep(self.plan.stall_s)
            return False
        if fault and kind in ERRORS:
            self.record(fault)
            status, code = ERRORS[kind]
            text = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{kind}</Message></Error>"
            )
            writer.write(Message(f"HTTP/1.1 {status}", (), text.encode()).encode())
            return True
        if fault and kind == "redirect":
            self.record(fault)
            nowhere = (("location", f"http://{HOST}:9{target}"),)
            writer.write(Message("HTTP/1.1 307 Temporary Redirect", nowhere).encode())
            return True
        if fault and kind.endswith("upload"):
            request = replace(request, body=self._damage(kind.split()[0], request.body, fault))
        answer = await self._ask(request, method)
        if (
            reader.at_eof()
        ):  # the client has given up; it has not seen this fault, but a slow server
            return False
        if fault and kind.endswith("upload"):
            self.record(fault)
        if fault and kind == "lost answer":
            return self._reset(fault, writer)
        if fault and kind == "cut head":
            self.record(fault)
            writer.write(answer.head()[: len(answer.head()) // 2])
            return False
        whole = method == "GET" and answer.start.split()[1] in ("200", "206") and answer.body
        if fault and whole and not kind.endswith("upload"):
            self.record(fault)
            return await self._answer_badly(answer, fault, writer)
        if whole:
            self._earlier.append(answer.body)
        writer.write(answer.encode() if method != "HEAD" else answer.head())
        await writer.drain()
        return True

    async def _answer_badly(
        self, answer: Message, fault: Fault, writer: asyncio.StreamWriter
    ) -> bool:
        """Send an answer that has a body, with a fault in the body."""
        body = answer.body
        match fault.kind:
            case "cut body" | "reset body" | "stall body":
                writer.write(answer.head() + body[: len(body) // 2])
                await writer.drain()
                if fault.kind == "stall body":
                    await asyncio.sleep(self.plan.stall_s)
                elif fault.kind == "reset body":
                    linger(writer)
                return False
            case "drip":
                writer.write(answer.head())
                step = max(1, len(body) // 8)
                for begin in range(0, len(body), step):
                    writer.write(body[begin : begin + step])
                    await writer.drain()
                    await asyncio.sleep(self.plan.piece_s)
                return True
            case "endless":
                writer.write(replace(answer, length=str(ENDLESS)).head())
                while True:  # until the client has had enough
                    writer.write(bytes(2**16))
                    await writer.drain()
            case "twice":
                self._shifted.add(writer)
                writer.write(answer.encode() * 2)
            case "page":
                page = answer.without("content-type", "content-range")
                page = replace(page, start="HTTP/1.1 200 OK", body=PAGE)
                writer.write(
                    replace(page, headers=(*page.headers, ("content-type", "text/html"))).encode()
                )
            case "other range":
                size, other = len(body), self._damage(fault.kind, body, fault)
                says = f"content-range: bytes {size}-{2 * size - 1}/{2 * size}"
                partial = replace(
                    answer.without("content-range"),
                    start="HTTP/1.1 206 Partial Content",
                    body=other,
                )
                writer.write(partial.head(says) + other)
            case kind:
                writer.write(replace(answer, body=self._damage(kind, body, fault)).encode())
        await writer.drain()
        return True

    def _damage(self, kind: str, body: bytes, fault: Fault) -> bytes:
        """Other bytes than ``body``."""
        match kind:
            case "short":
                return body[: len(body) // 2]
            case "long":
                return body + body[-16:]
            case "empty":
                return b""
            case "exchanged":
                others = [data for data in self._earlier if data != body]
                if others:
                    return fault.chance.choice(others)
            case "other range":
                begin = fault.chance.randrange(1, len(body) + 1)
                other = (body + body)[begin : begin + len(body)]
                if other != body:
                    return other
        place = fault.chance.randrange(len(body))
        flipped = body[place] ^ fault.chance.randrange(1, 256)
        return body[:place] + bytes([flipped]) + body[place + 1 :]

    def _reset(self, fault: Fault, writer: asyncio.StreamWriter) -> bool:
        self.record(fault)
        linger(writer)
        return False

    async def _ask(self, request: Message, method: str) -> Message:
        """Pass a request to the server, over a connection of its own."""
        reader, writer = await self.connect(*self._upstream)
        try:
            clean = request.without("connection", "content-length")
            writer.write(replace(clean, headers=(*clean.headers, ("connection", "close"))).encode())
            await writer.drain()
            answer = await _read_head(reader)
            if answer is None:
                raise ConnectionResetError("no answer")
            while answer.start.split()[1].startswith("1"):
                answer = await _read_head(reader) or answer
            length = answer.header("content-length")
            chunked = (answer.header("transfer-encoding") or "").lower() == "chunked"
            clean = answer.without("content-length", "transfer-encoding", "connection")
            if method == "HEAD":
                return replace(clean, length=length or "0")
            if chunked:
                return replace(clean, body=await _read_chunks(reader))
            return replace(
                clean, body=await reader.readexactly(int(length)) if length else await reader.read()
            )
        finally:
            writer.close()


async def _read_head(reader: asyncio.StreamReader) -> Message | None:
    """First line and headers; None where the other side has closed the connection."""
    try:
        text = (await reader.readuntil(END)).decode("latin-1").removesuffix("\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = text.split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Message(start, tuple((key.strip().lower(), value.strip()) for key, _, value in pairs))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    parts = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)


def linger(writer: asyncio.StreamWriter) -> None:
    """Let the end of a connection be a reset."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def serve_proxy(upstream: str, plan: Plan) -> Iterator[Proxy]:
    """Run a proxy in a thread of this process."""
    with listening(Proxy(upstream, plan), "faulty proxy") as proxy:
        yield proxy
