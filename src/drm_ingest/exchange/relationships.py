"""Relations from a file; what is said there already is left as it is."""

from collections.abc import Sequence
from typing import Any

import asyncpg
from pydantic import ValidationError

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.exchange.fields import invalid_field
from drm_ingest.exchange.fit import meant
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.exchange.taking import Became, Context
from drm_ingest.postgres.bulk import relations as bulk
from drm_ingest.serve.parties import half_a_name, named, named_subject
from drm_ingest.serve.relationships import NewRelationship
from drm_ingest.serve.shapes import during

LINES = 2_000
"""While so many commit, nobody else's change gets its number."""

_IMPOSSIBLE = {
    "empty": ("/valid_to", "Must be later than valid_from."),
    "itself": ("/party", "A party stands in no relation to itself."),
    "batch": ("/batch", "Only made_by and parts_by have one."),
}


class Relationships:
    """Takes relations, many in one transaction."""

    lines = LINES

    def __init__(self, context: Context) -> None:
        self._asserted_by, self._settings = context.asserted_by, context.settings
        self._imagined: bulk.Imagined | None = bulk.Imagined() if context.dry_run else None

    def read(self, fields: Any) -> bulk.Wanted:
        """Return the relation of a line, under the rules of the door; without valid_from it held since ever.

        Raises:
            Refused
        """
        try:
            claim = NewRelationship.model_validate(fields)
        except ValidationError as error:
            raise invalid_field(error, fields) from None
        subject, party = named_subject(claim.subject, self._settings), named(claim.party, self._settings)
        called = named(claim.subject.removeprefix(PARTY_PREFIX), self._settings)
        return bulk.Wanted(
            subject, claim.role, party, claim.valid_from, claim.valid_to, claim.batch,
            claim.asserted_by or self._asserted_by, claim.reason, called,
        )  # fmt: skip

    async def write(self, db: asyncpg.Connection, wanted: Sequence[bulk.Wanted]) -> list[Became | Refused]:
        became = await bulk.begin_many(db, wanted, self._imagined)
        return [one if isinstance(one, str) else _refused(line, one) for line, one in zip(wanted, became, strict=True)]


def _refused(
    line: bulk.Wanted, why: bulk.NoParty | bulk.HalfAName | bulk.Misfit | bulk.Impossible | bulk.Held
) -> Refused:
    if isinstance(why, bulk.NoParty):
        return Refused(
            LineCode.PARTY_UNKNOWN, f"There is no party {why.name}; import the parties first.", f"/{why.field}"
        )
    if isinstance(why, bulk.HalfAName):
        return Refused(LineCode.FIELD_INVALID, half_a_name(line.subject), "/subject")
    if isinstance(why, bulk.Misfit):
        return Refused(LineCode.ROLE_MISFIT, _misfit(line.role, why), "/role")
    if isinstance(why, bulk.Impossible):
        pointer, told = _IMPOSSIBLE[why.why]
        return Refused(LineCode.FIELD_INVALID, told, pointer)
    which = f"relationship {why.id}" if why.id else "of a line before"
    held = f"Party {why.party} is {why.role} {during(why.valid_from, why.valid_to)} ({which})."
    return Refused(LineCode.HELD_ALREADY, held, "/valid_from")


def _misfit(role: str, why: bulk.Misfit) -> str:
    on = f"on {'an' if why.subject_kind == 'employee' else 'a'} {why.subject_kind}"
    if not why.kinds:
        return f"There is no role {role!r} {on}{meant(role, why.roles)}; there are {', '.join(why.roles)}."
    return f"{role} {on} is held by a party of the kind {' or '.join(why.kinds)}, and this one's is {why.party_kind}."
