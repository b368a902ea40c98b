"""A proxy before an S3 server that does to its requests what networks and busy stores do.

HTTP/1.1 on loopback, one request a connection, whole requests and responses in memory. What befalls a request is drawn
by a seeded generator, so a run of the suite meets about the same faults as the next; `given` counts `requests`, those
that `matched` and each fault.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

Matches = Callable[[str, str], bool]  # method and path of a request -> whether


@dataclass(frozen=True)
class Faults:
    """Shares (0 to 1) of the requests that `of` picks; `latency_s` before each of them."""

    slow_down: float = 0.0  # 503, the store does nothing
    reset: float = 0.0  # half before the store hears of it, half after it has done it
    cut: float = 0.0  # the response ends in its header, or in its body where it has one
    latency_s: float = 0.0
    denied: float = 0.0  # 403
    of: Matches = lambda method, path: True

    def draw(self, number: float) -> str:
        """The fault for a number drawn from 0 to 1; empty for none."""
        shares = {
            "503": self.slow_down,
            "403": self.denied,
            "reset before": self.reset / 2,
            "reset after": self.reset / 2,
            "cut in header": self.cut / 2,
            "cut in body": self.cut / 2,
        }
        for name, share in shares.items():
            if number < share:
                return name
            number -= share
        return ""


class FaultProxy:
    """Listens from `start` to `close`; `faults` may be changed at any time."""

    def __init__(self, endpoint: str, seed: int = 0) -> None:
        server = urlsplit(endpoint)
        self._server = (server.hostname, server.port)
        self._random = random.Random(seed)
        self.faults = Faults()
        self.given: Counter[str] = Counter()
        self._out_until_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self.endpoint = ""

    def start(self) -> FaultProxy:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        port = listening.result(10).sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def fail(self, faults: Faults) -> None:
        """From now on, and count anew."""
        self.given.clear()
        self.faults = faults

    @property
    def struck(self) -> int:
        """Requests that something befell; with a latency, each that it was meant for."""
        if self.faults.latency_s:
            return self.given["matched"]
        return self.given.total() - self.given["requests"] - self.given["matched"]

    def outage(self, seconds: float) -> None:
        """Nobody answers for so long: every connection is reset."""
        self._out_until_s = time.monotonic() + seconds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._out_until_s:
            self.given["outage"] += 1
            return _reset(writer)
        request, method, path = await _read_request(reader, writer)
        matched = self.faults.of(method, path)
        faults = self.faults if matched else Faults()
        self.given["matched"] += matched
        fault = faults.draw(self._random.random())
        self.given["requests"] += 1
        if fault:
            self.given[fault] += 1
        await asyncio.sleep(faults.latency_s)
        if fault == "reset before":
            return _reset(writer)
        if fault in _REFUSALS:
            head, body = _REFUSALS[fault]
        else:
            head, body = await self._ask(request)
        if method == "HEAD":
            body = b""
        if fault == "reset after":
            return _reset(writer)
        if fault == "cut in body" and body:
            body = body[: len(body) // 2]
        elif fault.startswith("cut"):
            head, body = head[: len(head) // 2], b""
        writer.write(head + body)
        await writer.drain()

    async def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        """The server's whole response: head and body."""
        reader, writer = await asyncio.open_connection(*self._server)
        try:
            writer.write(request)
            await writer.drain()
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return _closing(head) + b"\r\n\r\n", body
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, str, str]:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    first, *headers = head.decode("latin-1").split("\r\n")
    values = {name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in headers)}
    if values.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if values.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(values.get("content-length", 0)))
    kept = [h for h in headers if h.split(":")[0].lower() not in ("expect", "transfer-encoding", "content-length")]
    kept += [f"Content-Length: {len(body)}"]
    method, target, _ = first.split(" ", 2)
    return _closing("\r\n".join([first, *kept]).encode("latin-1")) + b"\r\n\r\n" + body, method, target


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return body


def _closing(head: bytes) -> bytes:
    """A head that says the connection ends with this message."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    return b"\r\n".join([*lines, b"Connection: close"])


def _refusal(status: str, code: str, text: str) -> tuple[bytes, bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n".encode(), body.encode()


_REFUSALS = {
    "503": _refusal("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "403": _refusal("403 Forbidden", "AccessDenied", "Access Denied"),
}


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST instead of a FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
