"""`POST /v1/events` as an ordinary FastAPI route: for other ASGI servers, and for connections that were handed over."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from drm_ingest.edge.answer import Answer
from drm_ingest.edge.replies import INSISTENT_PAUSE_S, TOO_MANY
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal


def router(take: Take, documented: dict[str, Any]) -> APIRouter:
    """Return the route; it answers as the door does, only at more cost. `documented` goes into its OpenAPI."""
    routes = APIRouter(tags=["events"])

    @routes.post("/v1/events", response_class=Response, **documented)
    async def post_events(request: Request) -> Response:
        headers = dict(request.headers.raw)
        request_id = take.request_id(headers)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        close = {}
        body_bytes = None
        try:
            credential = take.enter(headers, lambda: request.client.host if request.client else None)
            clock_offset_ms = take.clock_offset_ms(headers)
            body = await _body(request, take)
            body_bytes = len(body)
        except Refusal as refusal:
            answered.set_result(take.refuse(refusal, request_id))
            if refusal.problem.code == "request_timeout":
                close = {"connection": "close"}
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        else:
            reply = lambda answer: None if answered.done() else answered.set_result(answer)  # noqa: E731
            take.body(headers, body, credential, clock_offset_ms, request_id, reply)
        answer = await answered
        if answer.admitted is None or answer.admitted.results:
            take.tell.answered(
                answer,
                client=request.client.host if request.client else None,
                authorization=headers.get(b"authorization"),
                body_bytes=body_bytes,
            )
        if answer.status == TOO_MANY:
            await asyncio.sleep(INSISTENT_PAUSE_S)
        content = answer.body()
        own = {name.decode(): value.decode() for name, value in answer.headers(content)}
        return Response(content, answer.status, own | close)

    return routes


async def _body(request: Request, take: Take) -> bytes:
    """Read the body within its limits.

    Raises:
        Refusal: body_too_large, overloaded, request_timeout.
        ClientDisconnect: the sender left.
    """
    limits, seconds = take.limits, take.settings.request_body_timeout_s
    body = bytearray()
    held = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                take.hold(len(body) + len(chunk), held)
                body += chunk
                limits.body_bytes += len(chunk)
                held += len(chunk)
    except TimeoutError:
        raise take.too_slow("body", seconds) from None
    finally:
        limits.body_bytes -= held
    return bytes(body)
