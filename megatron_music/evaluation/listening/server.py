"""The server of a listening test: one page, its clips, and the answers that come in.

It is for this machine: it listens on the loopback address unless another is named, answers only to the machine's names
(so that no other site can speak to it by a name of its own), and takes answers from its own page alone. Nothing that it
sends names a system or a file of one.
"""

import ipaddress
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_music.errors import InputError
from megatron_music.evaluation.listening.answers import (
    AlreadyAnswered,
    AnswerLine,
    Choice,
    append_answer,
    read_answers,
)
from megatron_music.evaluation.listening.study import ASPECTS, Study, Turn, clip_path, open_study, turns
from megatron_music.pages import style
from megatron_music.progress import console

MOST_POST_BYTES = 16_384
MOST_NAME = 60
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; media-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = Path(__file__).parent / "page"
_CLIP = re.compile(r"/clips/([0-9a-f]{32})\.flac")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_IDLE_S = 60.0
_CHUNK_BYTES = 2**16


class Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status, self.line = status, line


class _Posted(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rater: str
    pair: str
    choices: dict[str, Choice]
    heard_s: dict[str, float]


class ListeningTest:
    """A study as raters meet it; see ``listen``."""

    def __init__(self, folder: str | Path, study: Study, rater: str | None = None, pairs: int | None = None):
        self.folder, self.study, self.rater, self._pairs = Path(folder), study, rater, pairs
        self._clips = {clip.token for clip in study.clips}
        read_answers(folder)  # a damaged file is told before anybody listens

    def next(self, rater: str) -> dict[str, Any]:
        """What the page shows: the rater's first pair without an answer, or that there is none left."""
        asked = self._asked(rater)
        answered = {line.pair for line in read_answers(self.folder) if line.rater == rater}
        left = [turn for turn in asked if turn.pair.token not in answered]
        state: dict[str, Any] = {"rater": rater, "done": len(asked) - len(left), "of": len(asked)}
        if left:
            turn = left[0]
            state |= {
                "pair": turn.pair.token,
                "a": f"/clips/{turn.a.token}.flac",
                "b": f"/clips/{turn.b.token}.flac",
                "lyrics": turn.lyrics,
                "aspects": [{"name": name, "question": ASPECTS[name]} for name in turn.aspects],
            }
        return state

    def answer(self, posted: _Posted) -> dict[str, Any]:
        """Keeps an answer and gives what comes next."""
        rater = self._rater(posted.rater)
        turn = next((turn for turn in self._asked(rater) if turn.pair.token == posted.pair), None)
        if turn is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such pair")
        if set(posted.choices) != set(turn.aspects) or set(posted.heard_s) != {"a", "b"}:
            raise Refused(HTTPStatus.BAD_REQUEST, "an answer has one choice for each aspect, and both sides heard")
        if min(posted.heard_s.values()) <= 0:
            raise Refused(HTTPStatus.BAD_REQUEST, "both songs have to be heard")
        line = AnswerLine(rater=rater, pair=posted.pair, a=turn.a.token, b=turn.b.token, choices=posted.choices,
                          heard_s=posted.heard_s, time=datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
        try:
            append_answer(self.folder, line)
        except AlreadyAnswered:
            pass  # in another window: the first answer stands, and the page goes on
        return self.next(rater)

    def clip(self, token: str) -> Path:
        """The file of a clip."""
        if token not in self._clips:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such clip")
        return clip_path(self.folder, token)

    def _asked(self, rater: str) -> list[Turn]:
        return turns(self.study, rater)[: self._pairs]

    def _rater(self, name: str) -> str:
        checked = checked_name(name)
        if checked is None or self.rater not in (None, checked):
            raise Refused(HTTPStatus.BAD_REQUEST, f"write a name of 1 to {MOST_NAME} characters")
        return checked

    def opened(self, name: str) -> dict[str, Any]:
        """What a page that was opened shows: a pair for a rater who is known, or the question for a name."""
        if not name and self.rater is None:
            return {"rater": None}
        return self.next(self._rater(name or self.rater or ""))


def checked_name(name: str) -> str | None:
    """A rater's name without spaces around it, None where it can't be one."""
    name = " ".join(name.split())
    return name if 1 <= len(name) <= MOST_NAME and name.isprintable() else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, test: ListeningTest, host: str, port: int):
        self.test, self.host = test, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.texts = {
            "/": ("text/html", _read("listen.html")),
            "/listen.js": ("text/javascript", _read("listen.js")),
            "/listen.css": ("text/css", style().encode() + _read("listen.css")),
        }
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Binds, without asking the network for the address's name as its parent does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of a clip is no error; anything else is a fault of this program."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _read(name: str) -> bytes:
    return (_PAGE / name).read_bytes()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "listening-test", ""
    timeout = _IDLE_S

    def log_message(self, *_: Any) -> None:
        """Says nothing: what raters do stands among the answers."""

    def do_GET(self) -> None:
        """Page, next pair, or clip."""
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """An answer."""
        self._answer(self._post)

    def _answer(self, make: Callable[[], None]) -> None:
        try:
            self._check_host()
            make()
        except Refused as refused:
            # What came with the request may be unread: the connection can't be used again.
            self.close_connection = True
            self._send(refused.status, "text/plain", refused.line.encode())
        except (InputError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            # What it says may name a system.
            console.print(f"error: {error}")
            self.close_connection = True
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"the test's folder can't be read or written")
        except ValueError:  # of an address that can't be taken apart
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"is no request")

    def _get(self) -> None:
        asked = urlsplit(self.path)
        if asked.path in self.server.texts:
            self._send(HTTPStatus.OK, *self.server.texts[asked.path])
        elif asked.path == "/next":
            name = parse_qs(asked.query).get("rater", [""])[0]
            self._send_json(self.server.test.opened(name))
        elif match := _CLIP.fullmatch(asked.path):
            self._send_file(self.server.test.clip(match[1]))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        if self.path != "/answers":
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        origin = self.headers.get("Origin")
        if self.headers.get("Content-Type") != "application/json" or origin not in (None, f"http://{self._host()}"):
            raise Refused(HTTPStatus.FORBIDDEN, "answers come from this page alone")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "say how much is sent")
        if len(length) > 9 or int(length) > MOST_POST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_POST_BYTES} bytes")
        try:
            posted = _Posted.model_validate_json(self.rfile.read(int(length)))
        except ValidationError:
            raise Refused(HTTPStatus.BAD_REQUEST, "is no answer") from None
        self._send_json(self.server.test.answer(posted))

    def _host(self) -> str:
        return self.headers.get("Host", "")

    def _check_host(self) -> None:
        name = urlsplit(f"//{self._host()}").hostname or ""
        try:
            ipaddress.ip_address(name)  # an address is not a name that another site could have made point here
        except ValueError:
            if name not in ("localhost", self.server.host.lower(), socket.gethostname().lower()):
                raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this page has another name") from None

    def _send_json(self, content: dict[str, Any]) -> None:
        self._send(HTTPStatus.OK, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self._head(status, f"{kind}; charset=utf-8", len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, path: Path) -> None:
        """A clip or the range of it that a player asks for."""
        size = path.stat().st_size
        first, last = 0, size - 1
        status, extra = HTTPStatus.OK, {}
        if match := _RANGE.fullmatch(self.headers.get("Range", "")):
            first, last = _asked_range(*match.groups(), size)
            if first > last:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "audio/flac", 0,
                           {"Content-Range": f"bytes */{size}"})  # fmt: skip
                return
            status, extra = HTTPStatus.PARTIAL_CONTENT, {"Content-Range": f"bytes {first}-{last}/{size}"}
        self._head(status, "audio/flac", last - first + 1, {"Accept-Ranges": "bytes", **extra})
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def _head(self, status: HTTPStatus, kind: str, length: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        if self.close_connection:
            fixed["Connection"] = "close"
        for name, value in {**fixed, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def _asked_range(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte, ``first`` beyond ``last`` where there is none."""
    if not first:
        return (max(size - int(last), 0), size - 1) if last and int(last) else (1, 0)
    return int(first), min(int(last), size - 1) if last else size - 1


def listen(
    folder: str | Path,
    systems: Sequence[str | Path] = (),
    rater: str | None = None,
    pairs: int | None = None,
    *,
    seed: int = 0,
    match_loudness: bool = True,
    host: str = "127.0.0.1",
    port: int = 7861,
    say: Callable[[str], None] = print,
) -> None:
    """Makes the listening test of a folder, or goes on with it, and serves it; see ``open_study`` and ``serve``.

    Args:
        rater: the one who listens; None lets the page ask.
        pairs: that each rater is asked about, at most; None asks about all.
    """
    if rater is not None and checked_name(rater) != rater:
        raise InputError("--rater", f"{rater!r} is no name", f"write 1 to {MOST_NAME} characters")
    study = open_study(folder, systems, seed, match_loudness, say)
    serve(ListeningTest(folder, study, rater, pairs), host, port, say)


def serve(test: ListeningTest, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serves the test until the process is told to end (Ctrl-C or SIGTERM).

    Args:
        port: 0 takes a free one.
        say: is given the page's address.

    Raises:
        InputError: the address can't be listened on.
    """
    try:
        server = _Server(test, host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host}:{port}", f"can't be listened on ({reason})", "name another --port or --host"
        ) from None
    told_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_end.set())
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = f"[{host}]" if ":" in host else host
        say(f"listen at http://{name}:{server.server_address[1]}/; Ctrl-C ends it; answers go to {test.folder}")
        told_to_end.wait()
        server.shutdown()
