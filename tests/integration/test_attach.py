"""attach on a real Kafka and a real Postgres: what is stored, that it is stored once, and what becomes of the rest."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
from aiokafka import AIOKafkaConsumer
from tests.attaching import NOON, Bench, bench, event

from drm_ingest.event import content_hash, identity_key
from drm_ingest.kafka.dead_letters import reason_of
from drm_ingest.pipeline.attach.worker import COMMIT_INTERVAL_S
from drm_ingest.settings import Settings

DAY = timedelta(days=1)
WITHOUT_SENTINELS = "where subject <> 'sentinel'"


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


async def dead_letters(bench: Bench, count: int) -> list[tuple[bytes, dict[str, str]]]:
    """The values and reasons of the first dead letters in the topic."""
    consumer = AIOKafkaConsumer(
        bench.topics.dead_letters, bootstrap_servers=bench.settings.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        return [(r.value, dict(reason_of(r))) for r in [await consumer.getone() for _ in range(count)]]
    finally:
        await consumer.stop()


# -- what a row holds --


async def test_an_event_is_stored_as_it_was_sent(attached: Bench) -> None:
    sent = event(
        "e-1", source="gateway-7", sequence="0042", dataschema="1.0", timequality="corrected",
        occurredat="2026-11-20T12:00:00.123456+02:00", data='{"b": 1.50, "a": "naïve", "n": null}',
    )  # fmt: skip
    await attached.put(sent)
    async with attached.attaching():
        await attached.passed()
    (row,) = await attached.fetch("select * from event")
    time = NOON.isoformat()
    assert dict(row) == {
        "occurred_at": NOON - timedelta(hours=2) + timedelta(microseconds=123456),
        "received_at": NOON + timedelta(seconds=1),
        "recorded_at": row["recorded_at"],
        "content_hash": UUID(
            bytes=content_hash("device.measurement", time, '{"b": 1.50, "a": "naïve", "n": null}'.encode())
        ),
        "subject": "meter-1",
        "source": "gateway-7",
        "id": "e-1",
        "type": "device.measurement",
        "occurred_at_raw": time,
        "time_quality": "corrected",
        "sequence": "0042",
        "sender": "tests",
        "dataschema": "1.0",
        "data": '{"a": "naïve", "b": 1.50, "n": null}',
    }
    identities = await attached.fetch("select * from event_identity where occurred_at <> $1", NOON)
    assert [dict(identity) for identity in identities] == [
        {
            "key": UUID(bytes=identity_key("meter-1", "gateway-7", "e-1")),
            "content_hash": row["content_hash"],
            "occurred_at": row["occurred_at"],
        }
    ]


async def test_what_is_absent_is_null_and_a_device_without_a_source_has_the_empty_one(attached: Bench) -> None:
    await attached.put(event("e-1", subject="a/b ü", data=None, time=None), event("e-2", subject="a/b ü", data="null"))
    async with attached.attaching():
        await attached.passed()
    rows = await attached.fetch("select id, source, occurred_at_raw is null as no_time, data from event order by id")
    assert [tuple(row) for row in rows] == [("e-1", "", True, None), ("e-2", "", False, "null")]


async def test_unknown_devices_are_registered_unclaimed_and_parties_are_not_devices(attached: Bench) -> None:
    await attached.connection.execute(
        "insert into device (subject, model, registered_by) values ('known', 'M1', 'registry')"
    )
    await attached.put(event("1", "new"), event("2", "known"), event("3", "party:crm:778"), event("4", "new"))
    async with attached.attaching():
        await attached.passed()
        await attached.put(event("5", "newer"))
        await attached.until("select exists (select from event where id = '5')")
    devices = await attached.fetch(f"select subject, model, registered_by from device {WITHOUT_SENTINELS} order by 1")
    assert [tuple(row) for row in devices] == [
        ("known", "M1", "registry"),
        ("new", None, "event"),
        ("newer", None, "event"),
    ]
    assert await attached.value("select count(*) from event where subject = 'party:crm:778'") == 1


# -- once --


END_WORKERS = """
select pg_terminate_backend(pid, 5000) from pg_stat_activity
where application_name like 'drm attach%' and datname = current_database()
"""


async def test_devices_that_a_restored_postgres_has_not_heard_of_are_registered_again(attached: Bench) -> None:
    await attached.put(event("e-1"))
    async with attached.attaching():
        await attached.until("select exists (select from device where subject = 'meter-1')")
        await attached.connection.execute("delete from device")
        await attached.connection.execute(END_WORKERS)
        await attached.put(event("e-2"))
        await attached.until("select exists (select from event where id = 'e-2')")
        assert await attached.value("select count(*) from device where subject = 'meter-1'") == 1


async def test_an_emptied_postgres_is_filled_from_the_beginning_of_the_topics_without_a_restart(
    attached: Bench,
) -> None:
    await attached.put(event("e-1"), event("e-2"), partition=0)
    async with attached.attaching():
        await attached.until("select count(*) = 2 from event")
        await asyncio.sleep(2 * COMMIT_INTERVAL_S)  # Kafka too knows how far it has read
        tables = "event, event_identity, subject_day, device, consumer_position"
        await attached.connection.execute(f"truncate {tables} cascade")
        await attached.connection.execute(END_WORKERS)
        await attached.put(event("e-3"), partition=0)
        await attached.until("select exists (select from event where id = 'e-3')")
        ids = await attached.fetch("select id from event order by id")
        assert [row["id"] for row in ids] == ["e-1", "e-2", "e-3"]


async def test_a_duplicate_is_stored_once_in_its_batch_or_years_later(attached: Bench) -> None:
    first = event("e-1")
    await attached.put(first, first, event("e-2"))
    async with attached.attaching() as worker:
        await attached.passed()
        await attached.put(first, event("e-3"))
        await attached.until("select exists (select from event where id = 'e-3')")
        await worker.counted({"attached": 3 + 3, "duplicate": 2})
    async with attached.attaching() as worker:  # one that remembers nothing
        await attached.put(first, event("e-4"))
        await attached.until("select exists (select from event where id = 'e-4')")
        await worker.counted({"attached": 1, "duplicate": 1})
    counts = await attached.fetch("select id, count(*) from event group by id order by id")
    assert [tuple(row) for row in counts] == [("e-1", 1), ("e-2", 1), ("e-3", 1), ("e-4", 1)]
    assert await attached.value("select events from subject_day where subject = 'meter-1'") == 4


async def test_the_same_event_from_another_gateway_is_another_event(attached: Bench) -> None:
    await attached.put(event("e-1"), event("e-1", source="gateway"), event("e-1", subject="meter-2"))
    async with attached.attaching():
        await attached.passed()
    assert await attached.value("select count(*) from event") == 3


@pytest.mark.parametrize("where", ["in one batch", "in batches apart"])
async def test_of_two_events_with_one_identity_the_first_wins_and_the_second_is_a_dead_letter(
    attached: Bench, where: str
) -> None:
    first, second = event("e-1", data='{"temperature": 1}'), event("e-1", data='{"temperature": 2}')
    await attached.put(*([first, second] if where == "in one batch" else [first]))
    async with attached.attaching() as worker:
        await attached.passed()
        if where == "in batches apart":
            await attached.put(second)
        await attached.until("select exists (select from dead_letter)")
        await worker.counted({"attached": 4, "dead_letter": 1})
        assert worker.codes() == {"id_conflict": 1}
    assert await attached.value("select data from event") == '{"temperature": 1}'
    assert await attached.value("select last_data from subject_day where subject = 'meter-1'") == '{"temperature": 1}'
    ((value, reason),) = await dead_letters(attached, 1)
    assert value == second
    assert (reason["stage"], reason["code"]) == ("attach", "id_conflict")
    (letter,) = await attached.fetch("select * from dead_letter")
    assert letter["key"] == UUID(bytes=identity_key("meter-1", "", "e-1"))
    assert letter["content_hash"] == UUID(
        bytes=content_hash("device.measurement", NOON.isoformat(), b'{"temperature": 2}')
    )
    assert (letter["topic"], letter["stage"], letter["code"]) == (
        attached.topics.events("measurement"), "attach", "id_conflict",
    )  # fmt: skip


async def test_a_repeat_of_what_is_stored_is_no_conflict_though_a_conflict_came_right_before_it(
    attached: Bench,
) -> None:
    first, conflict = event("e-1", data='{"temperature": 1}'), event("e-1", data='{"temperature": 2}')
    await attached.put(first)
    async with attached.attaching():
        await attached.passed()
    await attached.put(conflict, first, conflict, event("e-2"))  # read together
    async with attached.attaching() as worker:
        await attached.until("select exists (select from event where id = 'e-2')")
        await worker.counted({"attached": 1, "duplicate": 2, "dead_letter": 1})
    assert await attached.value("select data from event where id = 'e-1'") == '{"temperature": 1}'


# -- what cannot be stored --


async def test_rows_that_postgres_refuses_are_dead_letters_and_the_rest_of_their_batch_is_stored(
    attached: Bench,
) -> None:
    poison = [
        event("nul", data='{"a": "\\u0000"}'),
        event("number", data='{"a": 1e999999}'),
        event("subject", subject="s" * 201),
        event("sender", sender="\0"),
    ]
    good = [event(f"good-{number}") for number in range(200)]
    mixed = good + poison
    random.Random(1).shuffle(mixed)
    await attached.put(*mixed)
    async with attached.attaching() as worker:
        await attached.passed()
        await worker.counted({"attached": 203, "dead_letter": 4})
    assert await attached.value("select count(*) from event") == 200
    assert await attached.value("select events from subject_day where subject = 'meter-1'") == 200
    assert await attached.value("select count(*) from event_identity") == 203
    letters = await dead_letters(attached, 4)
    assert {value for value, _ in letters} == set(poison)
    assert {reason["code"] for _, reason in letters} == {"row_refused"}
    rows = await attached.fetch("select key, code, detail from dead_letter")
    assert {row["key"] for row in rows} >= {UUID(bytes=identity_key("meter-1", "", "nul"))}
    assert all(row["detail"].endswith("]") for row in rows), "each tells the reason, and its SQLSTATE"


async def test_records_that_are_not_events_are_dead_letters_and_stop_nothing(attached: Bench) -> None:
    values = [
        b"",
        b"{",
        b"[]",
        b'{"type": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
        event("e", data="[" * 100_000 + "]" * 100_000),
        event("e", data='"\\ud800"'),
        event("e", occurredat="yesterday"),
        event("e", occurredat="2026-11-20T12:00:00"),
        event("e", contenthash="zz"),
        event("e", contenthash="00"),
    ]
    for number, value in enumerate(values):
        await attached.put(event(f"good-{number}"), value, partition=0)
    async with attached.attaching() as worker:
        await attached.passed()
        await worker.counted({"attached": 12 + 3, "dead_letter": 12})
    assert await attached.value("select count(*) from event") == 12
    letters = sorted(await dead_letters(attached, 12), key=lambda letter: int(letter[1]["offset"]))
    assert [value for value, _ in letters] == values
    assert {reason["code"] for _, reason in letters} == {"unreadable"}
    assert [int(reason["offset"]) for _, reason in letters] == list(range(1, 25, 2))
    assert await attached.value("select count(*) from dead_letter where code = 'unreadable' and key is null") == 12


async def test_a_record_too_large_for_a_dead_letter_is_cut_and_stops_nothing(attached: Bench) -> None:
    foreign = b"{" + b"x" * (attached.settings.writer_batch_bytes_max + 1000)
    await attached.put(event("good-1"), foreign, b"[]", event("good-2"), partition=0)
    async with attached.attaching() as worker:
        await attached.passed()
        await worker.counted({"attached": 2 + 3, "dead_letter": 2})
    letters = {value for value, _ in await dead_letters(attached, 2)}
    assert letters == {b"[]", foreign[: attached.settings.writer_batch_bytes_max // 2]}


# -- day counts --


async def test_day_counts_are_right_for_late_and_disordered_events(attached: Bench) -> None:
    times = [NOON, NOON + DAY, NOON - 400 * DAY, NOON.replace(hour=23, minute=59, second=59), NOON + DAY - DAY / 2]
    sent = [
        event(f"{type_}-{number}", at=time, type_=type_, data=f'{{"n": {number}}}')
        for type_ in ("device.status", "device.measurement")
        for number, time in enumerate(times)
    ]
    random.Random(2).shuffle(sent)
    async with attached.attaching(attach_batch_records_max=3):
        for index in range(0, len(sent), 2):
            await attached.put(*sent[index : index + 2])
        await attached.passed()
    rows = await attached.fetch(
        f"select day, type, events, last_data from subject_day {WITHOUT_SENTINELS} order by type, day"
    )
    for type_ in ("device.measurement", "device.status"):
        assert [tuple(row)[:1] + tuple(row)[2:] for row in rows if row["type"] == type_] == [
            (date(2025, 10, 16), 1, '{"n": 2}'),
            (date(2026, 11, 20), 2, '{"n": 3}'),
            (date(2026, 11, 21), 2, '{"n": 1}'),
        ]
    recounted = await attached.fetch(
        "select (occurred_at at time zone 'UTC')::date, type, count(*) from event group by 1, 2 order by 2, 1"
    )
    assert [tuple(row) for row in recounted] == [(row["day"], row["type"], row["events"]) for row in rows]


async def test_the_latest_is_told_by_time_then_sequence_and_never_by_arrival(attached: Bench) -> None:
    later = NOON + timedelta(microseconds=1)
    latest = {
        "time": event("t-2", "time", at=later, sequence="1", data='"latest"'),
        "number": event("n-2", "number", at=later, sequence="10", data='"latest"'),
        "padded": event("p-2", "padded", at=later, sequence="0010", data='"latest"'),
        "some": event("s-2", "some", at=later, sequence="0", data='"latest"'),
    }
    others = [
        event("t-1", "time", sequence="9"),
        event("n-1", "number", at=later, sequence="9"),
        event("p-1", "padded", at=later, sequence="0009"),
        event("s-1", "some", at=later),
    ]
    await attached.put(*latest.values(), *others)
    async with attached.attaching():
        await attached.passed()
        await attached.put(*(event(f"again-{subject}", subject, at=NOON - DAY / 4) for subject in latest))
        await attached.until("select count(*) = 4 from event where id like 'again-%'")
    rows = await attached.fetch(f"select subject, last_data, events from subject_day {WITHOUT_SENTINELS} order by 1")
    assert [tuple(row) for row in rows] == [(subject, '"latest"', 3) for subject in sorted(latest)]


@pytest.mark.parametrize("batch", [1, 2, 7])
async def test_whatever_the_order_and_the_batches_the_day_counts_end_the_same(attached: Bench, batch: int) -> None:
    """Ties of time and sequence too: what decides then is the hash, not who came first."""
    sent = [
        event(f"{subject}-{number}", subject, at=NOON + (number % 2) * DAY, sequence=sequence, data=f"{number}")
        for subject in ("a", "b")
        for number, sequence in enumerate([None, "1", "1", "9", "10", "10", "x"])
    ]
    order = random.Random(batch)
    async with attached.attaching(attach_batch_records_max=batch):
        shuffled = sent[:]
        order.shuffle(shuffled)
        await attached.put(*shuffled)
        await attached.passed()
    rows = await attached.fetch(
        "select subject, day, events, last_at, last_sequence, last_hash, last_data "
        f"from subject_day {WITHOUT_SENTINELS} order by subject, day"
    )
    expected = await attached.fetch(
        "select distinct on (subject, 2) subject, (occurred_at at time zone 'UTC')::date, "
        "count(*) over (partition by subject, (occurred_at at time zone 'UTC')::date), "
        "occurred_at, sequence, content_hash, data from event "
        "order by subject, 2, occurred_at desc, length(coalesce(sequence, '')) desc, coalesce(sequence, '') desc, "
        "content_hash desc"
    )
    assert [tuple(row) for row in rows] == [tuple(row) for row in expected]
    assert len(rows) == 4


# -- months --


async def test_a_month_of_which_something_comes_late_is_made_at_once(attached: Bench) -> None:
    late = datetime.now(UTC) - timedelta(days=300)
    async with attached.attaching(keeper_interval_s=86_400, event_retention_days=600):
        await attached.until("select exists (select from consumer_position)")  # it has kept partitions before
        await attached.put(event("late", at=late), event("older than is kept", at=late - timedelta(days=400)))
        await attached.until("select tableoid::regclass::text = $1 from event where id = 'late'", f"event_{late:%Y_%m}")
        await attached.passed()
    assert await attached.value("select id from event_default") == "older than is kept"


# -- the accounts --


async def test_received_is_the_sum_of_outcomes_and_freshness_has_counted_each_event_once(attached: Bench) -> None:
    sent = [event(f"e-{number}") for number in range(500)]
    await attached.put(*sent, *sent[:10], event("e-1", data="2"), b"{")
    async with attached.attaching(attach_batch_records_max=100) as worker:
        await attached.passed()
        await worker.counted({"attached": 503, "duplicate": 10, "dead_letter": 2})
        assert worker.sample("drm_events_received_total") == 515
        assert worker.sample("drm_events_in_flight") == 0
        assert worker.sample("drm_freshness_seconds_count") == 503


# -- the brake --

REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin raise exception 'a deploy went wrong' using errcode = '23514', constraint = 'deploy'; end $$;
create trigger refuse before insert on event for each row execute function refuse()
"""


