"""Many devices at once, as registry/devices.py has one; what a file does not say of a device stays as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg

Became = Literal["made", "changed", "same"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A device as a file has it; None: nothing is said of that."""

    subject: str
    model: str | None
    firmware: str | None


_HELD = "select subject, model, firmware, registered_by from device where subject = any ($1::text[])"
# Put again as it is, it would be told to all who remember devices.
_PUT = """
insert into device as held (subject, model, firmware, registered_by)
select subject, model, firmware, 'registry'
from unnest($1::text[], $2::text[], $3::text[]) as told (subject, model, firmware) order by subject collate "C"
on conflict (subject) do update
set model = coalesce(excluded.model, held.model), firmware = coalesce(excluded.firmware, held.firmware),
    registered_by = excluded.registered_by"""


async def put_many(
    db: asyncpg.Connection, wanted: Sequence[Wanted], imagined: dict[str, Wanted] | None = None
) -> list[Became]:
    """Register devices, or say anew what they are; return what became of each. `imagined` as in parties.bring."""
    subjects = list({one.subject for one in wanted})
    held: dict[str, Wanted | None] = {
        row["subject"]: Wanted(row["subject"], row["model"], row["firmware"])
        # One that is known by its events or relations only is described by nobody yet.
        if row["registered_by"] == "registry" or row["model"] or row["firmware"] else None
        for row in await db.fetch(_HELD, subjects)
    }  # fmt: skip
    if imagined is not None:
        held |= {subject: imagined[subject] for subject in subjects if subject in imagined}
    put: dict[str, Wanted] = {}
    became: list[Became] = []
    for one in wanted:
        before = held.get(one.subject)
        after = Wanted(
            one.subject,
            one.model or (before.model if before else None),
            one.firmware or (before.firmware if before else None),
        )
        became.append("made" if one.subject not in held else "same" if after == before else "changed")
        if after != before:
            put[one.subject] = held[one.subject] = after
    if imagined is not None:
        imagined |= put
    elif put:
        columns = zip(*((one.subject, one.model, one.firmware) for one in put.values()), strict=True)
        await db.execute(_PUT, *map(list, columns))
    return became
