"""Fetching the public checkpoint: resumable, checked, and whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
from collections.abc import Callable
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener

from tqdm import tqdm

from util.errors import UserError
from util.files import results_folder, write_error

DRIVE_ID = "1hF8vS6YeHkx3j2pfCeQqqZGwA_PJq_Da"
PUBLIC_URL = f"https://drive.usercontent.google.com/download?id={DRIVE_ID}&export=download&confirm=t"
PUBLIC_NAME = "FlowNet2_checkpoint.pth.tar"
FLAG = "--download_to"
TIMEOUT_S = 30
CHUNK = 1 << 20
MAX_PAGES = 2  # confirm pages followed
HINT = "give a mirror with --url, or a file that you have with --file"


def fetch(url: str, path: str | Path, sha256: str | None = None) -> Path:
    """Download a checkpoint to `path`, resuming what an earlier call left in `path`.part.

    Google Drive's "can't scan for viruses" page is followed. The environment's proxies are used. A connection
    that breaks after it gave something is taken up again at once.
    Raises UserError where the server cannot be reached, answers with an error or a web page, or the file is
    not whole or not the one of the SHA-256 sum (then it is removed).
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    results_folder(path.parent, FLAG)
    try:
        if not path.exists():
            _Download(url, part).run()
        whole = path if path.exists() else part
        if _is_page(whole):
            whole.unlink()
            raise UserError(f"{url}: gave a web page under a file's name; it is removed; {HINT}")
        if sha256 and (found := _sha256(whole)) != sha256.lower():
            whole.unlink()
            raise UserError(f"--sha256 {sha256}: {url} gave {found}; the file is removed; check the address")
        os.replace(whole, path)
    except OSError as error:
        raise write_error(path.parent, error, FLAG) or error from None
    _tag_of(part).unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        _pump(file.read, total.update)
    return total.hexdigest()


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"<")


def _tag_of(part: Path) -> Path:
    """Where the server's name for this version of the file is kept, so that two versions are never mixed."""
    return part.with_name(part.name + ".etag")


class _Page(Exception):
    """The server answered with a web page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html


class _Download:
    def __init__(self, url: str, part: Path) -> None:
        self.url, self.part = _web_address(url), part
        self.opener: OpenerDirector = build_opener(HTTPCookieProcessor(CookieJar()))

    def run(self) -> None:
        """Ask until the file is whole; give up when an answer adds nothing."""
        pages = 0
        while True:
            before = self._size()
            try:
                if self._ask():
                    return
            except _Page as page:
                target = _confirmed(page.html, self.url)
                pages += 1
                if target is None or pages > MAX_PAGES:
                    raise UserError(
                        f"{self.url}: answered with a web page, not a file (moved, or too often fetched today); {HINT}"
                    ) from None
                self.url = _web_address(target)
                continue
            if self._size() <= before:
                raise UserError(f"{self.url}: the connection breaks off; start again to resume, or {HINT}")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _ask(self) -> bool:
        """One request for what is missing. True if the file is whole now."""
        start = self._size()
        request = Request(self.url, headers={"User-Agent": "tilt-your-head"})
        if start:
            request.add_header("Range", f"bytes={start}-")
            if _tag_of(self.part).exists():
                request.add_header("If-Range", _tag_of(self.part).read_text())
        try:
            with self.opener.open(request, timeout=TIMEOUT_S) as answer:
                return self._keep(answer, start)
        except HTTPError as error:
            if error.code == 416 and start:  # nothing after `start`: whole, unless the file is another now
                if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                    return True
                self.part.unlink()
                return self._ask()
            raise UserError(f"{self.url}: the server answers {error.code} {error.reason}; {HINT}") from None
        except (URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
            if self._size() > start:
                return False
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise UserError(
                f"{self.url}: cannot be reached ({reason}); are you offline? If so, {HINT}"
            ) from None

    def _keep(self, answer: http.client.HTTPResponse, start: int) -> bool:
        if answer.headers.get_content_type() == "text/html":
            raise _Page(answer.read(CHUNK).decode("utf-8", "replace"))
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        if answer.status == 206 and not resumed:
            raise UserError(f"{self.url}: sent another part than the one asked for; {HINT}")
        length = answer.headers.get("Content-Length")
        done = start if resumed else 0
        total = done + int(length) if length else None
        tag = answer.headers.get("ETag", "")
        if tag.startswith('"'):  # a weak tag may not be used to resume
            _tag_of(self.part).write_text(tag)
        else:
            _tag_of(self.part).unlink(missing_ok=True)
        bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=PUBLIC_NAME, disable=None)
        with self.part.open("ab" if resumed else "wb") as file, bar:
            _pump(answer.read, file.write, lambda data: bar.update(len(data)))
        return total is None or self._size() == total


def _pump(read: Callable[[int], bytes], *takers: Callable[[bytes], object]) -> None:
    while data := read(CHUNK):
        for take in takers:
            take(data)


def _web_address(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"--url {url}: is no http or https address; {HINT}")
    return url


class _Form(HTMLParser):
    """The address and hidden fields of a page's form."""

    def __init__(self) -> None:
        super().__init__()
        self.action, self.fields = "", {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "form":
            self.action = values.get("action") or ""
        elif tag == "input" and values.get("type") == "hidden" and values.get("name"):
            self.fields[values["name"]] = values.get("value") or ""


def _confirmed(html: str, url: str) -> str | None:
    """The address behind Google Drive's confirm page for big files, or None if it is another page."""
    form = _Form()
    form.feed(html)
    if "confirm" not in form.fields:
        return None
    action = urljoin(url, form.action)
    return f"{action}{'&' if urlsplit(action).query else '?'}{urlencode(form.fields)}"
