"""What enrich knows of a subject follows Postgres at once, and does without it when it must."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import orjson
import pytest
from pydantic import SecretStr

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.enrich.context import Context
from drm_ingest.pipeline.enrich.directory import Directory
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def registry(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def directory(settings: Settings) -> AsyncIterator[Directory]:
    async with Directory(settings, Metrics("enrich")) as directory:
        yield directory


async def party(registry: asyncpg.Connection, name: str, kind: str = "customer", **refs: str) -> uuid.UUID:
    id_ = await registry.fetchval("insert into party (kind, name) values ($1, $2) returning id", kind, name)
    for namespace, ref in refs.items():
        await registry.execute("insert into party_ref values ($1, $2, $3)", namespace, ref, id_)
    return uuid.UUID(str(id_))


async def relate(
    registry: asyncpg.Connection,
    subject: str,
    role: str,
    party: uuid.UUID,
    since: datetime | None = None,
    until: datetime | None = None,
) -> None:
    await registry.execute(
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)"
        " select $1, role, party.id, exclusive, subject_kind, party_kind, tstzrange($4, $5)"
        " from role_kind join party on party.kind = party_kind where role = $2 and party.id = $3 and subject_kind ="
        " coalesce((select kind from party where 'party:' || id = $1), 'device')",
        subject, role, party, since, until,
    )  # fmt: skip


async def attributes(directory: Directory, subject: str, at: datetime = NOW) -> dict[str, object]:
    context = (await directory.look_up({subject.encode()}))[subject.encode()]
    return read(context, at)


def read(context: Context, at: datetime = NOW) -> dict[str, object]:
    result: dict[str, object] = orjson.loads(b'{"subject":1' + context.at(at) + b"}")
    del result["subject"]
    return result


async def test_a_device_has_its_model_and_the_parties_that_hold_a_role(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    await registry.execute(
        "insert into device (subject, model, firmware, registered_by) values ('m1', 'M 7', '1.2', 'registry')"
    )
    owner, vendor = await party(registry, "Ada"), await party(registry, "Shop", "vendor")
    await relate(registry, "m1", "owner", owner)
    await relate(registry, "m1", "sold_by", vendor)
    assert await attributes(directory, "m1") == {
        "devicemodel": "M 7",
        "devicefirmware": "1.2",
        "partyroles": f"owner:{owner} sold_by:{vendor}",
    }


async def test_roles_are_those_at_the_time_of_the_event(directory: Directory, registry: asyncpg.Connection) -> None:
    first, second = await party(registry, "first"), await party(registry, "second")
    sold = NOW - timedelta(days=30)
    await relate(registry, "m1", "owner", first, JANUARY, sold)
    await relate(registry, "m1", "owner", second, sold)
    tick = timedelta(microseconds=1)
    expected = [
        (JANUARY - tick, {}),
        (JANUARY, {"partyroles": f"owner:{first}"}),
        (sold - tick, {"partyroles": f"owner:{first}"}),
        (sold, {"partyroles": f"owner:{second}"}),
        (NOW, {"partyroles": f"owner:{second}"}),
    ]
    context = (await directory.look_up({b"m1"}))[b"m1"]
    for time, roles in expected + expected[::-1]:
        assert read(context, time) == roles
        assert context.since <= time < context.until
        # Whatever the span says, the next event of the same span is given the same without asking again.
        assert orjson.loads(b'{"a":1' + context.attributes + b"}") == {"a": 1, **roles}


async def test_superseded_relations_do_not_count(directory: Directory, registry: asyncpg.Connection) -> None:
    wrong, right = await party(registry, "wrong"), await party(registry, "right")
    await relate(registry, "m1", "owner", wrong)
    assert await attributes(directory, "m1") == {"partyroles": f"owner:{wrong}"}
    await registry.execute(
        "update relationship set recorded = tstzrange(lower(recorded), clock_timestamp()) where subject = 'm1'"
    )
    await relate(registry, "m1", "owner", right)
    assert await attributes(directory, "m1") == {"partyroles": f"owner:{right}"}


async def test_a_device_never_heard_of_is_complete_with_nothing(directory: Directory) -> None:
    assert await attributes(directory, "never heard of") == {}


async def test_a_change_shows_in_the_very_next_look_up_every_time(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    """The promise to whoever posts an event after a relation was acknowledged; no pause in between, many times."""
    keys = {b"m1", b"other"}
    for _ in range(300):
        person = await party(registry, "next")
        async with registry.transaction():
            await registry.execute(
                "update relationship set recorded = tstzrange(lower(recorded), clock_timestamp())"
                " where subject = 'm1' and upper_inf(recorded)"
            )
            await relate(registry, "m1", "owner", person)
        assert read((await directory.look_up(keys))[b"m1"]) == {"partyroles": f"owner:{person}"}


async def test_a_change_while_the_question_is_under_way_is_not_remembered_wrongly(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    for _ in range(100):
        person = await party(registry, "next")
        async with registry.transaction():
            await registry.execute(
                "update relationship set recorded = tstzrange(lower(recorded), clock_timestamp())"
                " where subject = 'm1' and upper_inf(recorded)"
            )
            await relate(registry, "m1", "owner", person)
            asking = asyncio.create_task(directory.look_up({b"m1", b"m2"}))
            await asyncio.sleep(0)
        await asking
        assert await attributes(directory, "m1") == {"partyroles": f"owner:{person}"}


async def test_a_party_is_found_by_its_id_and_by_its_references(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    vendor, customer = await party(registry, "Shop", "vendor"), await party(registry, "Ada", crm="778", web="a:b")
    await relate(registry, f"party:{customer}", "buys_from", vendor)
    expected = {"partyroles": f"buys_from:{vendor} self:{customer}"}
    for name in (f"party:{customer}", "party:crm:778", "party:web:a:b"):
        assert await attributes(directory, name) == expected
    assert await attributes(directory, "party:crm:779") == {}
    assert await attributes(directory, f"party:{uuid.uuid4()}") == {}
    assert await attributes(directory, "party:not-an-id") == {}


async def test_what_changes_of_a_party_shows_under_each_of_its_names(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    assert await attributes(directory, "party:crm:778") == {}
    customer = await party(registry, "Ada", crm="778")
    assert await attributes(directory, "party:crm:778") == {"partyroles": f"self:{customer}"}
    carer = await party(registry, "Eve", "employee")
    await relate(registry, f"party:{customer}", "cared_for_by", carer)
    expected = {"partyroles": f"cared_for_by:{carer} self:{customer}"}
    assert await attributes(directory, "party:crm:778") == expected
    assert await attributes(directory, f"party:{customer}") == expected
    await registry.execute("update party_ref set party = $1 where ref = '778'", carer)
    assert await attributes(directory, "party:crm:778") == {"partyroles": f"self:{carer}"}
    await registry.execute("delete from party_ref where ref = '778'")
    assert await attributes(directory, "party:crm:778") == {}


async def test_what_an_import_changes_of_very_many_parties_shows_in_the_very_next_look_up(
    directory: Directory, registry: asyncpg.Connection
) -> None:
    """They are told of in few messages, however long and odd the references are."""
    odd = '\\"\u0001ü🜨'
    refs = [f"{number}-{odd}"[:150].ljust(3 + number % 148, "\u0001") for number in range(5000)]
    keys = {f"party:crm:{ref}".encode() for ref in (*refs, "of another")}
    assert all(read(context) == {} for context in (await directory.look_up(keys)).values())
    heard: list[str] = []
    listener = await asyncpg.connect(directory._settings.postgres_dsn.get_secret_value())
    for channel in ("drm_directory", "drm_directory_many"):
        await listener.add_listener(channel, lambda *told: heard.append(told[-1]))
    ids = [await party(registry, name) for name in ("Ada", "Ben")]
    for statement, holder in (
        ("insert into party_ref select 'crm', ref, $2 from unnest($1::text[]) as ref", ids[0]),
        ("update party_ref set party = $2 where ref = any ($1::text[])", ids[1]),
        ("delete from party_ref where ref = any ($1::text[]) and party = $2", None),
    ):
        await registry.execute(statement, refs, holder or ids[1])
        found = await directory.look_up(keys)
        expected = {"partyroles": f"self:{holder}"} if holder else {}
        assert all(read(found[f"party:crm:{ref}".encode()]) == expected for ref in refs)
    await listener.execute("select")
    await listener.close()
    assert 4 < len(heard) < 2500
    assert max(len(told.encode()) for told in heard) < 8000


async def test_of_very_many_relations_the_latest_are_kept_and_the_rest_is_marked(
    settings: Settings, registry: asyncpg.Connection
) -> None:
    async with Directory(settings.model_copy(update={"directory_relations_max": 3}), Metrics("enrich")) as directory:
        people = [await party(registry, str(day)) for day in range(6)]
        for day, person in enumerate(people):
            await relate(registry, "tablet", "user", person, NOW + timedelta(days=day), NOW + timedelta(days=day + 1))
        for day in (3, 4, 5):
            expected = {"partyroles": f"user:{people[day]}"}
            assert await attributes(directory, "tablet", NOW + timedelta(days=day)) == expected
        for day in (2, 0, -1):
            expected = {"contextquality": "missing"}
            assert await attributes(directory, "tablet", NOW + timedelta(days=day)) == expected
        assert await attributes(directory, "tablet", NOW + timedelta(days=6)) == {}


async def test_keys_that_cannot_be_subjects_are_left_out_and_harm_nobody(directory: Directory) -> None:
    contexts = await directory.look_up({b"m1", b"nul\0", b"\xff\xfe", b"", b"x" * 201, "ü".encode() * 200})
    assert contexts.keys() == {b"m1", "ü".encode() * 200}


async def test_no_more_devices_are_kept_than_allowed(settings: Settings, registry: asyncpg.Connection) -> None:
    async with Directory(settings.model_copy(update={"directory_devices_max": 100}), Metrics("enrich")) as directory:
        person = await party(registry, "Ada", crm="778")
        await directory.look_up({b"party:crm:778"})
        for batch in range(10):
            await directory.look_up({f"{batch}-{number}".encode() for number in range(30)})
            assert len(directory) <= 100
        carer = await party(registry, "Eve", "employee")
        await relate(registry, f"party:{person}", "cared_for_by", carer)
        assert await attributes(directory, "party:crm:778") == {"partyroles": f"cared_for_by:{carer} self:{person}"}


class Down:
    """A directory whose Postgres the test may stop."""

    def __init__(self, server: Postgres, directory: Directory) -> None:
        self.server, self.directory = server, directory


@pytest.fixture
async def down(settings: Settings, private_postgres: Callable[[], Postgres]) -> AsyncIterator[Down]:
    server = private_postgres()
    own = settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn), "directory_timeout_s": 0.3})
    async with Directory(own, Metrics("enrich")) as directory:
        registry = await asyncpg.connect(server.dsn)
        await registry.execute("insert into device (subject, model, registered_by) values ('m1', 'M 7', 'registry')")
        await registry.close()
        yield Down(server, directory)


async def until_connected(directory: Directory) -> None:
    async with asyncio.timeout(20):
        while not directory.connected:  # noqa: ASYNC110 - nothing tells it, and no process of ours waits for it
            await asyncio.sleep(0.05)


async def test_while_postgres_is_down_what_is_remembered_goes_on_as_stale(down: Down) -> None:
    assert await attributes(down.directory, "m1") == {"devicemodel": "M 7"}
    await asyncio.to_thread(down.server.kill)
    for _ in range(3):
        assert await attributes(down.directory, "m1") == {"devicemodel": "M 7", "contextquality": "stale"}
        assert await attributes(down.directory, "m2") == {"contextquality": "missing"}

    await asyncio.to_thread(down.server.start)
    registry = await asyncpg.connect(down.server.dsn)
    await registry.execute("update device set model = 'M 8'")
    await registry.close()
    await until_connected(down.directory)
    assert await attributes(down.directory, "m1") == {"devicemodel": "M 8"}
    assert await attributes(down.directory, "m2") == {}


async def test_a_postgres_that_hangs_is_waited_for_once(down: Down) -> None:
    assert await attributes(down.directory, "m1") == {"devicemodel": "M 7"}
    registry = await asyncpg.connect(down.server.dsn)
    backend = await registry.fetchval("select pid from pg_stat_activity where application_name = 'drm enrich'")
    await registry.close()
    down.server.signal(signal.SIGSTOP)  # answers no new connection
    os.kill(backend, signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            assert await attributes(down.directory, "m1") == {"devicemodel": "M 7", "contextquality": "stale"}
        assert asyncio.get_running_loop().time() - began < 2 * 0.3
    finally:
        os.kill(backend, signal.SIGCONT)
        down.server.signal(signal.SIGCONT)
    await until_connected(down.directory)
    assert await attributes(down.directory, "m1") == {"devicemodel": "M 7"}


async def test_a_locked_table_does_not_hold_up_one_batch_after_another(down: Down) -> None:
    registry = await asyncpg.connect(down.server.dsn)
    try:
        async with registry.transaction():
            await registry.execute("lock table relationship in access exclusive mode")
            began = asyncio.get_running_loop().time()
            for number in range(50):
                assert await attributes(down.directory, f"m-{number}") == {"contextquality": "missing"}
                await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() - began < 50 * 0.02 + 2 * 0.3
        await until_connected(down.directory)
        assert await attributes(down.directory, "m1") == {"devicemodel": "M 7"}
    finally:
        await registry.close()


async def test_it_starts_without_postgres(settings: Settings) -> None:
    nowhere = settings.model_copy(
        update={"postgres_dsn": SecretStr(f"postgresql://drm@127.0.0.1:{free_port()}/drm"), "directory_timeout_s": 0.2}
    )
    async with Directory(nowhere, Metrics("enrich")) as directory:
        assert await attributes(directory, "m1") == {"contextquality": "missing"}
