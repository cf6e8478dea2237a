"""Looking again at whose references were that identity events name, once nobody can still be changing that.

A transaction that adds or removes a reference makes due what names it. It does not see what another is settling at that
moment, nor what comes before it is committed, and those do not see the reference. So each such event is marked with the
transaction that settled it. If a number is drawn after that has ended, whoever has a later number sees it settled; and
once nobody with an earlier number is in flight, references are as all of those left them.
"""

import asyncpg

ROWS_MAX = 1000  # looked at in a transaction


class Recheck:
    """One for each that settles; it remembers what was settled when a number was drawn, and anew after a restart."""

    def __init__(self) -> None:
        self._drawn: tuple[str, str] | None = None  # what had been settled, as a snapshot, and the number drawn then

    async def begin(self, db: asyncpg.Connection) -> None:
        """Draw a number for what is settled by now, unless one is waited for; outside of any transaction."""
        if self._drawn is None:
            # The snapshot is that of the statement, and so older than the number.
            self._drawn = await db.fetchrow(
                "select pg_current_snapshot()::text, pg_current_xact_id()::text "
                "where exists (select from identity_event where settled_in is not null)"
            )

    async def look_again(self, db: asyncpg.Connection) -> None:
        """Make due what names somebody else by now, if it can be known; outside of any transaction."""
        if self._drawn is None:
            return
        settled, number = self._drawn
        if not await db.fetchval("select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8", number):
            return
        while await db.fetchval(_LOOK, settled, ROWS_MAX) == ROWS_MAX:
            pass
        self._drawn = None


# What somebody else holds is being settled anew or made due, or looked at by another worker.
_LOOK = """
with settled as (
    select key from identity_event
    where settled_in < pg_snapshot_xmax($1::text::pg_snapshot)
        and pg_visible_in_snapshot(settled_in, $1::text::pg_snapshot)
    limit $2 for update skip locked
),
looked as (
    update identity_event said set settled_in = null, settled_as = null, due = due or settled_as is distinct from (
        select party from party_ref where party_ref.namespace = said.namespace and party_ref.ref = said.ref)
    from settled where said.key = settled.key
    returning said.key
)
select count(*) from looked"""
