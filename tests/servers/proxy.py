"""A proxy between a client and an HTTP server that breaks on request, for tests of what comes then.

    with Proxy("127.0.0.1", 5000) as proxy:
        client_of(proxy.endpoint_url)
        with proxy.failing(Answer(503), times=3):
            ...

It carries one request per connection and changes nothing but the `Connection` header; `Host` above
all stays, since S3's signatures cover it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tests.servers.dialects import Reply, Rule

CHUNK_BYTES = 64 << 10


@dataclass(frozen=True)
class Answer:
    """The proxy answers by itself, with an S3 error; the server sees nothing."""

    status: int


@dataclass(frozen=True)
class CutRequest:
    """The connection breaks after so many bytes of a request's body, for client and server."""

    after_bytes: int


@dataclass(frozen=True)
class CutResponse:
    """The connection ends after so many bytes of a body whose Content-Length says more."""

    after_bytes: int


@dataclass(frozen=True)
class LoseAnswer:
    """The server does what was asked, and the client never learns of it."""


@dataclass(frozen=True)
class Stall:
    """A request waits before it reaches the server."""

    seconds: float


@dataclass(frozen=True)
class Slow:
    """All requests together send no more than so much."""

    bytes_per_second: float


@dataclass(frozen=True)
class Gone:
    """Nobody listens."""


@dataclass(frozen=True)
class Dialect:
    """Requests are answered as another store would, where its rule says so."""

    rule: Rule


Fault = Answer | CutRequest | CutResponse | LoseAnswer | Stall | Slow | Gone | Dialect

CODES = {403: "AccessDenied", 501: "NotImplemented", 503: "ServiceUnavailable"}


class Proxy:
    """Forwards to `host:port`; methods may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port = 0
        self._fault: Fault | None = None
        self._times: int | None = None
        self._matching = re.compile("")
        self._free_at = 0.0
        """When the line has sent what it was given; of `Slow`."""
        self.num_faults = 0
        """Requests that were hit."""
        self.requests: list[str] = []
        """First lines of all that arrived."""

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._vanish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fail(self, fault: Fault, *, times: int | None = None, matching: str = "") -> None:
        """From now on, for the next `times` requests whose first line has the pattern `matching`.

        None: until `heal()`. `Gone` also breaks what is under way.
        """
        self._fault, self._times, self._matching = fault, times, re.compile(matching)
        if isinstance(fault, Gone):
            self._do(self._vanish())

    def heal(self) -> None:
        self._fault = None
        if self._server is None:
            self._do(self._listen())

    @contextlib.contextmanager
    def failing(
        self, fault: Fault, *, times: int | None = None, matching: str = ""
    ) -> Iterator[None]:
        self.fail(fault, times=times, matching=matching)
        try:
            yield
        finally:
            self.heal()

    def fail_for(self, seconds: float, fault: Fault, *, matching: str = "") -> None:
        """Fail, and heal in the background."""
        self.fail(fault, matching=matching)
        threading.Timer(seconds, self.heal).start()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _vanish(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _takes(self, line: str) -> Fault | None:
        """The fault that this request meets."""
        if self._fault is None or self._times == 0 or not self._matching.search(line):
            return None
        if self._times is not None:
            self._times -= 1
        self.num_faults += 1
        return self._fault

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.partition(b"\r\n")[0].decode()
        self.requests.append(line)
        fault = self._takes(line)
        if isinstance(fault, Answer):
            code = CODES.get(fault.status, "InternalError")
            body = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
            await self._answer(Reply(fault.status, body), line, reader, writer)
            return
        if isinstance(fault, Dialect):
            method, path, _ = line.split(" ")
            fields = (field.split(b":", 1) for field in head.split(b"\r\n")[1:] if b":" in field)
            headers = {n.decode().lower(): value.strip().decode() for n, value in fields}
            if reply := fault.rule(method, path, headers):
                await self._answer(reply, line, reader, writer)
                return
        if isinstance(fault, Stall):
            await asyncio.sleep(fault.seconds)
        below, above = await asyncio.open_connection(*self._target)
        try:
            head = re.sub(rb"(?im)^connection:.*\r\n", b"", head)
            above.write(head[:-2] + b"Connection: close\r\n\r\n")
            up = asyncio.create_task(
                self._send_slowly(reader, above, fault)
                if isinstance(fault, Slow)
                else _pipe(
                    reader, above, fault.after_bytes if isinstance(fault, CutRequest) else None
                )
            )
            down = asyncio.create_task(self._respond(below, writer, fault))
            done, pending = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            # The client says no more and waits, or a cut has come.
            if up in done and up.exception() is None and not isinstance(fault, CutRequest):
                await down
            for each in pending:
                each.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            above.transport.abort()

    async def _send_slowly(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, fault: Slow
    ) -> None:
        while data := await source.read(CHUNK_BYTES):
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + len(data) / fault.bytes_per_second
            await asyncio.sleep(self._free_at - now)
            target.write(data)
            await target.drain()

    async def _respond(
        self, below: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None
    ) -> None:
        if isinstance(fault, LoseAnswer):
            head = b"HTTP/1.1 100 "
            while re.match(rb"HTTP/1.1 100 ", head):  # its body is what the server waits for
                head = await below.readuntil(b"\r\n\r\n")
                if re.match(rb"HTTP/1.1 100 ", head):
                    writer.write(head)
            return
        if isinstance(fault, CutResponse):
            head = await below.readuntil(b"\r\n\r\n")
            writer.write(head)
            await _pipe(below, writer, fault.after_bytes)
        else:
            await _pipe(below, writer, None)
        writer.write_eof()

    async def _answer(
        self, reply: Reply, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head = (
            f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status or 200).phrase}\r\n{fields}"
            f"Content-Type: {reply.content_type}\r\nContent-Length: {len(reply.body)}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        body = b"" if line.startswith("HEAD ") else reply.body
        writer.write(head + body if reply.raw is None else reply.raw)
        writer.write_eof()
        with contextlib.suppress(TimeoutError):  # let the client finish its sentence
            async with asyncio.timeout(5):
                while await reader.read(CHUNK_BYTES):
                    pass


async def _pipe(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, limit_bytes: int | None
) -> None:
    """Until the source ends or so many bytes have passed."""
    left = limit_bytes
    while left is None or left > 0:
        data = await source.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not data:
            return
        target.write(data)
        await target.drain()
        left = None if left is None else left - len(data)
