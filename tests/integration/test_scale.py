"""The world of loadtests.scale, small: that it is as attach and the doors would have left it, and how it is read."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from asyncpg.connection import LoggedQuery
from fastapi import FastAPI
from loadtests.scale.build import build
from loadtests.scale.reads import KINDS
from loadtests.scale.world import Sizes, World, device, midnight
from rich.console import Console
from rich.progress import Progress
from tests.conftest import database_on, run_aside
from tests.integration.conftest import Ask
from tests.integration.plans import reads_whole
from tests.integration.test_totals import Keeper, connected

from drm_ingest.postgres.record.by_time import BY_TIME
from drm_ingest.postgres.totals import find
from drm_ingest.serve import access
from drm_ingest.up.postgres import Postgres

SIZES = Sizes(devices=6_000, parties=2_500, relations=9_000, events=120_000, days=90, vendor_devices=300, seed=7)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(SIZES, midnight())


@pytest.fixture(scope="module")
def built(migrated: Postgres, world: World) -> Iterator[str]:
    with database_on(migrated) as dsn, Progress(console=Console(quiet=True)) as progress:
        run_aside(build(world, dsn, 0, progress))
        yield dsn


@pytest.fixture
def database(built: str) -> str:
    return built


async def test_what_is_built_is_as_attach_would_have_left_it(world: World, db: asyncpg.Connection) -> None:
    events, identities, counted = await db.fetchrow(
        "select (select count(*) from event), (select count(*) from event_identity), "
        "(select sum(events) from subject_day)::bigint"
    )
    assert events == identities == counted
    assert SIZES.events * 0.99 < events <= SIZES.events
    # Folded from the events themselves: each is in the count of its day, with the time of the last.
    assert (
        await db.fetch(
            "select subject, day, type, events, last_at from subject_day except "
            "select subject, (occurred_at at time zone 'UTC')::date, type, count(*), max(occurred_at) "
            "from event group by 1, 2, 3"
        )
        == []
    )
    assert await db.fetchval("select count(*) from relationship") == len(world.relations)
    assert await db.fetchval("select count(*) from event_default") == 0
    assert await db.fetch("select from pg_index where not indisvalid") == []
    kinds = await db.fetch(
        "select distinct type from event where type in ('device.fault', 'feedback.rating', 'support.contact')"
    )
    assert len(kinds) == 3


@pytest.fixture
async def asked(serve_app: FastAPI, database: str) -> AsyncIterator[list[LoggedQuery]]:
    """What the rooms of serve ask Postgres, as it is asked."""
    asked: list[LoggedQuery] = []
    db = await asyncpg.connect(database)
    db.add_query_logger(asked.append)

    async def lend() -> AsyncIterator[asyncpg.Connection]:
        yield db

    serve_app.dependency_overrides[access.connection] = lend
    yield asked
    await db.close()


def _paths(world: World, event: asyncpg.Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every hot read: records and timelines of all kinds at all times, devices, relations, why of an event."""
    then = (world.until - timedelta(days=30)).isoformat()
    views: list[dict[str, Any]] = [{}, {"as_of": then}, {"known_at": then}, {"as_of": then, "known_at": then}]
    for kind in KINDS:
        # The first of a kind has most; and one that is like the others.
        for party in (world.parties[kind][0], world.parties[kind][len(world.parties[kind]) // 2]):
            for view in views:
                yield f"/v1/parties/{party}", view
                yield f"/v1/parties/{party}/timeline", view
            yield f"/v1/parties/{party}/timeline", {"type": ["device.fault", "feedback.rating"]}
            yield f"/v1/parties/{party}/timeline", {"until": then, "limit": 500}
            yield "/v1/relationships", {"party": str(party)}
            yield "/v1/relationships", {"party": str(party), "role": "owner", "known_at": then}
    yield f"/v1/parties/{world.links[0][1]}", {}
    yield f"/v1/parties/{world.links[0][1]}/timeline", {"known_at": then}
    for view in views:
        yield f"/v1/devices/{device(20)}", view
        yield "/v1/relationships", {"subject": device(20), **view}
    yield f"/v1/devices/{device(20)}/events", {}
    yield f"/v1/devices/{device(20)}/events", {"type": ["device.status"]}
    yield "/v1/events", dict(event)


@pytest.mark.parametrize("counted", [False, True], ids=["put together live", "large parties from totals"])
async def test_no_hot_read_goes_through_a_large_table(
    world: World, ask: Ask, db: asyncpg.Connection, asked: list[LoggedQuery], database: str, counted: bool
) -> None:
    if counted:
        async with connected(database) as keepers:
            await Keeper(database, keepers, find.Sizes(large=20, linked_max=20)).catch_up()
    else:
        await db.execute("delete from large_party")
    admin: httpx.AsyncClient = await ask()
    event = await db.fetchrow("select subject, source, id from event where subject = $1 limit 1", device(20))
    wrong, seen = set(), set()
    for path, query in _paths(world, event):
        asked.clear()
        answer = await admin.get(path, params=query)
        assert answer.status_code == 200, answer.text
        await asyncio.sleep(0)  # until what was asked last is told of
        statements = [one for one in asked if one.query.lstrip(" \n(").lower().startswith(("select", "with"))]
        assert statements, path
        for one in statements:
            if (
                BY_TIME in one.query
            ):  # of a party with very many devices: along everybody's newest events, so many at most
                continue
            wrong |= {(what, one.query) for what in await reads_whole(db, one.query, one.args)}
            seen.add(one.query)
    assert {what for what, _ in wrong} == set(), wrong
    assert len(seen) > 30  # or they were not all looked at
    assert any("large_party_part" in query for query in seen) == counted
