"""Logs: one JSON object a line, on standard error, from our own code and from every library alike.

Each line has `time` (UTC), `level`, `event`, `logger`, `process` and `pid`, and whatever was bound or passed:
`structlog.get_logger().info("partition lost", topic=topic)`; `structlog.contextvars.bound_contextvars(request_id=…)`.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from drm_ingest.settings import Settings, unknown

REQUEST_ID = r"[A-Za-z0-9._:/+=-]{1,64}"
"""A request id of a sender's own choice is kept when it is one of these: no line of a log breaks at it."""


def configure(settings: Settings, process: str) -> None:
    """Send everything that is logged to standard error as JSON lines; call it once, first thing in a process.

    Standard output stays free for what a command prints.
    """
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _stamp(process),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *chain,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_line),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name, logger in logging.Logger.manager.loggerDict.items():
        # A library that set up its own handlers would write lines that are not JSON.
        if isinstance(logger, logging.Logger) and name.startswith(("uvicorn", "aiokafka", "asyncio")):
            logger.handlers.clear()
            logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # a line per event would cost more than the event
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    for variable, meant in unknown(os.environ):
        structlog.get_logger(__name__).warning("an unknown variable is ignored", variable=variable, meant=meant)


def _stamp(process: str) -> Processor:
    def stamp(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
        event_dict["process"] = process
        event_dict["pid"] = os.getpid()
        return event_dict

    return stamp


def _line(event_dict: EventDict, default: Callable[[Any], Any] = repr, **_: Any) -> str:
    try:
        line = orjson.dumps(event_dict, default=default, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate, an integer beyond 64 bits: slower, but a log line is never lost
        return json.dumps(event_dict, default=repr)
    if line.isprintable():
        return line
    # Some readers end a line at U+2028, some terminals obey U+009B, and U+202E turns what follows it round.
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("drm_ingest").critical("the process failed", exc_info=(kind, error, trace))
