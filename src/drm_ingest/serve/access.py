"""Who asks, what they may, and the connection to Postgres that a request gets for it.

Every request is looked up in Postgres anew, so a revoked key is refused at once.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer

from drm_ingest.errors import Refusal
from drm_ingest.guesses import Guesses
from drm_ingest.postgres.credentials import KEY_PREFIX, key_hash
from drm_ingest.postgres.pool import Pool
from drm_ingest.postgres.registry import senders
from drm_ingest.serve.problems import invalid, store_failures_refused
from drm_ingest.serve.violations import NOTHING_OF_THIS_NAME
from drm_ingest.settings import Settings

KEY_CHARACTERS_MAX = 200
_GOOD_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Store:
    """What a request needs to reach Postgres; `app.state.store`."""

    pool: Pool
    settings: Settings
    guesses: Guesses
    good: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """Hashes of keys that were in force when they were last asked for: these are looked up whatever others guess."""


# None of these waits for anything, and yet they are async: FastAPI calls what is not in a thread, and waits for that.
async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


Stored = Annotated[Store, Depends(_store)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is."""

    id: UUID
    name: str
    role: str
    device: str | None
    devices: Sequence[str] | None
    """Devices it may write for, and so ask for; None: any."""
    parties: bool


_bearer = HTTPBearer(auto_error=False, description="A key.")
_basic = HTTPBasic(auto_error=False, description="A key as the user name; the password is ignored.")


async def caller(
    request: Request,
    store: Stored,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    basic: Annotated[HTTPBasicCredentials | None, Depends(_basic)],
) -> Caller:
    """Return whose key was sent.

    Raises:
        Refusal: unauthenticated, rate_limited.
    """
    key = bearer.credentials if bearer else basic.username if basic else ""
    if not key:
        raise Refusal("unauthenticated", "Send a key: Authorization: Bearer <key>, or Basic with it as user name.")
    row, hash_ = None, key_hash(key) if key.isascii() else b""
    address, now = request.client.host if request.client else None, monotonic()
    if hash_ not in store.good:
        store.guesses.refuse_if_spent(address, now)
    # What cannot be a key is not worth a question to Postgres.
    if key.startswith(KEY_PREFIX) and len(key) <= KEY_CHARACTERS_MAX and key.isascii():
        with store_failures_refused(store.settings.retry_after_s):
            row = await senders.sender_of_key(store.pool, key)
    if row is None:
        store.guesses.failed(address, now)
        store.good.pop(hash_, None)
        raise Refusal("unauthenticated", "This key is unknown, revoked or expired; ask an administrator for a new one.")
    store.good[hash_] = None
    store.good.move_to_end(hash_)
    if len(store.good) > _GOOD_MAX:
        store.good.popitem(last=False)
    request.state.sender = row["name"]
    return Caller(*(row[name] for name in ("id", "name", "role", "device", "devices", "parties")))


Anyone = Annotated[Caller, Depends(caller)]


async def nothing_else(request: Request, _caller: Anyone) -> None:
    """Refuse parameters where none are known: whoever sends `?dry_run=true` or `?known_at=…` counts on it.

    Where some are, their model refuses all others.
    """
    if request.query_params and not request.scope["route"].dependant.query_params:
        raise invalid(NOTHING_OF_THIS_NAME, parameter=next(iter(request.query_params)))


def _having(*roles: str) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(caller: Anyone) -> Caller:
        if caller.role not in roles:
            raise Refusal("forbidden", f"This needs the key of a sender with the role {' or '.join(roles)}.")
        return caller

    return allowed


admin = _having("admin")
reader = _having("admin", "reader")
Admin = Annotated[Caller, Depends(admin)]


async def connection(store: Stored) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection until the answer is made."""
    with store_failures_refused(store.settings.retry_after_s):
        async with store.pool.acquire() as db:
            yield db


Db = Annotated[asyncpg.Connection, Depends(connection, scope="function")]
