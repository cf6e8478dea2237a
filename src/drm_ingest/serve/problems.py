"""Whatever goes wrong, answered as problem+json (RFC 9457): validation, unknown paths, a Postgres that is down."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import orjson
import structlog
from asyncpg.exceptions._base import DataError as UnencodableValue  # found by asyncpg itself, before sending
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from drm_ingest.errors import PROBLEM_MEDIA_TYPE, PROBLEMS, Refusal
from drm_ingest.serve.violations import refusal_for

_log = structlog.get_logger("drm_ingest.serve")


class Violation(BaseModel):
    """One parameter or field that is wrong."""

    pointer: str | None = Field(None, description="JSON pointer into the body", examples=["/refs/crm"])
    parameter: str | None = Field(None, description="name of a query or path parameter", examples=["limit"])
    detail: str = Field(examples=["Must be at most 1000."])


class ProblemDocument(BaseModel):
    """Why a request was refused, and what to do (RFC 9457)."""

    type: str = Field(examples=["https://drm-ingest.dev/problems/not_found"])
    title: str = Field(examples=["There is nothing here."])
    status: int = Field(examples=[404])
    code: str = Field(description="stable; program against it", examples=["not_found"])
    detail: str = Field(description="what to do", examples=["There is no party crm:778."])
    request_id: str = Field(description="the logs know it", examples=["f1d2d2f924e986ac"])
    violations: list[Violation] | None = Field(None, description="with `invalid_parameters`")


_ANY_ROUTE = (
    "malformed_json", "unauthenticated", "forbidden", "request_timeout", "body_too_large", "unsupported_media_type",
    "invalid_parameters", "rate_limited", "store_unavailable",
)  # fmt: skip


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a route for its OpenAPI; those that any route may give are there already."""
    by_status: dict[int, list[str]] = {}
    for code in (*codes, *_ANY_ROUTE):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return {
        status: {
            "model": ProblemDocument,
            "description": " ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes),
            "content": {PROBLEM_MEDIA_TYPE: {"example": _example(codes[0])}},
        }
        for status, codes in sorted(by_status.items())
    }


def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with problems under their own media type: the framework has them as plain JSON."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for path in document["paths"].values():
            for operation in path.values():
                for status, response in operation["responses"].items():
                    content = response.get("content", {})
                    if status >= "400" and PROBLEM_MEDIA_TYPE in content:
                        content[PROBLEM_MEDIA_TYPE] |= content.pop("application/json", {})
    return app.openapi_schema or {}


def _example(code: str) -> dict[str, object]:
    return Refusal(code, PROBLEMS[code].title).body("f1d2d2f924e986ac")


def answer(refusal: Refusal, request_id: str) -> Response:
    """Return the response for a refusal."""
    headers = {"cache-control": "no-store"}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.problem.status == 401:
        headers["www-authenticate"] = 'Bearer realm="drm-ingest", Basic realm="drm-ingest"'
    headers |= {name.decode(): value.decode() for name, value in refusal.headers}
    return Response(
        orjson.dumps(refusal.body(request_id), default=str, option=orjson.OPT_UTC_Z),
        status_code=refusal.problem.status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def install(app: FastAPI) -> None:
    """Have `app` answer refusals, failed validation and its own 404 and 405 as problems."""

    async def refused(request: Request, error: Refusal) -> Response:
        # Nothing is called `x/links`, but that is how a door of other methods ends.
        if error.problem.code == "not_found" and (methods := _methods(request)) and request.method not in methods:
            error = _not_taken(request, methods)
        request.state.refused = error.problem.code
        return answer(error, request.state.request_id)

    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, refusal_for(error.errors(), error.body))

    async def raised_by_framework(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return await refused(request, _not_taken(request, _methods(request)))
        code, detail = {
            401: ("unauthenticated", "The Authorization header cannot be read; send a key as Bearer or Basic."),
            404: ("not_found", f"There is no {request.url.path}; /docs lists what there is."),
        }.get(error.status_code, ("malformed_json", "The body cannot be read as JSON in UTF-8."))
        return await refused(request, Refusal(code, detail))

    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    app.exception_handler(Refusal)(refused)
    app.exception_handler(RequestValidationError)(not_valid)
    app.exception_handler(HTTPException)(raised_by_framework)


def _not_taken(request: Request, methods: set[str]) -> Refusal:
    detail = f"{request.url.path} does not take {request.method}; /docs lists what it takes."
    return Refusal("method_not_allowed", detail).with_headers((b"allow", ", ".join(sorted(methods)).encode()))


def _methods(request: Request) -> set[str]:
    """Return the methods that the path takes; the framework tells those of the first route only.

    Where a name takes the rest of a path (/v1/parties/{party}) longer ones fit too (…/links): the longest is meant.
    """
    routes = [each for each in iter_route_contexts(request.app.routes) if each.path_regex.match(request.scope["path"])]
    parts = [str(route.path_format).count("/") for route in routes]
    longest = [route for route, count in zip(routes, parts, strict=True) if count == max(parts)]
    return {method for route in longest for method in route.methods or ()}


def invalid(detail: str, *, pointer: str | None = None, parameter: str | None = None) -> Refusal:
    """Return the refusal of one field of the body or one parameter."""
    place = {"pointer": pointer, "parameter": parameter}
    violation = {name: value for name, value in place.items() if value is not None} | {"detail": detail}
    return Refusal("invalid_parameters", f"{pointer or parameter}: {detail}", violations=[violation])


@contextmanager
def store_failures_refused(retry_after_s: int) -> Iterator[None]:
    """Turn what Postgres does when it is down, overloaded or not migrated into a refusal, and never a 500.

    A change that was under way then may have been made; asking again tells: what is there already is answered as it is,
    or is a 409 that names it.
    """
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        _log.error("the database is not migrated", error=str(error))
        raise Refusal(
            "not_ready", "The database is not up to date; run drm-ingest migrate.", retry_after_s=5
        ) from error
    except (asyncpg.DataError, UnencodableValue) as error:
        raise Refusal("invalid_parameters", "A value is out of the range of what can be stored.") from error
    except asyncpg.QueryCanceledError as error:
        detail = "Postgres took too long; ask for less at a time, or try again."
        raise Refusal("store_unavailable", detail, retry_after_s=retry_after_s) from error
    except _UNAVAILABLE as error:
        _log.warning("Postgres cannot be used", error=str(error), kind=type(error).__name__)
        detail = "Postgres cannot be reached now; try again."
        raise Refusal("store_unavailable", detail, retry_after_s=retry_after_s) from error


_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection closed under us
    asyncpg.InternalClientError,  # and did so at the wrong moment for asyncpg
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, cancelled
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,  # a deadlock or a conflict of snapshots: trying again helps
    asyncpg.ReadOnlySQLTransactionError,  # after a fail-over, still on the old primary
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresSystemError,
)
