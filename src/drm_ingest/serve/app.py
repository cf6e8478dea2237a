"""serve, put together: settings → pool → rooms."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import Depends, FastAPI

from drm_ingest import health, logs
from drm_ingest.guesses import Guesses
from drm_ingest.metrics import Metrics
from drm_ingest.postgres import trouble
from drm_ingest.postgres.migrate import BadMigrations, pending
from drm_ingest.postgres.pool import PASSING, Pool, open_pool
from drm_ingest.serve import (
    attributes,
    claims,
    devices,
    events,
    fleet_keys,
    hand_over,
    keys,
    links,
    origins,
    parties,
    problems,
    records,
    relationships,
    replacements,
    revisions,
    senders,
    timeline,
)
from drm_ingest.serve.access import Store, nothing_else
from drm_ingest.serve.requests import Requests
from drm_ingest.settings import Settings

READINESS_INTERVAL_S = 2.0
# Each question here has its index. Compiling it would take longer than answering it, and so would planning it anew for
# its parameters (a record asks half a dozen, of up to 20 KB of text). A partition that was empty when a plan was made
# would be read whole long after, and merging means going through all of an index.
PLANNER = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

DESCRIPTION = """
Who may send, whom events belong to, and the records that come of it.

Every request needs a key: `Authorization: Bearer drm_…`, or Basic with the key as user name.
Times are RFC 3339 with an offset and are answered in UTC. Lists are `{"items": […], "next": cursor or null}`.
Whatever goes wrong is problem+json (RFC 9457) with a stable `code`.
"""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    logs.configure(settings, "serve")
    for told in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when all is done; that is an orderly end, and not a death by signal.
        signal.signal(told, lambda *_: sys.exit(0))
    uvicorn.run(
        build(settings, Metrics("serve")),
        host=settings.serve_host,
        port=settings.serve_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.serve_connections_max,
        timeout_keep_alive=round(settings.connection_idle_timeout_s),
        timeout_graceful_shutdown=round(settings.drain_timeout_s),
    )


def build(settings: Settings, metrics: Metrics) -> FastAPI:
    """Return the application; Postgres is reached when it starts and may be down then."""
    readiness = Readiness()
    apart = settings.serve_health_port

    def ready() -> str | None:
        return readiness.reason

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            open_pool(settings, "drm serve", server_settings=PLANNER, stateless=True) as pool,
            contextlib.nullcontext() if apart is None else health.serve(settings.serve_host, apart, metrics, ready),
        ):
            app.state.store = Store(pool, settings, Guesses(settings))
            watching = asyncio.create_task(readiness.watch(pool), name="readiness")
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.wait([watching])

    app = FastAPI(
        title="drm-ingest: serve",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    app.add_middleware(Requests, settings=settings, metrics=metrics)
    if apart is None:
        app.include_router(health.router(metrics, ready))
    # records takes /v1/parties/{anything}, and so stands behind all others.
    party_rooms = (parties, attributes, links, origins, timeline, records)
    device_rooms = (claims, hand_over, replacements, devices)
    for room in (senders, keys, fleet_keys, *party_rooms, *device_rooms, relationships, revisions, events):
        app.include_router(room.routes, dependencies=[Depends(nothing_else)])
    return app


class Readiness:
    """Why requests could not be answered now; None: they could."""

    def __init__(self) -> None:
        self.reason: str | None = "starting"

    async def watch(self, pool: Pool) -> None:
        """Ask Postgres again and again, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(READINESS_INTERVAL_S):
                    todo = await pending(pool)
                self.reason = f"run drm-ingest migrate: {', '.join(todo)} is missing" if todo else None
            except BadMigrations as error:
                self.reason = str(error)
            except PASSING as error:
                self.reason = trouble.in_words(error)
            await asyncio.sleep(READINESS_INTERVAL_S)
