"""What a visitor may ask of the server: what the page itself asks, and no more than the limits.

Gradio's server has more doors than its pages use. Some fetch an address that the visitor names, on the server's behalf;
here none does.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

API = "/gradio_api/"
EVENTS = re.compile(r"/gradio_api/(queue/join|run/[^/]+)")
DOORS = re.compile(
    r"/((config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)?|(assets|static)/.*)"
    r"|/gradio_api/(app_id|startup-events|upload|upload_progress|queue/data|cancel|reset|heartbeat/[^/]+|file=/.*)"
    rf"|{EVENTS.pattern}"
)
MOST_EVENT_BYTES = 2**20
UPLOADED = re.compile(r"/(?!/)")
# The page's scripts are the server's own, inline and evaluated ones among them; whatever they ask for is as well.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"


class Guard:
    """An ASGI application before Gradio's.

    Args:
        most_upload_bytes: of one request that uploads files.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], most_upload_bytes: int):
        self.app, self.most_upload_bytes = app, most_upload_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers what is refused with one line, and passes on all else."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope.get("path", "")
        if scope["type"] != "http" or not DOORS.fullmatch(path):
            await _refuse(send, 404, "this page has no such door")
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        most = self.most_upload_bytes if path == f"{API}upload" else MOST_EVENT_BYTES
        too_large = f"more than the {most / 2**20:g} MB that may be sent at once"
        if int(headers.get(b"content-length", b"0") or 0) > most:
            await _refuse(send, 413, too_large)
            return
        if EVENTS.fullmatch(path):
            body = await _read(receive, most)
            if body is None or names_address(body):
                await _refuse(send, 413 if body is None else 400, too_large if body is None else "not an upload")
                return
            receive = _replayed(body, receive)
        elif scope["method"] == "POST" and b"content-length" not in headers:
            # Nobody knows how much will come; browsers always tell.
            await _refuse(send, 411, "say how much is sent")
            return
        await self.app(scope, receive, _with_policy(send))


def names_address(body: bytes) -> bool:
    """Whether any file that an event names lies elsewhere, or the event can't be read."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str) and not UPLOADED.match(path):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body, or None where it is larger than ``most``."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            return None
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


def _with_policy(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": line.encode()})
