"""`/health/live`, `/health/ready` and `/metrics`, the same on every process.

Live means the event loop turns; ready means the process could do its work now: the edge acknowledge an event, a worker
make one durable. A process that is live but not ready is left running and sent no work.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from drm_ingest.errors import PROBLEM_MEDIA_TYPE, Refusal
from drm_ingest.metrics import Metrics


def router(
    metrics: Metrics, ready: Callable[[], str | None], gather: Callable[[], Awaitable[Collector]] | None = None
) -> APIRouter:
    """Return the three routes; `ready` returns None when ready, else the reason in a few words. It must not block.

    `gather` returns what a scrape shows in place of this process's own counts, where several share a port.
    """
    routes = APIRouter(tags=["health"])
    metrics.ready.set_function(lambda: ready() is None)
    metrics.tasks.set_function(lambda: len(asyncio.all_tasks()))  # read in a scrape, so from the loop it is about

    @routes.get("/health/live", summary="Is the process alive?")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @routes.get(
        "/health/ready",
        summary="Could it do its work now?",
        responses={503: {"description": "Not now; `detail` says why.", "content": {PROBLEM_MEDIA_TYPE: {}}}},
    )
    async def is_ready() -> Response:
        reason = ready()
        if reason is None:
            return Response(b'{"status":"ready"}', media_type="application/json")
        refusal = Refusal("not_ready", reason)
        return Response(
            orjson.dumps(refusal.body(secrets.token_hex(8))),
            status_code=refusal.problem.status,
            headers={"retry-after": "1", "cache-control": "no-store"},
            media_type=PROBLEM_MEDIA_TYPE,
        )

    @routes.get("/metrics", summary="What this process counts, for Prometheus", response_class=Response)
    async def scrape(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        shown = metrics.registry if gather is None else await gather()
        return Response(encode(shown), headers={"content-type": content_type})

    return routes


@contextlib.asynccontextmanager
async def serve(
    host: str,
    port: int,
    metrics: Metrics,
    ready: Callable[[], str | None],
    gather: Callable[[], Awaitable[Collector]] | None = None,
) -> AsyncIterator[str]:
    """Serve the three routes from the running event loop while the context is open; yield the base URL.

    Port 0 takes a free one. For a worker that has no HTTP of its own, and for others that keep these routes from their
    clients: when the loop hangs, so does `/health/live`. With `gather` the port is shared by several of a kind.

    Raises:
        OSError: the address is taken.
    """
    app = FastAPI(openapi_url=None)
    app.include_router(router(metrics, ready, gather))
    # Bound here and not by uvicorn, which answers a taken port with sys.exit from inside a task.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=128, reuse_port=gather is not None)
    server = _Guest(
        uvicorn.Config(
            app, lifespan="off", ws="none", log_config=None, access_log=False, limit_concurrency=100,
            timeout_keep_alive=60, timeout_graceful_shutdown=1, server_header=False,
        )
    )  # fmt: skip
    # No need to wait for it: the socket listens already.
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="health")
    try:
        address = f"[{host}]" if ":" in host else host
        yield f"http://{address}:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        bound.close()


class _Guest(uvicorn.Server):
    """A server inside a process that handles its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[Any]:
        yield
