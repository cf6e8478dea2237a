"""What relations of a subject are derived from: all of it, or only what reaches beyond the time they are settled for.

They are settled up to the earliest event that is due, as long as people have changed nothing since they were derived:
what was said before shows in them, as far as it counts for what is to come. Where that is not sure it is all read.
"""

from dataclasses import dataclass
from datetime import datetime

import asyncpg


@dataclass(frozen=True, slots=True)
class SettledUntil:
    """Relations of these roles are as events let them be up to a time, and those of other roles altogether."""

    until: datetime
    roles: list[str]


@dataclass(frozen=True, slots=True)
class Known:
    """What relations are derived from, under the lock of their subject; of what is settled only what reaches beyond."""

    events: list[asyncpg.Record]
    """key, linked, role, method, occurred_at, sequence, content_hash, sender, due, usable, refused, everybody; party
    and party_kind of whom it names (None: nobody is called so), exclusive (None: the role does not join those), and
    unknown: whether it is one that unknown_customers returns."""
    open: list[asyncpg.Record]
    """Open ones: id, version, role, exclusive, party, party_kind, valid_from, valid_to, derived, asserted_by,
    reason."""
    words: list[asyncpg.Record]
    """Where a person has changed what was derived, and so knows better: role, party (None: everybody but those in
    `but`), starts, ends (None: no bound)."""
    settled: SettledUntil | None = None

    @property
    def due(self) -> list[asyncpg.Record]:
        return [event for event in self.events if event["due"]]


# A change is recorded later than all before it (changes.py), so those after the last derivation are those that it did
# not see. It is read from relations that it wrote; if a later one wrote none, more is taken for new than is.
_SETTLED = """
select until, roles
from (select min(occurred_at) as until, array_agg(distinct role) as roles from identity_event
      where subject = $1 and due) as late
cross join (select lower(recorded) as at from relationship where subject = $1 and upper_inf(recorded) and derived
            order by lower(recorded) desc limit 1) as written
where not exists (select from relationship where subject = $1 and upper_inf(recorded) and lower(recorded) > written.at)
and not exists (select from relationship where subject = $1 and not upper_inf(recorded)
                and upper(recorded) > written.at)
and ($2 or exists (select from identity_event where subject = $1 and occurred_at < late.until and linked
                   and role = 'user' and not due and refused is null))
"""

_EVENTS = """
select said.key, said.linked, said.role, said.method, said.occurred_at, said.sequence, said.content_hash, said.sender,
       said.due, said.usable, said.refused, said.namespace is null and said.party is null as everybody,
       party.id as party, party.kind as party_kind, role_kind.exclusive,
       exists (select from role_kind where role_kind.role = said.role and subject_kind = 'device') as is_role,
       said.linked and said.usable and said.namespace is not null and party.id is null and exists (
           select from role_kind
           where role_kind.role = said.role and subject_kind = 'device' and party_kind = 'customer'
       ) as unknown
from identity_event said
left join party_ref using (namespace, ref)
left join party on party.id = coalesce(party_ref.party, said.party)
left join role_kind
    on role_kind.role = said.role and role_kind.subject_kind = 'device' and role_kind.party_kind = party.kind
where said.subject = $1 and said.occurred_at >= coalesce($2, '-infinity'::timestamptz)
    and ($3::text[] is null or said.role = any ($3))
"""

_OPEN = """
select id, version, role, exclusive, party, party_kind, lower(valid) as valid_from, upper(valid) as valid_to, derived,
       asserted_by, reason
from relationship
where subject = $1 and upper_inf(recorded)
    and coalesce(upper(valid), 'infinity') >= coalesce($2, '-infinity'::timestamptz)
    and ($3::text[] is null or role = any ($3))
"""

# A person cannot have spoken of what came after: neither of a relation, nor when handing a device over or replacing it.
# But of when a relation began they have, even where that is still to come.
_WORDS = """
select role, party, but, starts, ends
from (
    select role, party, '{}'::uuid[] as but, lower(valid) as starts,
           coalesce(upper(valid), greatest(upper(recorded), lower(valid) + interval '1 microsecond')) as ends
    from relationship was left join lateral (
        select derived from relationship next where next.id = was.id and next.version = was.version + 1
    ) as next on true
    where subject = $1 and was.derived and not upper_inf(recorded)
    and coalesce(upper(valid), greatest(upper(recorded), lower(valid))) >= coalesce($2, '-infinity'::timestamptz)
    and coalesce(not next.derived, exists (
        select from relationship_change
        where relationship = was.id and version = was.version and change = 'withdrawn' and not detail ? 'derived'))
    union all
    select 'user', stopped.party, takers, hand_over.at, greatest(hand_over.at, hand_over.recorded_at)
    from hand_over cross join lateral (
        select unnest(givers)
        union all
        select null where everybody
    ) as stopped (party)
    where device = $1 and (stopped.party is null or stopped.party <> all (takers)) and exists (
        select from relationship where id = hand_over.begun and upper_inf(recorded) and lower(valid) = hand_over.at)
    union all
    select 'user', null, '{}', at, greatest(at, lower(recorded))
    from device_replacement where device = $1 and upper_inf(recorded)
) as word
where ends >= coalesce($2, '-infinity'::timestamptz) and ($3::text[] is null or role = any ($3))
"""


async def settled(db: asyncpg.Connection, subject: str, *, claims: bool) -> SettledUntil | None:
    """Return how far the relations of a locked subject are settled; None: that is not known, or not far.

    With `claims` a first sign-in says something of the time before it: then only after one is anything settled.
    """
    row = await db.fetchrow(_SETTLED, subject, not claims)
    return None if row is None or row["until"] is None else SettledUntil(row["until"], row["roles"])


async def known(db: asyncpg.Connection, subject: str, settled: SettledUntil | None) -> Known:
    """Return what there is beyond what is settled; None: all there is. The subject must be locked (changes.py)."""
    of = (subject, settled.until, settled.roles) if settled else (subject, None, None)
    return Known(await db.fetch(_EVENTS, *of), await db.fetch(_OPEN, *of), await db.fetch(_WORDS, *of), settled)
