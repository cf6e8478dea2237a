"""What retention leaves of records, and of the totals of large parties once they are counted anew."""

from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest
from tests.integration.conftest import Attach, Sent
from tests.integration.test_records import DAY, HOUR, NOON, get, holds, party
from tests.integration.test_totals import Keeper, keeper

from drm_ingest.postgres.store.partitions import Kept, keep
from drm_ingest.postgres.totals.step import Paces

__all__ = ["keeper"]  # a fixture

IN_MAY = datetime(2026, 5, 20, tzinfo=UTC)
RECOUNT = Paces(sweep_s=3600, recount_s=0, add_up_s=0)
RATING = "feedback.rating"


@pytest.mark.parametrize("corrected", [False, True])
async def test_totals_counted_anew_are_what_retention_has_left_and_tell_by_how_much_they_were_wrong(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, database: str, corrected: bool
) -> None:
    volt, ada = await party(admin, "Volt", "vendor"), await party(admin, "Ada")
    await holds(admin, volt, "sold_by", "meter-0", NOON)
    await holds(admin, volt, "sold_by", "meter-1", NOON, NOON + 5 * DAY)
    await holds(admin, volt, "sold_by", "meter-2", NOON, NOON + 60 * DAY)
    await holds(admin, ada, "owner", "meter-0", NOON)
    of_days_in_part = [
        *(Sent(f"meter-{n % 3}", f"first-{n}", NOON + n * HOUR) for n in range(11)),
        *(Sent("meter-1", f"last-{n}", NOON + 5 * DAY - (n + 1) * HOUR) for n in range(7)),
        Sent("meter-0", "fault-1", NOON + HOUR, "device.fault", '{"code": "E1", "severity": "error"}'),
        Sent("meter-0", "fault-2", NOON + 2 * HOUR, "device.fault", '{"code": "E2"}'),
    ]
    kept = [
        *(Sent(f"meter-{n % 3}", f"whole-{n}", NOON + DAY + n * HOUR) for n in range(11)),
        *(Sent("meter-0", f"rated-{n}", NOON + 2 * DAY + n * HOUR, RATING, csat(n)) for n in range(1, 4)),
        *(Sent("meter-2", f"april-{n}", NOON + 40 * DAY + n * HOUR) for n in range(5)),
        *(Sent("meter-2", f"ended-{n}", NOON + 60 * DAY - (n + 1) * HOUR) for n in range(3)),
    ]
    assert "event_2026_03" in (await keep_30_days(database, NOON)).made
    await attach(*of_days_in_part, *kept)
    await keeper.catch_up()
    record = await from_totals(admin, volt)
    assert record == await live(admin, keeper.db, volt)
    assert record["events"] == len(of_days_in_part) + len(kept)
    assert (record["sales"]["satisfaction"]["csat"]["answers"], record["sales"]["faults"]["open"]) == (3, 2)

    assert (await keep_30_days(database, IN_MAY)).dropped == ["event_2026_03"]
    if corrected:  # the totals take from what they have counted only what can be counted still
        (relation,) = (await get(admin, "/v1/relationships", party=volt, subject="meter-1"))["items"]
        told = {"valid_to": (NOON + 3 * DAY).isoformat(), "reason": "returned earlier"}
        assert (await admin.post(f"/v1/relationships/{relation['id']}/correct", json=told)).is_success
    await keeper.catch_up()
    left = await live(admin, keeper.db, volt)
    assert left["events"] == len(kept), "of days that are held in part events are counted, and these are gone"
    assert (await from_totals(admin, volt))["events"] == len(kept) + len(of_days_in_part)
    assert left["sales"]["satisfaction"]["csat"]["answers"] == 1, "of a day the latest is left"

    assert await counted_anew(keeper) == len(of_days_in_part)
    assert await from_totals(admin, volt) == left
    assert await live(admin, keeper.db, volt) == left
    assert await counted_anew(keeper) == 0
    assert await from_totals(admin, volt) == left


def csat(score: int) -> str:
    return f'{{"scale": "csat", "score": {score}}}'


async def from_totals(admin: httpx.AsyncClient, party: str) -> dict[str, Any]:
    record: dict[str, Any] = await get(admin, f"/v1/parties/{party}")
    assert record.pop("freshness")["totals_through"] is not None
    return record


async def live(admin: httpx.AsyncClient, db: asyncpg.Connection, party: str) -> dict[str, Any]:
    """Return the same put together from all that there is."""
    now = await db.fetchval("select clock_timestamp()")
    record: dict[str, Any] = await get(admin, f"/v1/parties/{party}", known_at=now.isoformat())
    assert record.pop("freshness")["totals_through"] is None
    return record


async def keep_30_days(database: str, now: datetime) -> Kept:
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool:
        kept = await keep(pool, now, months_ahead=2, retention_days=30)
    assert kept is not None
    return kept


async def counted_anew(keeper: Keeper) -> int:
    """Count all totals anew; return by how many events they were wrong."""
    before = await keeper.db.fetchval("select max(id) from large_party")
    healed = 0
    while not await keeper.db.fetchval("select bool_and(id > $1 and built_at is not null) from large_party", before):
        healed += (await keeper.step(RECOUNT)).healed
    await keeper.catch_up()
    return healed