async def test_a_trigger_that_refuses_every_row_stops_it_buries_nothing_and_once_mended_it_goes_on_by_itself(
    attached: Bench,
) -> None:
    await attached.put(event("good"))
    async with attached.attaching(brake_retry_max_s=1) as worker:
        await attached.passed()
        await attached.connection.execute(REFUSE)
        await attached.put(*(event(f"e-{number}", f"meter-{number % 40}") for number in range(1000)))
        reason = await worker.until_ready(False, "a deploy went wrong")
        assert "events fail" in reason
        assert "DRM_BRAKE_SHARE_MAX" in reason
        assert worker.sample("drm_braked") == 1
        await worker.until(lambda: worker.outcomes().get("retried", 0) > 2000)  # again and again
        assert worker.outcomes().get("dead_letter", 0) < attached.settings.brake_letters_min
        buried = await attached.value("select count(*) from dead_letter")
        await attached.connection.execute("drop trigger refuse on event")
        await attached.until("select count(*) + $1 = 1001 from event", buried)
        await worker.until_ready()
        await worker.until(lambda: worker.sample("drm_events_in_flight") == 0)
        assert worker.sample("drm_events_received_total") == sum(worker.outcomes().values())
        assert worker.sample("drm_braked") == 0


async def test_where_a_person_says_that_all_are_poison_all_are_set_aside_and_quickly(attached: Bench) -> None:
    await attached.connection.execute(REFUSE)
    await attached.put(*(event(f"e-{number}", f"meter-{number % 40}") for number in range(4000)))
    async with attached.attaching(brake_share_max=1) as worker:
        await worker.until(lambda: worker.outcomes().get("dead_letter", 0) == 4000)
    assert await attached.value("select count(*) from dead_letter where code = 'row_refused'") == 4000
    assert await attached.value("select count(*) from event_identity") == 0
    assert await attached.value("select detail from dead_letter limit 1") == "a deploy went wrong [23514]"


async def test_id_conflicts_are_their_senders_mistake_and_stop_nobody(attached: Bench) -> None:
    await attached.put(*(event(f"e-{number}") for number in range(200)))
    await attached.put(*(event(f"e-{number}", data="{}") for number in range(200)))
    async with attached.attaching() as worker:
        await worker.counted({"attached": 200, "dead_letter": 200})


async def test_what_another_table_than_that_of_events_refuses_is_found_too(attached: Bench) -> None:
    await attached.connection.execute("alter table subject_day add constraint not_this check (subject <> 'meter-3')")
    await attached.put(*(event(f"e-{number}", f"meter-{number % 40}") for number in range(400)))
    async with attached.attaching() as worker:
        await worker.counted({"attached": 390, "dead_letter": 10})
