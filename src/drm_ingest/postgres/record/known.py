"""The two times at which a record may be looked at, and the relations and links that there were then.

Every statement of a record has these parameters:

    $1  the group: the ids of the parties that share the record
    $2  as_of: what was true then; null: now, and what is planned
    $3  known_at: as we knew it then; null: as we know it now

Events count whenever they arrived, and names, references and attributes are those of now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class View:
    """The two times; None: now."""

    as_of: datetime | None = None
    known_at: datetime | None = None

    def of(self, group: Sequence[UUID]) -> tuple[Sequence[UUID], datetime | None, datetime | None]:
        """Return $1, $2 and $3."""
        return group, self.as_of, self.known_at


NOW = View()


def _known(table: str, columns: str) -> str:
    # Both halves have partial indexes of their own; the second is not entered where nobody asks for it.
    return f"""(
        select {columns} from {table}
        where upper_inf(recorded) and coalesce(lower(recorded) <= $3::timestamptz, true)
        union all
        select {columns} from {table}
        where $3::timestamptz is not null and not upper_inf(recorded)
          and coalesce(lower(recorded) <= $3 and upper(recorded) > $3, false)
    )"""


# A relation is found by its subject, its party or its id. Roles and times are written so that no index answers for
# them: the planner would go through all of the one that holds the exclusion, which begins with other columns.
RELATION = _known(
    "relationship",
    "id, version, subject, subject_party, subject_kind, role || '' as role, party, party_kind, batch, valid, recorded, "
    "asserted_by, reason",
)
OF_GROUP = f"""
        select * from {RELATION} as own
        where party = any ($1::uuid[]) and (subject_party is null or subject_party <> all ($1::uuid[]))
        union all
        select * from {RELATION} as others
        where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as own (id)))
          and party <> all ($1::uuid[])"""
"""The relations of the group on others, and those of others on the group."""

LINK = _known("party_link", "party, other")
REPLACED = _known("device_replacement", "*")

AT = "coalesce($2::timestamptz, now())"
"""When what is called current is."""

STARTED = "coalesce(lower(valid) <= $2::timestamptz, true)"
"""That a relation had begun then; without `as_of` always."""


def holds(at: str) -> str:
    """Return that a relation holds at a time."""
    return f"(coalesce(lower(valid) <= {at}, true) and coalesce(upper(valid) > {at}, true))"


UNTIL = "tstzrange(null, $2::timestamptz + interval '1 microsecond')"
"""All that had happened then; without `as_of` everything."""


def only(parameter: str) -> str:
    """Return that a relation is on one of the subjects in a parameter (`$4`); none (the empty text): on whichever."""
    return f"and subject = any ({parameter}::text[])" if parameter else ""


def kin(origin: str, links: str = LINK) -> str:
    """Return the recursive step `kin (party, same)`: each `party` of `origin`, and all that are linked to it."""
    return f"""
kin (party, same) as (
    select distinct party, party from {origin}
    union
    select kin.party, linked.same
    from kin cross join lateral (
        select link.other as same from {links} as link where link.party = kin.same
        union all
        select link.party from {links} as link where link.other = kin.same
    ) as linked
)"""


CALLED = """
called (party, subject) as (
    select party, 'party:' || same from kin
    union all
    select kin.party, 'party:' || namespace || ':' || ref
    from kin cross join lateral (
        select namespace, ref from party_ref where party_ref.party = kin.same offset 0  -- one by one, by index
    ) as named
)"""
"""Everything that the parties of `kin` are called in subjects."""


def party_called(name: str) -> str:
    """Return whose name is in a column: party:<id>, or party:<namespace>:<reference>; null: nobody's."""
    return f"""case when {name} !~ '^party:[^:]*$' then (
               select party from party_ref
               where namespace = split_part(substr({name}, 7), ':', 1) collate "default"
                 and ref = substr({name}, 8 + length(split_part(substr({name}, 7), ':', 1))) collate "default")
           when {name} ~ '^party:[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' then substr({name}, 7)::uuid end"""


KIN = kin("known", "(select party, other from party_link where upper_inf(recorded))")
"""Each `party` of `known`, and all that are linked to it now."""

KNOWN = f"""
named (name, party) as materialized (
    select name, {party_called("name")}
    from wanted where starts_with(name, 'party:')
),
known as (select name, party from named where party is not null),
{KIN}"""
"""Whose names there are among the names in `wanted`, and all that are linked to them now."""
