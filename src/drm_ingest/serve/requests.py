"""What every request gets: an id, a bound on its body, a line in the log, and an answer even when something breaks."""

import asyncio
import re
import secrets
import time
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drm_ingest.errors import Refusal
from drm_ingest.logs import REQUEST_ID
from drm_ingest.metrics import Metrics
from drm_ingest.reference import KEYED
from drm_ingest.serve.problems import answer
from drm_ingest.settings import Settings

_is_request_id = re.compile(REQUEST_ID).fullmatch
_keyed = re.compile(rf"\b({'|'.join(KEYED)}):.*", re.DOTALL | re.IGNORECASE)
"""A mail address or a phone number, sent in the clear to be looked for: what is kept keyed is in no log either."""
_log = structlog.get_logger("drm_ingest.serve")


class Requests:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _is_request_id(sent_id) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"], state["refused"] = request_id, None
        status, started = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                body = await self._read(headers, receive)
                await self._app(scope, _replay(body, receive), send_with_id)
            except Refusal as refusal:
                state["refused"] = refusal.problem.code
                await answer(refusal, request_id)(scope, receive, send_with_id)
            except Exception:
                _log.exception("a request failed", method=scope["method"], path=_path(scope))
                state["refused"] = "internal_error"
                if status:
                    raise  # half an answer is out: only closing the connection tells
                broken = Refusal("internal_error", "Report this request id; trying again will hardly help.")
                await answer(broken, request_id)(scope, receive, send_with_id)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """Return the whole body: small by its bound, and read here so that no handler waits for a slow one."""
        limit, discard = self._settings.serve_body_bytes_max, self._settings.refused_body_discard_bytes_max
        body, length, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._settings.request_body_timeout_s):
                # The rest of a body that is too large is read and dropped, or the client would never read the answer.
                while more and length <= limit + discard:
                    message = await receive()
                    if message["type"] != "http.request":
                        break  # gone
                    chunk = message.get("body", b"")
                    length, more = length + len(chunk), message.get("more_body", False)
                    if length <= limit:
                        body += chunk
        except TimeoutError:
            seconds = self._settings.request_body_timeout_s
            raise Refusal("request_timeout", f"The body did not arrive within {seconds:g} s.") from None
        if length > limit:
            raise Refusal("body_too_large", f"Send at most {limit} bytes.", limit=limit)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise Refusal("unsupported_media_type", "Send JSON, with the header content-type: application/json.")
        return bytes(body)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        if not scope["path"].startswith("/v1/"):
            return  # health checks and scrapes say nothing and come all the time
        refused = scope["state"]["refused"]
        self._metrics.requests.labels("http", str(status)).inc()
        self._metrics.request_seconds.observe(seconds)
        if refused:
            self._metrics.refusals.labels(refused).inc()
        log = _log.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _log.info
        log(
            "request",
            method=scope["method"],
            path=_path(scope),
            status=status,
            refused=refused,
            sender=scope["state"].get("sender"),
            ms=round(seconds * 1000, 1),
        )


def _path(scope: Scope) -> str:
    return _keyed.sub(r"\1:…", scope["path"])


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
