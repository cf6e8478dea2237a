"""The events of a timeline, looked for on each of its subjects in `span`."""

from drm_ingest.postgres.record.page import EVENT, EVENT_RANK, EVENTS_IN_ORDER


def events(types: str | None, before: str) -> str:
    """Find them; see `page.Find`."""
    starts, ends = "greatest($4::timestamptz, span.starts)", "least($5::timestamptz, span.ends)"
    if types is None:
        happened = _happened(starts, ends, before)
    else:
        # A device may send a million measurements and two purchases: its day counts know on which days. On the two
        # days at the ends of the range those events may lie outside of it.
        of_types = f"and type = any ({types}::text[])"
        of_day = _happened(
            f"greatest(day_at, {starts})", f"least(day_at + interval '24 hours', {ends})", f"{of_types} {before}"
        )
        happened = f"""
            select happened.* from (
                select distinct day::timestamp at time zone 'UTC' as day_at from subject_day
                where subject = span.subject {of_types}
                  and day >= coalesce(({starts} at time zone 'UTC')::date, '-infinity')
                  and day <= coalesce(({ends} at time zone 'UTC')::date, 'infinity')
                order by day_at desc limit $6::bigint + 2
            ) as days cross join lateral ({of_day}) as happened
            {EVENTS_IN_ORDER} limit $6"""
    return f"""(
        select found.*, {EVENT_RANK} as rank, span.relation_subjects, null::jsonb as relation
        from span cross join lateral ({happened}) as found
        {EVENTS_IN_ORDER} limit $6
    )"""


def _happened(starts: str, ends: str, conditions: str) -> str:
    return f"""
            select {EVENT} from event
            where subject = span.subject {conditions}
              and occurred_at >= coalesce({starts}, '-infinity')
              and occurred_at < coalesce({ends}, 'infinity')
            {EVENTS_IN_ORDER} limit $6"""
