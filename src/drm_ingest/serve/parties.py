"""Parties: the people and companies that events belong to, and what other systems call them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from drm_ingest import reference
from drm_ingest.errors import Refusal, json_pointer
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.registry import devices, parties
from drm_ingest.serve import pages
from drm_ingest.serve.access import Db, Stored, admin, reader
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Name, Page, PageQuery, PartyName, Request, StoredTime, Text, from_json
from drm_ingest.settings import Settings

routes = APIRouter(prefix="/v1/parties", tags=["parties"])

Kind = Literal["customer", "vendor", "partner", "employee", "supplier"]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
Ref = Annotated[Text, StringConstraints(min_length=1, max_length=150)]
Reference = Annotated[Text, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}:[\s\S]{1,150}$")]
OneOrSeveral = Annotated[
    Annotated[Ref, Tag("one")] | Annotated[list[Ref], Field(min_length=1, max_length=20), Tag("several")],
    Discriminator(lambda sent: "several" if isinstance(sent, list) else "one"),
]
NewRefs = Annotated[
    dict[Namespace, OneOrSeveral],
    Field(
        max_length=20,
        description="what other systems call it, by namespace; several of one namespace as a list. "
        "`email` and `phone` are kept as their keyed hashes, `email-hmac` and `phone-hmac`.",
        examples=[{"crm": "778"}],
    ),
]
Refs = Annotated[
    dict[str, list[str]],
    from_json,
    Field(description="what other systems call it, by namespace", examples=[{"crm": ["778"]}]),
]


class NewParty(Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "customer", "name": "Ada Byron", "refs": {"crm": "778"}}]}
    )

    kind: Kind
    name: Name
    refs: NewRefs = Field(default_factory=dict)


class MoreRefs(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"refs": {"shop": ["a9", "b2"]}}]})

    refs: Annotated[NewRefs, Field(min_length=1)]


class Party(BaseModel):
    id: UUID = Field(examples=["01a202fd-12a9-75d6-a27e-21b5246620a3"])
    kind: Kind
    name: str = Field(examples=["Ada Byron"])
    refs: Refs
    created_at: StoredTime


class Removed(BaseModel):
    removed: int = Field(description="0: it was not called so", examples=[1])


class PartyQuery(PageQuery):
    ref: Reference | None = Field(None, description="a reference, which names at most one party", examples=["crm:778"])
    kind: Kind | None = None


def named(name: str, settings: Settings) -> str:
    """Return what a party is called as that is kept: by a mail address or a phone number as its keyed hash."""
    namespace, _, ref = name.partition(":")
    if namespace in reference.KEYED:
        with contextlib.suppress(reference.NotAReference):  # then nobody is called so
            return ":".join(reference.kept(namespace, ref, reference.key_of(settings)))
    return name


def named_subject(subject: str, settings: Settings) -> str:
    """Return the same of a subject; one that is no party is called what it is called."""
    if not subject.startswith(PARTY_PREFIX):
        return subject
    return PARTY_PREFIX + named(subject.removeprefix(PARTY_PREFIX), settings)


async def refuse_half_a_name(db: asyncpg.Connection, subject: str, settings: Settings) -> None:
    """Refuse a device that is not there under a name of a party: `crm:778`, where `party:crm:778` is meant.

    Raises:
        Refusal: invalid.
    """
    if await parties.find_party(db, named(subject, settings)) and not await devices.device(db, subject):
        raise invalid(half_a_name(subject), pointer="/subject")


def half_a_name(subject: str) -> str:
    """Say what is wrong with a subject that is no device, and which a party is called."""
    return (
        f"There is no device {subject}, and a party is called so: write {PARTY_PREFIX}{subject}. "
        "A device of that name is registered by PUT /v1/devices/… first."
    )


def _in_path(party: Annotated[PartyName, Path()], store: Stored) -> str:
    return named(party, store.settings)


InPath = Annotated[str, Depends(_in_path)]


async def known_party(db: asyncpg.Connection, name: str) -> UUID:
    """Return the id of the party that a path names.

    Raises:
        Refusal: not_found.
    """
    id_ = await parties.find_party(db, name)
    if id_ is None:
        raise Refusal("not_found", f"There is no party {name}; GET /v1/parties lists them.")
    return id_


@routes.post(
    "",
    status_code=201,
    summary="Make a party",
    description="References that may stand for anybody (`null`, `0`, `anonymous`, `test@…`) are refused.",
    responses=documented("conflict"),
    dependencies=[Depends(admin)],
)
async def create(body: NewParty, response: Response, db: Db, store: Stored) -> Party:
    refs = list(kept(body.refs, store.settings))
    limit = store.settings.party_references_max
    try:
        id_ = await parties.create(db, body.kind, body.name, refs, limit)
    except parties.ReferenceTaken as taken:
        raise _taken(taken) from None
    except parties.TooManyReferences:
        raise _too_many(limit) from None
    response.headers["location"] = f"/v1/parties/{id_}"
    return await _shown(db, id_)


@routes.get("", summary="List parties", responses=documented(), dependencies=[Depends(reader)])
async def list_(query: Annotated[PartyQuery, Query()], db: Db, store: Stored) -> Page[Party]:
    after = pages.start(query, "parties", UUID)
    ref = None
    if query.ref is not None:
        ref = ":".join(_as_kept(query.ref, store.settings))
    found = await parties.parties(db, kind=query.kind, reference=ref, after=after, limit=query.limit + 1)
    rows, last = pages.cut(found, query)
    return Page(items=[Party(**row) for row in rows], next=last and pages.end(query, "parties", last["id"]))


# The name of a party may hold a slash (crm:a/7): the parameter takes what is left of the path.
@routes.post(
    "/{party:rest}/refs",
    summary="Call a party by more references",
    description="Those that it has already stay as they are, so repeating is safe.",
    responses=documented("not_found", "conflict"),
    dependencies=[Depends(admin)],
)
async def add_refs(party: InPath, body: MoreRefs, db: Db, store: Stored) -> Party:
    id_ = await known_party(db, party)
    limit = store.settings.party_references_max
    try:
        await parties.add_references(db, id_, kept(body.refs, store.settings), limit)
    except parties.ReferenceTaken as taken:
        raise _taken(taken) from None
    except parties.TooManyReferences:
        raise _too_many(limit) from None
    return await _shown(db, id_)


@routes.delete(
    "/{party:rest}/refs/{ref:rest}",
    summary="Call a party by a reference no more",
    description="What events say of the reference is on its record no more, until a party is called so again.",
    responses=documented("not_found", "conflict"),
    dependencies=[Depends(admin)],
)
async def remove_ref(
    party: InPath,
    ref: Annotated[Reference, Path(description="as in crm:778", examples=["crm:778"])],
    db: Db,
    store: Stored,
) -> Removed:
    id_ = await known_party(db, party)
    namespace, _, value = ref.partition(":")
    try:
        # First as it is: what is refused or kept keyed today may have been kept in the clear before.
        removed = await parties.remove_reference(db, id_, (namespace, value))
        if not removed and namespace in reference.KEYED:
            removed = await parties.remove_reference(db, id_, _as_kept(ref, store.settings))
    except parties.ReferenceTaken as taken:
        detail = f"{taken.reference} is party {taken.party}, and not {id_}; nothing was removed."
        raise Refusal("conflict", detail, party=taken.party, ref=taken.reference) from None
    return Removed(removed=int(removed))


def kept(refs: Mapping[str, str | list[str]], settings: Settings) -> Iterator[parties.Reference]:
    """Yield references as they are kept.

    Raises:
        Refusal: one of them must not be.
    """
    for namespace, values in refs.items():
        for number, ref in enumerate([values] if isinstance(values, str) else values):
            try:
                yield reference.kept(namespace, ref, reference.key_of(settings))
            except reference.NotAReference as wrong:
                place = ("refs", namespace) if isinstance(values, str) else ("refs", namespace, number)
                raise invalid(str(wrong), pointer=json_pointer(*place)) from None


def _as_kept(ref: str, settings: Settings) -> parties.Reference:
    """Return a reference that is asked for as it is kept; raises Refusal."""
    namespace, _, value = ref.partition(":")
    try:
        return reference.kept(namespace, value, reference.key_of(settings))
    except reference.NotAReference as wrong:
        raise invalid(str(wrong), parameter="ref") from None


def _taken(taken: parties.ReferenceTaken) -> Refusal:
    detail = f"{taken.reference} is party {taken.party}; use that one, or another reference."
    return Refusal("conflict", detail, party=taken.party, ref=taken.reference)


def _too_many(limit: int) -> Refusal:
    return invalid(f"A party has at most {limit} references (DRM_PARTY_REFERENCES_MAX).", pointer="/refs")


async def _shown(db: asyncpg.Connection, id_: UUID) -> Party:
    row = await parties.party(db, id_)
    if row is None:
        raise Refusal("not_found", f"There is no party {id_}.")
    return Party(**row)
