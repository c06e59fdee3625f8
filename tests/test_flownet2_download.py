"""Fetching a checkpoint from a server of our own: resumed, checked, and told plainly when it fails."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from third_party.flownet2 import download
from third_party.flownet2.download import fetch
from util.errors import UserError

REPO = Path(__file__).resolve().parents[1]
BODY = np.random.default_rng(0).bytes(3_000_000)
FORM = (
    '<html><form id="download-form" action="/real" method="get"><input type="submit" value="Download anyway">'
    '<input type="hidden" name="id" value="a b"><input type="hidden" name="confirm" value="t"></form></html>'
)


@dataclass
class Site:
    """What the server does, and what it was asked for."""

    url: str = ""
    breaks_after: list[int] = field(default_factory=list)  # bytes, of the first answers
    ranges: bool = True
    etag: str = '"one"'
    body: bytes = BODY
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, state)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    address, wanted = urlsplit(handler.path), handler.headers.get("Range")
    site.asked.append((address.path, wanted))
    if address.path in ("/missing", "/page", "/form"):
        page = (FORM if address.path == "/form" else "<html>Quota exceeded</html>").encode()
        handler.send_response(404 if address.path == "/missing" else 200)
        handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.end_headers()
        handler.wfile.write(page)
        return
    if address.path == "/real":
        assert parse_qs(address.query) == {"id": ["a b"], "confirm": ["t"]}
    valid = handler.headers.get("If-Range") in (None, site.etag)
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and site.ranges and valid else 0
    body = site.body[start:]
    if start and not body:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(site.body)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("ETag", site.etag)
    handler.end_headers()
    handler.wfile.write(body[: site.breaks_after.pop(0)] if site.breaks_after else body)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_is_fetched_once(site, tmp_path):
    path = tmp_path / "new" / "a.tar"
    for _ in range(2):
        assert fetch(f"{site.url}/a", path, hashlib.sha256(BODY).hexdigest().upper()) == path
    assert path.read_bytes() == BODY
    assert left(path.parent) == ["a.tar"]
    assert site.asked == [("/a", None)]


def test_broken_connections_are_resumed(site, tmp_path):
    site.breaks_after = [1_200_000, 900_000]
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert [r for _, r in site.asked] == [None, "bytes=1200000-", "bytes=2100000-"]
    assert left(tmp_path) == ["a.tar"]


def test_second_run_resumes_the_first(site, tmp_path):
    site.breaks_after = [1_000_000, 0]
    with pytest.raises(UserError, match="the connection breaks off; start again to resume"):
        fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert left(tmp_path) == ["a.tar.part", "a.tar.part.etag"]
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert site.asked[-1] == ("/a", "bytes=1000000-")


def test_interrupt_keeps_what_is_there(site, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert "a.tar" not in left(tmp_path)
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert [r for _, r in site.asked] == [None, f"bytes={download.CHUNK}-"]


def test_another_version_is_not_glued_on(site, tmp_path):
    site.breaks_after = [1_000_000, 0]
    with pytest.raises(UserError):
        fetch(f"{site.url}/a", tmp_path / "a.tar")
    site.body, site.etag = BODY[::-1], '"two"'
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY[::-1]


def test_server_without_ranges_starts_over(site, tmp_path):
    site.ranges, site.breaks_after = False, [1_000_000]
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_part_that_is_whole_or_too_long_ends_well(site, tmp_path, extra):
    (tmp_path / "a.tar.part").write_bytes(BODY + extra)
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert len(site.asked) == (2 if extra else 1)


def test_confirm_page_is_followed(site, tmp_path):
    fetch(f"{site.url}/form", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == BODY
    assert [path for path, _ in site.asked] == ["/form", "/real"]


def test_web_page_is_no_checkpoint(site, tmp_path):
    with pytest.raises(UserError, match=r"answered with a web page, not a file .* --file"):
        fetch(f"{site.url}/page", tmp_path / "a.tar")
    site.body = b"<!doctype html> as a file"
    with pytest.raises(UserError, match="gave a web page under a file's name; it is removed"):
        fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert "a.tar" not in left(tmp_path)
    assert "a.tar.part" not in left(tmp_path)


def test_wrong_sum_is_told_and_the_file_removed(site, tmp_path):
    with pytest.raises(UserError, match=f"--sha256 {'0' * 64}: .* gave {hashlib.sha256(BODY).hexdigest()}"):
        fetch(f"{site.url}/a", tmp_path / "a.tar", "0" * 64)
    assert "a.tar" not in left(tmp_path)
    fetch(f"{site.url}/a", tmp_path / "a.tar")
    assert site.asked == [("/a", None)] * 2


def test_errors_of_the_server_and_the_address_are_told(site, tmp_path):
    with pytest.raises(UserError, match="the server answers 404"):
        fetch(f"{site.url}/missing", tmp_path / "a.tar")
    for url in ("file:///etc/passwd", "ftp://a/b", "a.tar"):
        with pytest.raises(UserError, match="is no http or https address"):
            fetch(url, tmp_path / "a.tar")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match="is a file; a folder is needed"):
        fetch(f"{site.url}/a", tmp_path / "file" / "a.tar")


def run_script(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "scripts" / "download_flownet2.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_script_offline_is_one_line_and_status_2(site, tmp_path):
    site_url = "http://127.0.0.1:9"  # the discard port: refused
    done = run_script(
        "--url", site_url, "--download_to", tmp_path / "a.tar", "--out", tmp_path / "o.safetensors"
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: {site_url}: cannot be reached" in done.stderr
    assert "--file" in done.stderr


def test_script_fetches_and_refuses_what_is_no_checkpoint(site, tmp_path):
    out = tmp_path / "o.safetensors"
    done = run_script("--url", f"{site.url}/a", "--download_to", tmp_path / "a.tar", "--out", out)
    assert done.returncode == 2
    assert f"error: --download_to {tmp_path / 'a.tar'}: is damaged or cut off" in done.stderr
    assert done.stderr.count("error:") == 1
    assert not out.exists()
