"""Events: how they are shown, and what became of one."""

from collections.abc import Sequence
from datetime import UTC
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.event import (
    ID_CHARACTERS_MAX,
    LINKED,
    PARTY_PREFIX,
    SOURCE_CHARACTERS_MAX,
    UNLINKED,
    identity_source,
)
from drm_ingest.postgres.record.known import NOW, View
from drm_ingest.postgres.record.page import Position, Wanted
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import links, relationships
from drm_ingest.postgres.store import fates
from drm_ingest.serve import pages
from drm_ingest.serve.access import Anyone, Caller, Db
from drm_ingest.serve.problems import documented
from drm_ingest.serve.shapes import EventType, PageQuery, Request, StoredTime, Subject, Text, Time, from_json

routes = APIRouter(prefix="/v1/events", tags=["events"])

_DATA = {"temperature": 21.4}


def _hexadecimal(value: UUID | str) -> str:
    return value.hex if isinstance(value, UUID) else value


class Event(BaseModel):
    """An event as it is stored."""

    subject: str = Field(examples=["meter-7"])
    source: str = Field(description="empty: sent without one", examples=[""])
    id: str = Field(examples=["8f14e45f"])
    type: str = Field(examples=["device.measurement"])
    occurred_at: StoredTime = Field(description="when it happened, by our clock")
    occurred_at_raw: str | None = Field(description="`time` as sent; null: none was")
    time_quality: str = Field(description="sent, corrected, assumed or clamped", examples=["sent"])
    received_at: StoredTime = Field(description="at the edge")
    recorded_at: StoredTime = Field(description="here")
    sequence: str | None
    sender: str = Field(examples=["thermostat fleet"])
    dataschema: str | None = Field(examples=["1.0"])
    content_hash: Annotated[str, BeforeValidator(_hexadecimal)] = Field(
        description="of type, time and data as sent; what tells a repeat from a conflict",
        examples=["9f86d081884c7d65" * 2],
    )
    data: Annotated[Any, from_json] = Field(examples=[_DATA])


class EventsQuery(PageQuery):
    """Of lists of events; newest first."""

    type: list[EventType] = Field([], max_length=50, description="only these types; repeatable")
    since: Time | None = Field(None, description="that happened then or later")
    until: Time | None = Field(None, description="that happened before then")


def wanted(query: EventsQuery, list_: str, bytes_max: int, view: View = NOW) -> Wanted:
    """Return what a list of events asks of Postgres: one more than its page, to know whether there is a next one."""
    after = pages.start(query, list_, Position)
    if after and (after.occurred_at.tzinfo is not UTC or after.occurred_at.year == 9999):
        raise pages.foreign()
    return Wanted(query.type, query.since, query.until, after, query.limit + 1, bytes_max, view)


def page(
    found: Sequence[asyncpg.Record], query: EventsQuery, list_: str
) -> tuple[Sequence[asyncpg.Record], str | None]:
    """Return the rows of the page, and its `next`."""
    rows = found[: query.limit]
    if not rows or rows[0]["found"] <= len(rows):
        return rows, None
    last = rows[-1]
    position = Position(*(last[name] for name in ("occurred_at", "subject", "source", "id", "rank")))
    return rows, pages.end(query, list_, position)


class DeadLetter(BaseModel):
    """An event set aside after its 200, with the reason."""

    stage: str = Field(examples=["attach"])
    code: str = Field(examples=["id_conflict"])
    detail: str
    recorded_at: StoredTime
    topic: str = Field(description="where its bytes are", examples=["drm.dead-letters"])
    partition: int
    offset: int


class Why(BaseModel):
    """A relation through which an event is on a record."""

    relationship: UUID
    version: int = Field(description="the one that is known now", examples=[1])
    subject: str = Field(description="of the relation: the device, or the party", examples=["meter-7"])
    role: str = Field(examples=["owner"])
    valid_from: StoredTime | None
    valid_to: StoredTime | None


class Attached(BaseModel):
    """A party whose record the event is on, and why."""

    party: UUID
    kind: str = Field(examples=["customer"])
    roles: list[str] = Field(description="held when it happened; `self`: it is about the party", examples=[["owner"]])
    relations: Annotated[list[Why], from_json] = Field(description="that held when it happened; `self` needs none")


class Identity(BaseModel):
    """What came of an event that links people with devices."""

    state: Literal["due", "linked", "refused"] = Field(
        description="linked: relations have it in them; due: they soon will; refused: it says nothing"
    )
    detail: str | None = Field(description="why it says nothing")


class Fate(BaseModel):
    """What became of an event, asked for by its identity."""

    subject: str = Field(examples=["meter-7"])
    source: str = Field(examples=[""])
    id: str = Field(examples=["8f14e45f"])
    fate: Literal["pending", "attached", "duplicate", "dead_letter"] = Field(examples=["attached"])
    detail: str = Field(description="what that means", examples=["It is stored, once."])
    event: Event | None = Field(description="null: not stored, dropped by retention, or sent by somebody else")
    attached_to: list[Attached]
    identity: Identity | None = Field(None, description="of identity.linked and identity.unlinked")
    dead_letters: list[DeadLetter] = Field(description="other events under the same identity, and refused rows")


