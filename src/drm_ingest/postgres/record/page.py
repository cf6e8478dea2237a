"""One page of a timeline, newest first: the statement that reads it.

The order is that of occurred_at, then `rank`, then subject, source and id. At one instant a relation that ends stands
before one that begins, and both before the events, which belong to what has begun.

Every statement of a page has, beside $1 to $3 (known.py), these parameters:

    $4  how far back it reaches; null: to the first
    $5  before when it ends; null: nowhere
    $6  how many of it are wanted
    $7  of how many bytes of data
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from msgspec import Meta

from drm_ingest.postgres.record.known import NOW, RELATION, View, holds

BEGUN, ENDED = "relationship.begun", "relationship.ended"
EVENT_RANK = 2  # an end is 0, a beginning 1

EVENT = (
    "subject, source, id, type, occurred_at, occurred_at_raw, time_quality, sequence, received_at, recorded_at, "
    "content_hash, sender, dataschema, data"
)
EVENTS_IN_ORDER = "order by occurred_at desc, subject desc, source desc, id desc"
IN_ORDER = "order by occurred_at desc, rank desc, subject desc, source desc, id desc"

ROLES = f"""case when page.relation is not null then array[page.relation ->> 'role'] else array(
    select distinct role from {RELATION} as relation
    where subject = any (page.relation_subjects) and party = any ($1::uuid[]) and {holds("page.occurred_at")}
    order by role
) end"""
"""Those that the group held when it happened; none for what is its own."""

INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: what stands last on it."""

    occurred_at: Annotated[datetime, Meta(tz=True)]
    subject: str
    source: str
    id: str
    rank: int = EVENT_RANK


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of these types (none: all), in [since, until), before `after` in the order of the page."""

    types: Sequence[str]
    since: datetime | None
    until: datetime | None
    after: Position | None
    limit: int
    bytes_max: int
    """Of data, as stored (compressed where large); what goes beyond is the last."""
    view: View = NOW

    @property
    def newest(self) -> datetime:
        """Before when all of it lies that has happened by now."""
        now = datetime.now(UTC) + INSTANT
        return min(now, self.before or now)

    @property
    def before(self) -> datetime | None:
        """Before when all of it lies; None: nowhere, and what clocks say that are ahead is of it."""
        bounds = [time for time in (self.until, self.view.as_of, self.after and self.after.occurred_at) if time]
        return min(bounds) + INSTANT if bounds else None

    @property
    def events(self) -> bool:
        """Whether events are among it."""
        return not self.types or not set(self.types) <= {BEGUN, ENDED}

    @property
    def changes(self) -> bool:
        """Whether changes of relations are among it."""
        return not self.types or not {BEGUN, ENDED}.isdisjoint(self.types)


Find = Callable[[str | None, str], str]
"""Return a `select` of `EVENT`, rank, relation_subjects and relation, in the order of the page and at most $6.

It is told the parameter that lists the types wanted (None: all), and the condition for coming after the page before.
"""


def sql(wanted: Wanted, steps: str, roles: str, events: Find | None, changes: Find | None) -> tuple[str, list[object]]:
    """Return the statement of a page and its parameters from $5 on: of the events and the changes found after `steps`.

    Its rows are `EVENT`, rank, roles and `relation`, JSON text, of a relation that began or ended. `found` in each is
    how many there were before `bytes_max` cut them.
    """
    until, after = wanted.until, wanted.after
    if after is not None:
        until = min(time for time in (until, after.occurred_at + INSTANT) if time)
    values: list[object] = [until, wanted.limit, wanted.bytes_max]

    def parameter(value: object) -> str:
        values.append(value)
        return f"${len(values) + 4}"

    types = parameter(list(wanted.types)) if wanted.types else None
    kinds = []
    if events:
        before = ""
        if after is not None and after.rank == EVENT_RANK:
            # Written so that the index of events answers it.
            last = (after.occurred_at, after.subject, after.source, after.id)
            before = f"and (occurred_at, subject, source, id) < ({', '.join(map(parameter, last))})"
        elif after is not None:
            before = f"and occurred_at < {parameter(after.occurred_at)}"
        kinds.append(events(types, before))
    if changes:
        before = ""
        if after is not None:
            place = (after.occurred_at, after.rank, after.subject, after.source, after.id)
            before = f"and (occurred_at, rank, subject, source, id) < ({', '.join(map(parameter, place))})"
        kinds.append(changes(types, before))
    statement = f"""with {steps}
        select page.*, {roles} as roles
        from (
            select merged.*, count(*) over () as found, sum(pg_column_size(data)) over (
                {IN_ORDER} rows between unbounded preceding and 1 preceding
            ) as bytes_before
            from (select * from ({" union all ".join(kinds)}) as kinds {IN_ORDER} limit $6) as merged
        ) as page
        where coalesce(bytes_before, 0) < $7::bigint
        {IN_ORDER}"""
    return statement, values
