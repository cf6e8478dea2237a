"""Each process may do its own work in Postgres and nobody else's: the rights of its role, and what it tries to do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import asyncpg
import pytest
from pydantic import SecretStr

from drm_ingest.postgres.credentials import StoredCredentials, ensure_key
from drm_ingest.postgres.migrate import pending
from drm_ingest.postgres.pool import open_pool
from drm_ingest.postgres.roles import GROUPS, ensure_login
from drm_ingest.postgres.store.partitions import keep
from drm_ingest.settings import Settings

READ, ADD, CHANGE, REMOVE = "SELECT", "INSERT", "UPDATE", "DELETE"
KEEP = f"{READ} {ADD} {CHANGE} {REMOVE}"

# Every right of every role on every table; a new table needs a line here, and a grant in its migration.
RIGHTS = {
    "sender": {"edge": READ, "serve": KEEP},
    "sender_key": {"edge": READ, "serve": KEEP},
    "fleet_key": {"edge": READ, "serve": KEEP},
    "party": {"enrich": READ, "attach": ADD, "serve": KEEP},
    "party_ref": {"enrich": READ, "attach": f"{READ} {ADD}", "serve": KEEP},
    "device": {"enrich": READ, "attach": f"{READ} {ADD}", "serve": KEEP},
    "role": {"attach": READ, "serve": READ},
    "role_kind": {"attach": READ, "serve": READ},
    "relationship": {"enrich": READ, "attach": f"{READ} {ADD}", "serve": f"{READ} {ADD} {CHANGE}"},
    "origin": {"serve": KEEP},
    "party_attribute": {"serve": f"{READ} {ADD} {CHANGE}"},
    "party_link": {"attach": READ, "serve": f"{READ} {ADD} {CHANGE}"},
    "claim_code": {"serve": f"{READ} {ADD} {CHANGE}"},
    "hand_over": {"attach": READ, "serve": f"{READ} {ADD}"},
    "device_replacement": {"attach": READ, "serve": f"{READ} {ADD} {CHANGE}"},
    "device_replacement_relation": {"serve": f"{READ} {ADD}"},
    "relationship_change": {"attach": f"{READ} {ADD}", "serve": f"{READ} {ADD}"},
    "relationship_move": {"attach": f"{READ} {ADD}", "serve": f"{READ} {ADD}"},
    "event": {"attach": ADD, "serve": READ},
    "event_default": {"attach": REMOVE},
    "event_identity": {"attach": f"{READ} {ADD}", "serve": READ},
    "subject_day": {"attach": f"{READ} {ADD} {CHANGE}", "serve": READ},
    "dead_letter": {"attach": f"{READ} {ADD}", "serve": READ},
    "consumer_position": {"attach": f"{READ} {ADD} {CHANGE}", "serve": READ},
    "identity_event": {"attach": f"{READ} {ADD} {CHANGE}", "serve": READ},
    "relay_position": {"attach": f"{READ} {ADD} {CHANGE}", "serve": READ},
    "large_party": {"attach": KEEP, "serve": READ},
    "large_party_span": {"attach": KEEP, "serve": READ},
    "large_party_day": {"attach": KEEP, "serve": READ},
    "large_party_part": {"attach": KEEP, "serve": READ},
    "large_party_reached": {"attach": KEEP, "serve": READ},
    "large_party_renamed": {"attach": f"{READ} {REMOVE}"},
    "totals_position": {"attach": f"{READ} {CHANGE}", "serve": READ},
    "migration": dict.fromkeys(GROUPS, READ),
}

FORBIDDEN = {
    "edge": [
        "select * from event",
        "select * from relationship",
        "insert into sender (name) values ('intruder')",
        "update sender_key set revoked_at = null",
    ],
    "enrich": ["select hash from sender_key", "select * from event", "update device set model = 'x'"],
    "attach": [
        "select hash from sender_key",
        "select subject, data from event",
        "select subject, data from event_default",
        "delete from event_default where subject = 'meter-7'",
        "select * from party",
        "select name from party",
        "update relationship set party = gen_random_uuid()",
        "delete from relationship",
        "delete from event",
        "drop table event",
        "truncate event_identity",
        "delete from event_identity",
        "update consumer_position set next_offset = 0; drop table consumer_position",
    ],
    "serve": [
        "delete from event",
        "update event set data = null",
        "delete from relationship",
        "update relationship_move set events = 0",
        "delete from claim_code",
        "delete from device_replacement",
        "update device_replacement_relation set begun = null",
        "update subject_day set events = 1",
        "select make_event_month('2031-01-01Z')",
        "create table mine ()",
    ],
}


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def login(owner: asyncpg.Connection, settings: Settings) -> Callable[[str], Settings]:
    """Return a function that gives the settings of a process with the login of its own."""
    dsn = settings.postgres_dsn.get_secret_value()
    for process in GROUPS:
        await ensure_login(owner, process, f"test_{process}", f"of-{process}")

    def settings_of(process: str) -> Settings:
        _, _, address = dsn.rpartition("@")
        secret = SecretStr(f"postgresql://test_{process}:of-{process}@{address}")
        return settings.model_copy(update={"postgres_dsn": secret})

    return settings_of


async def test_each_role_has_exactly_the_rights_that_are_written_here(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        """
        select c.relname as name, r.rolname as role, array_agg(p.privilege order by p.privilege) as rights
        from pg_class c cross join pg_roles r
        cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER',
                                'MAINTAIN']) as p (privilege)
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and r.rolname = any($1)
            and has_table_privilege(r.oid, c.oid, p.privilege)
        group by 1, 2
        """,
        list(GROUPS.values()),
    )
    tables = {name for (name,) in await owner.fetch("select tablename from pg_tables where schemaname = 'public'")}
    process_of = {group: process for process, group in GROUPS.items()}
    found: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        found.setdefault(row["name"], {})[process_of[row["role"]]] = set(row["rights"])
    written = {table: {process: set(rights.split()) for process, rights in of.items()} for table, of in RIGHTS.items()}
    assert tables == RIGHTS.keys(), "a table without rights: grant them in its migration, and write them here"
    assert found == written


async def test_of_single_columns_only_attach_has_any_and_none_of_them_holds_what_a_person_or_a_device_said(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        select c.relname as name, attname as column, grantee::regrole::text as role, privilege_type as right
        from pg_attribute a join pg_class c on c.oid = a.attrelid, aclexplode(attacl)
        where c.relnamespace = 'public'::regnamespace and grantee <> c.relowner
        """
    )
    assert {tuple(row) for row in rows} == {
        ("event", "occurred_at", GROUPS["attach"], READ),
        ("event", "recorded_at", GROUPS["attach"], READ),
        ("event", "subject", GROUPS["attach"], READ),
        ("event", "type", GROUPS["attach"], READ),
        ("party", "id", GROUPS["attach"], READ),
        ("party", "kind", GROUPS["attach"], READ),
        ("relationship", "recorded", GROUPS["attach"], CHANGE),
        ("event_default", "ctid", GROUPS["attach"], READ),
        ("event_default", "occurred_at", GROUPS["attach"], READ),
        ("event_default", "recorded_at", GROUPS["attach"], READ),
    }


