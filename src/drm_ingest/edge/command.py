"""`drm-ingest edge`: the edge as a process, with its socket, its logs, and what it says when it cannot start."""

import logging
import resource
import socket
import sys
from pathlib import Path

import structlog
import uvloop

from drm_ingest import logs
from drm_ingest.edge.app import serve
from drm_ingest.edge.buckets import Memory
from drm_ingest.edge.quotas import quota_memory
from drm_ingest.edge.workers import Siblings, Workers
from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.topics import TopicsWrong
from drm_ingest.schema import BadSchema
from drm_ingest.settings import Settings

log = structlog.get_logger(__name__)

_FILES_BESIDES_CONNECTIONS = 200  # Kafka, Postgres, the program itself


def run(settings: Settings, workers: int = 1) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, or 1 where it cannot start."""
    _configure_logs(settings)
    try:
        if workers > 1:
            return Workers(settings, workers, run_worker).run()
        with bind(settings) as bound:
            uvloop.run(serve(settings, bound, bytearray(quota_memory(settings))))
    except (OSError, KafkaUnreachable, TopicsWrong, BadSchema) as error:
        log.critical("the edge cannot start", reason=str(error))
        return 1
    return 0


def run_worker(settings: Settings, folder: Path, worker: int, memory: Memory) -> None:
    """Serve as one of several, with a folder and the memory of the quotas in common; ends with the parent."""
    _configure_logs(settings)
    structlog.contextvars.bind_contextvars(worker=worker)
    try:
        with bind(settings, shared=True) as bound:
            uvloop.run(serve(settings, bound, memory, Siblings(folder, worker)))
    except (OSError, KafkaUnreachable, TopicsWrong, BadSchema) as error:
        log.critical("the edge cannot start", reason=str(error))
        sys.exit(1)


def bind(settings: Settings, *, shared: bool = False) -> socket.socket:
    """Return the listening socket; `shared` lets other workers listen on the same port (SO_REUSEPORT).

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in settings.edge_host else socket.AF_INET
    address = (settings.edge_host, settings.edge_port)
    _allow_connections(settings)
    return socket.create_server(address, family=family, backlog=settings.edge_backlog_connections, reuse_port=shared)


def _configure_logs(settings: Settings) -> None:
    logs.configure(settings, "edge")
    # uvicorn tells of every WebSocket and every request that is not HTTP; they are counted, and a scanner sends many.
    logging.getLogger("uvicorn.error").setLevel("ERROR")


def _allow_connections(settings: Settings) -> None:
    """Raise the limit of open files as far as we may."""
    wanted = settings.connections_max + _FILES_BESIDES_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < settings.connections_max + _FILES_BESIDES_CONNECTIONS:
        log.warning("the limit of open files is lower than DRM_CONNECTIONS_MAX needs", files_max=wanted)