class FateQuery(Request):
    subject: Subject
    id: Annotated[Text, StringConstraints(min_length=1, max_length=ID_CHARACTERS_MAX)] = Field(
        description="as sent, or as assigned in the answer"
    )
    source: Annotated[Text, StringConstraints(max_length=SOURCE_CHARACTERS_MAX)] | None = Field(
        None, description="as sent; left out: none for a device, the name of this key's sender for a party"
    )


@routes.get(
    "",
    summary="What became of an event",
    description="A sender's key may ask for what it sent: of an event stored as another sender's it learns only that "
    "it is there (`duplicate`), and a key bound to a device learns of no other device.",
    responses=documented(),
)
async def fate(query: Annotated[FateQuery, Query()], caller: Anyone, db: Db) -> Fate:
    subject, id_ = query.subject, query.id
    if caller.role == "sender":
        _refuse_out_of_scope(caller, subject)
    source = query.source
    if source is None:
        source = caller.name if subject.startswith(PARTY_PREFIX) else ""
    source = identity_source(subject, source)
    stored = await fates.stored(db, subject, source, id_)
    dead = await fates.dead_letters(db, subject, source, id_)
    answer = Fate(
        subject=subject, source=source, id=id_, fate="pending", detail=_PENDING, event=None, attached_to=[],
        dead_letters=[DeadLetter(**row) for row in dead],
    )  # fmt: skip
    if stored is None:
        if dead:
            answer.fate, answer.detail = "dead_letter", "It was set aside; dead_letters says why and what to do."
        return answer
    dropped, own = stored["event_id"] is None, caller.role != "sender" or stored["sender"] == caller.name
    if not own and not dropped:
        answer.fate, answer.detail, answer.dead_letters = "duplicate", _DUPLICATE, []
        return answer
    answer.fate, answer.detail = "attached", _DROPPED if dropped else _ATTACHED_FIRST if dead else _ATTACHED
    if own:
        answer.event = None if dropped else Event(**stored)
        answer.attached_to = await _attached_to(db, subject, stored["occurred_at"])
        if stored["type"] in (LINKED, UNLINKED):
            answer.identity = _identity(await fates.identity(db, subject, source, id_))
    return answer


def _identity(said: asyncpg.Record | None) -> Identity:
    if said is None:
        return Identity(state="refused", detail="It was stored before identity events began relations.")
    if said["due"]:
        return Identity(state="due", detail=None)
    return Identity(state="linked" if said["refused"] is None else "refused", detail=said["refused"])


def _refuse_out_of_scope(caller: Caller, subject: str) -> None:
    """Whoever may not write for a subject may not ask for its events either.

    Raises:
        Refusal: forbidden.
    """
    if caller.device not in (None, subject):
        raise Refusal("forbidden", f"This key is bound to {caller.device}.")
    if subject.startswith(PARTY_PREFIX):
        if not caller.parties:
            raise Refusal("forbidden", "The scope of this key leaves parties out.", missing_scopes=["parties"])
    elif caller.devices is not None and not any(
        subject.startswith(listed[:-1]) if listed.endswith("*") else subject == listed for listed in caller.devices
    ):
        raise Refusal("forbidden", "The scope of this key (devices) does not list it.", missing_scopes=["devices"])


_PENDING = (
    "Nothing is stored under this identity, yet or at all. "
    "If it was accepted (200, and not among the rejected), it will be, within seconds unless attach is behind; "
    "or enrich set it aside, which only who runs this can see (drm-ingest dead-letters list --stage enrich). "
    "If it was refused, it is not kept: mend it and send it. "
    "If it was sent with a source, ask with that source. "
    "If there was no answer, it may never have arrived: send it again, which is always safe."
)
_ATTACHED = "It is stored, once."
_ATTACHED_FIRST = "The first event under this identity is stored, once; others under it are in dead_letters."
_DROPPED = "It was stored, once; the event itself has been dropped by retention."
_DUPLICATE = (
    "An event with this identity is stored, sent first by another sender; if it is the same, yours was a repeat of it."
)


async def _attached_to(db: asyncpg.Connection, subject: str, at: Any) -> list[Attached]:
    """Return the parties on whose record an event of this subject and time is: by role, or because it is about them."""
    held_on = await relationships.canonical_subject(db, subject)
    if held_on is None:
        return []
    if not held_on.startswith(PARTY_PREFIX):
        return [Attached(**row) for row in await relationships.held_at(db, [held_on], at)]
    same = await links.group(db, UUID(held_on.removeprefix(PARTY_PREFIX)))
    about = [Attached(**row, roles=["self"], relations=[]) for row in await parties.kinds(db, same)]
    held = await relationships.held_at(db, [f"{PARTY_PREFIX}{id_}" for id_ in same], at)
    return about + [Attached(**row) for row in held if row["party"] not in same]