async def test_no_role_may_log_in_or_make_anything_or_rise(owner: asyncpg.Connection) -> None:
    for group in GROUPS.values():
        role = await owner.fetchrow("select * from pg_roles where rolname = $1", group)
        assert not any(
            role[right]
            for right in ("rolsuper", "rolcanlogin", "rolcreatedb", "rolcreaterole", "rolbypassrls", "rolreplication")
        )
        assert not await owner.fetchval("select has_schema_privilege($1, 'public', 'create')", group)


@pytest.mark.parametrize("process", GROUPS)
async def test_a_process_cannot_do_the_work_of_others(process: str, login: Callable[[str], Settings]) -> None:
    connection = await asyncpg.connect(login(process).postgres_dsn.get_secret_value())
    try:
        for statement in FORBIDDEN[process]:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("process", GROUPS)
async def test_every_process_can_see_whether_migrations_are_missing(
    process: str, login: Callable[[str], Settings]
) -> None:
    connection = await asyncpg.connect(login(process).postgres_dsn.get_secret_value())
    try:
        assert await pending(connection) == []
    finally:
        await connection.close()


async def test_the_edge_reads_the_keys(owner: asyncpg.Connection, login: Callable[[str], Settings]) -> None:
    await ensure_key(owner, "fleet", "sender", "its-key")
    stored = StoredCredentials(login("edge"), "drm edge")
    try:
        snapshot = await stored.read()
        assert snapshot is not None
        assert [row["sender"] for row in snapshot.keys] == ["fleet"]
    finally:
        stored.close()


async def test_the_keeper_of_attach_makes_and_drops_months_that_stay_the_owners(
    owner: asyncpg.Connection, login: Callable[[str], Settings]
) -> None:
    await owner.execute(
        "insert into event (occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender) "
        "select time, time, gen_random_uuid(), 's', '', time::text, 't', 'sent', 'x' "
        "from unnest(array['2026-11-03Z', '2026-12-24Z', '2027-01-05Z']::timestamptz[]) as time"
    )
    async with open_pool(login("attach"), "drm keeper") as pool:
        kept = await keep(pool, datetime(2026, 11, 22, tzinfo=UTC), months_ahead=2, retention_days=730)
        assert kept is not None
        assert kept.made == ["event_2026_11", "event_2026_12", "event_2027_01"]
        kept = await keep(pool, datetime(2027, 2, 10, tzinfo=UTC), months_ahead=0, retention_days=10)
        assert kept is not None
        assert kept.dropped == ["event_2026_11", "event_2026_12"]
    owners = "select distinct tableowner = current_user from pg_tables where starts_with(tablename, 'event')"
    assert await owner.fetchval(owners)
    assert await owner.fetchval("select count(*) from event_default") == 0


async def test_a_worker_of_attach_ends_the_connection_of_another_and_of_no_other_process(
    login: Callable[[str], Settings],
) -> None:
    dsns = {process: login(process).postgres_dsn.get_secret_value() for process in ("attach", "edge")}
    worker, zombie = await asyncpg.connect(dsns["attach"]), await asyncpg.connect(dsns["attach"])
    edge = await asyncpg.connect(dsns["edge"])
    try:
        assert await worker.fetchval("select pg_terminate_backend($1, 5000)", zombie.get_server_pid())
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await zombie.execute("select")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await worker.fetchval("select pg_terminate_backend($1)", edge.get_server_pid())
        await edge.execute("select")
    finally:
        for connection in (worker, zombie, edge):
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.wait_for(connection.close(), 5)
