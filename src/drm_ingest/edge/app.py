"""The edge, put together: settings → clients → steps → the server that carries them."""

import gc
import socket
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from secrets import token_hex
from typing import Any, cast

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocket

from drm_ingest import health
from drm_ingest.edge import asyncapi, openapi, route, shapes
from drm_ingest.edge.admit import Admit
from drm_ingest.edge.buckets import Memory
from drm_ingest.edge.credentials import Credentials
from drm_ingest.edge.identify import Identify
from drm_ingest.edge.limits import Connection, Limits
from drm_ingest.edge.quotas import DEVICES, SENDERS, Quotas
from drm_ingest.edge.refusals import REMEDIES
from drm_ingest.edge.server import Server
from drm_ingest.edge.sessions import Sessions
from drm_ingest.edge.spread import Spread
from drm_ingest.edge.take import Take
from drm_ingest.edge.tell import Tell
from drm_ingest.edge.workers import Siblings
from drm_ingest.edge.write import Write
from drm_ingest.errors import Refusal
from drm_ingest.kafka import topics
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Writer
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

_FLUSH_S = 1.0
"""For events that nobody waits for any more; the others were waited for while draining."""

log = structlog.get_logger(__name__)


async def serve(settings: Settings, bound: socket.socket, memory: Memory, siblings: Siblings | None = None) -> None:
    """Serve the edge on a bound socket until SIGTERM or SIGINT; with `siblings`, as one of several on the same port.

    `memory` holds the quotas, and is the siblings' too.

    Raises:
        KafkaUnreachable, TopicsWrong, BadSchema: it cannot work; the message says what to do.
    """
    schemas = Schemas.load(settings.schemas_dir)
    await topics.check(settings, schemas.families)
    metrics = Metrics("edge")
    limits = Limits(settings)
    credentials = Credentials(settings, metrics)
    identify = Identify(settings, credentials, metrics)
    quotas = Quotas(settings, memory)
    machine, first = siblings.who if siblings else (token_hex(8), True)
    spread = Spread(settings, quotas, machine, first=first)
    writer = Writer(settings, metrics)
    admit = Admit(settings, schemas)
    ingress = Topics.of(settings).ingress
    tell = Tell(settings, credentials)

    def take(transport: str) -> Take:
        write = Write(settings, writer, ingress, metrics, transport)
        return Take(settings, limits, identify, quotas, admit, write, tell)

    def ready() -> str | None:
        """Say why no event could be acknowledged now, if so."""
        if server.draining:
            return "stopping"
        if not credentials.ready:
            return "credentials have not been read from Postgres yet"
        return None if writer.ready else "Kafka does not acknowledge, or the buffer for it is full"

    over_http, over_websocket = take("http"), take("websocket")
    sessions = Sessions(over_websocket, ready)
    gather = siblings.gather if siblings else None
    apart = settings.edge_health_port
    health_routes = health.router(metrics, ready, gather) if apart is None else APIRouter()
    server = Server(settings, build(settings, over_http, sessions, health_routes), over_http, sessions.drain)
    limits.watch(cast("Collection[Connection]", server.server_state.connections))
    _show(metrics, limits, quotas)
    await credentials.start()
    await spread.start()
    await writer.start()
    gc.collect()
    gc.freeze()  # what is there now stays; the collector need not look at it again
    try:
        async with (
            siblings.joined(metrics.registry, server.stop) if siblings else nullcontext(),
            nullcontext() if apart is None else health.serve(settings.edge_host, apart, metrics, ready, gather),
        ):
            log.info("serving", address=":".join(map(str, bound.getsockname()[:2])))
            await server.serve([bound])
    finally:
        await writer.stop(_FLUSH_S)
        await spread.stop()
        await credentials.stop()
        limits.stop()


def build(settings: Settings, take: Take, sessions: Sessions, health_routes: APIRouter) -> FastAPI:
    """Return the application behind the door: health, metrics, documents, WebSockets, and the ordinary route."""
    app = FastAPI(
        title="drm-ingest edge",
        version=version("drm-ingest"),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        redirect_slashes=False,
    )
    app.include_router(route.router(take, openapi.post_events(take)))
    app.include_router(health_routes)

    @app.websocket("/v1/events")
    async def events(socket: WebSocket) -> None:
        await sessions.serve(socket)

    @app.get("/asyncapi.json", tags=["events"], summary="The messages of the WebSocket /v1/events (AsyncAPI 3)")
    async def messages(request: Request) -> JSONResponse:
        return JSONResponse(asyncapi.document(settings, request.url.netloc, secure=request.url.scheme == "https"))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        """Answer what no route takes."""
        request_id = take.request_id(dict(request.headers.raw))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
        answer = take.refuse(Refusal(code, REMEDIES.get(code, str(error.detail))), request_id)
        take.tell.answered(
            answer,
            client=request.client.host if request.client else None,
            authorization=request.headers.get("authorization", "").encode("latin-1"),
        )
        content = answer.body()
        headers = {name.decode(): value.decode() for name, value in answer.headers(content)}
        return Response(content, answer.status, {**(error.headers or {}), **headers})

    app.openapi = partial(_with_components, app.openapi, settings)  # type: ignore[method-assign]
    if origins := settings.edge_cors_origins.replace(",", " ").split():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return app


def _with_components(described: Callable[[], dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Add what FastAPI can describe only where it checks key and body itself."""
    document = described()
    components = document.setdefault("components", {})
    components["securitySchemes"] = openapi.SECURITY_SCHEMES
    components.setdefault("schemas", {}).update(shapes.schemas(settings))
    return document


def _show(metrics: Metrics, limits: Limits, quotas: Quotas) -> None:
    """Let a scrape read what is known anyway."""
    for kind in (SENDERS, DEVICES):
        metrics.quotas_in_debt.labels(kind).set_function(partial(quotas.in_debt, kind))
    metrics.request_bytes_in_flight.set_function(lambda: limits.body_bytes)
    metrics.connections.labels("http").set_function(lambda: limits.open_connections(websocket=False))
    metrics.connections.labels("websocket").set_function(lambda: limits.open_connections(websocket=True))
