"""An S3 server of the tests' own, and a proxy before it that counts, stumbles and holds back on demand."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

KEY = "tester"
SECRET = "hush-never-to-be-seen-anywhere"
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_PIECE = 1 << 16


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Weed:
    """A SeaweedFS server with an S3 gateway on the loopback, its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        command = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names))
        flags = {"dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false", "s3": "true"}
        flags |= {f"{name}.port": ports[number] for number, name in enumerate(names)}
        flags |= {f"{name}.port.grpc": ports[len(names) + number] for number, name in enumerate(names)}
        flags |= {"s3.port.iceberg": 0, "s3.port.lance": 0, "volume.max": 0, "master.volumeSizeLimitMB": 64}
        flags |= {f"{name}.localSocket": folder / f"{name}.sock" for name in ("filer", "s3")}
        self.port = ports[names.index("s3")]
        self._log = (folder / "weed.log").open("wb")
        self._process = subprocess.Popen(
            [command, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in flags.items())],
            env={"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait(self, seconds: float = 60) -> None:
        """Wait until the gateway answers."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=1).close()
                return
            except urllib.error.HTTPError:
                return  # it answers, if only to refuse
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, Path(self._log.name).read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass
class Traffic:
    """What went through the proxy.

    Attributes:
        requests: how many, by method.
        served: bytes of the bodies of answers to GET, by object (``bucket/key``).
        uploaded: bytes of the bodies of requests.
        failed: how many requests were failed on purpose, by how.
    """

    requests: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    uploaded: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Proxy:
    """Passes HTTP/1.1 on to a server, connection by connection, with the Host header (and so the signature) as it is.

    Attributes:
        traffic: since the last `reset`.
        hold_after: no byte of a request's body beyond this many in `traffic.uploaded` is passed on; None: all are.
    """

    FAULTS = ("503", "reset", "reset after", "reset amid")

    def __init__(self, upstream: int) -> None:
        self.traffic = Traffic()
        self.hold_after: int | None = None
        self._upstream = upstream
        self._rate = 0.0
        self._random = random.Random(0)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Count from zero."""
        self.traffic = Traffic()

    @contextmanager
    def faults(self, rate: float = 0.1, seed: int = 0) -> Iterator[None]:
        """Fail this share of the requests: answer 503, or reset the connection before, after or amid the answer."""
        self._rate, self._random = rate, random.Random(seed)
        try:
            yield
        finally:
            self._rate = 0.0

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self._server = self._loop.run_until_complete(listening)
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    async def _hang_up(self) -> None:
        self._server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs: asyncio.StreamWriter | None = None
        try:
            answers, theirs = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
            while await self._exchange(reader, writer, answers, theirs):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # somebody hung up
        finally:
            writer.close()
            if theirs:
                theirs.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        theirs: asyncio.StreamWriter,
    ) -> bool:
        """Pass one request on and its answer back; whether the connection goes on."""
        head = await _head(reader)
        if head is None:
            return False
        method, target = head.first.split()[:2]
        self.traffic.requests[method] += 1
        fault = self._random.choice(self.FAULTS) if self._random.random() < self._rate else None
        if fault:
            self.traffic.failed[fault] += 1
        if fault == "reset":
            return _reset(writer)
        if head.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault == "503":
            await self._pass_body(head, reader, None)
            length = f"Content-Length: {len(_SLOW_DOWN)}\r\nContent-Type: application/xml\r\n\r\n".encode()
            writer.write(b"HTTP/1.1 503 Slow Down\r\n" + length + (b"" if method == "HEAD" else _SLOW_DOWN))
            await writer.drain()
            return True
        theirs.write(head.raw)
        await self._pass_body(head, reader, theirs)
        answer = await _head(answers)
        while answer is not None and answer.first.split()[1].startswith("1"):
            answer = await _head(answers)
        if answer is None or fault == "reset after":
            return _reset(writer)
        writer.write(answer.raw)
        bare = method == "HEAD" or answer.first.split()[1] in ("204", "304")
        served = unquote(urlsplit(target).path).lstrip("/") if method == "GET" else None
        left = 0 if bare else int(answer.get("content-length") or 0)
        if fault == "reset amid":
            left //= 2
        while left:
            piece = await answers.read(min(left, _PIECE))
            if not piece:
                return _reset(writer)
            left -= len(piece)
            if served is not None:
                self.traffic.served[served] += len(piece)
            writer.write(piece)
            await writer.drain()
        if not bare and (answer.get("transfer-encoding") or "").lower() == "chunked":
            await self._pass_chunks(answers, writer)
        await writer.drain()
        return _reset(writer) if fault == "reset amid" else True

    async def _pass_body(self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        if (head.get("transfer-encoding") or "").lower() == "chunked":
            await self._pass_chunks(reader, writer)
            return
        left = int(head.get("content-length") or 0)
        while left:
            while self.hold_after is not None and self.traffic.uploaded >= self.hold_after:
                await asyncio.sleep(0.01)
            piece = await reader.read(min(left, _PIECE))
            if not piece:
                raise ConnectionResetError("the client hung up")
            left -= len(piece)
            self.traffic.uploaded += len(piece)
            if writer:
                writer.write(piece)
                await writer.drain()

    async def _pass_chunks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            # The last chunk is empty; what follows it, trailers or none, ends with an empty line.
            data = await reader.readexactly(size + 2) if size else await _trailers(reader)
            if writer:
                writer.write(line + data)
                await writer.drain()


@dataclass(frozen=True)
class _Head:
    raw: bytes

    @property
    def first(self) -> str:
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1")

    def get(self, name: str) -> str | None:
        for line in self.raw.split(b"\r\n")[1:]:
            key, _, value = line.decode("latin-1").partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return None


async def _head(reader: asyncio.StreamReader) -> _Head | None:
    try:
        return _Head(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _trailers(reader: asyncio.StreamReader) -> bytes:
    lines = b""
    while not lines.endswith(b"\r\n\r\n") and lines != b"\r\n":
        lines += await reader.readuntil(b"\r\n")
    return lines


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break the connection off so that the other side notices an error and no orderly end."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


@dataclass(frozen=True)
class S3:
    """The server as the tests see it: always through the proxy.

    Attributes:
        env: the standard environment by which any client finds the server and its credentials.
        direct: the server's own endpoint, for what the proxy would slow down.
        buckets: made so far.
    """

    proxy: Proxy
    env: dict[str, str]
    direct: str
    buckets: set[str] = field(default_factory=set)

    def url(self, path: str) -> str:
        """The URL of ``bucket/key``; the bucket is made if there is none."""
        bucket = path.split("/", 1)[0]
        if bucket not in self.buckets:
            fsspec.filesystem("s3", endpoint_url=self.direct, key=KEY, secret=SECRET).mkdir(bucket)
            self.buckets.add(bucket)
        return f"s3://{path}"

    def fresh(self) -> str:
        """The URL of a folder that nobody else uses."""
        return self.url(f"bucket/{uuid.uuid4().hex}")

    @property
    def requests(self) -> Traffic:
        """What was asked and served since the last `proxy.reset()`."""
        return self.proxy.traffic


@contextmanager
def serving(folder: Path) -> Iterator[S3]:
    """A server and its proxy, while the block lasts."""
    weed = Weed(folder)
    try:
        weed.wait()
        proxy = Proxy(weed.port)
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield S3(proxy, env, f"http://127.0.0.1:{weed.port}")
        proxy.stop()
    finally:
        weed.stop()
