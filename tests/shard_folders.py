"""A prepared folder whose files are a few random bytes each, and a web server that can misbehave."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from data.contract import INDEX, SETTINGS, ClipRecord
from data.shards.format import clip_members

FAST = 0.01  # s between tries


def record(id_: str, split: str = "train", dataset: str = "grid", **facts: str) -> ClipRecord:
    name = id_.split("/")[-1]
    return ClipRecord(
        id_,
        dataset,
        id_.split("/")[-2],
        split,
        40,
        38,
        3,
        f"audio/{name}.wav",
        f"{id_}.mpg",
        9,
        25.0,
        **facts,
    )


def prepared(out: Path, records: list[ClipRecord], n_bytes: int = 700) -> Path:
    """The files of these clips, each of other bytes and length."""
    for k, clip in enumerate(records):
        rng = np.random.default_rng(k)
        for path in clip_members(out, clip).values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(int(rng.integers(1, n_bytes))))
    (out / INDEX).write_text("".join(r.line() + "\n" for r in sorted(records, key=lambda r: r.id)))
    (out / SETTINGS).write_text('{"size": 256}')
    return out


def speakers(n: int, each: int, split: str = "train") -> list[ClipRecord]:
    return [record(f"align/s{s}/{split}{s}x{k:02d}", split) for s in range(n) for k in range(each)]


class Server:
    """Serves a folder. `cut`, `spoilt`, `busy`: how often a file's answer breaks off, is wrong, or is a 503."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges, self.url = folder, ranges, ""
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes
        self.cut: Counter[str] = Counter()
        self.spoilt: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = unquote(request.path.lstrip("/"))
        path = self.folder / name
        if not path.is_file() or self._due(self.busy, name):
            request.send_error(503 if path.is_file() else 404)
            return
        data, start, said = path.read_bytes(), 0, request.headers.get("Range")
        if self._due(self.spoilt, name):
            data = bytes(len(data))
        if self.ranges and said:
            start = int(said.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        rest = data[start:]
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        if request.command == "HEAD":
            return
        self.asked[name] += 1
        if self._due(self.cut, name):
            rest = rest[: len(rest) // 2]
        self.sent[name] += len(rest)
        request.wfile.write(rest)

    def _due(self, left: Counter[str], name: str) -> bool:
        left[name] -= 1
        return left[name] >= 0


@contextmanager
def serving(folder: Path, ranges: bool = True) -> Iterator[Server]:
    server = Server(folder, ranges)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        do_HEAD = do_GET

        def log_message(self, *about: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        server.url = f"http://127.0.0.1:{web.server_port}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()
